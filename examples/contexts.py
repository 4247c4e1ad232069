"""Several kernels in one sandbox: each context has its own variables, directory and language; they run in parallel.

    python examples/contexts.py     (with the three E2B_* variables that `npm start` prints)
"""

import asyncio
import time

from e2b_code_interpreter import AsyncSandbox


async def main() -> None:
    sandbox = await AsyncSandbox.create()
    try:
        first = await sandbox.create_code_context()
        second = await sandbox.create_code_context(cwd="/tmp")
        await sandbox.run_code("x = 'of the first'", context=first)

        execution = await sandbox.run_code("x", context=second)
        print(f"x in the second context: {execution.error.name}")
        execution = await sandbox.run_code("x", context=first)
        print(f"x in the first context: {execution.text}")

        execution = await sandbox.run_code("import os; os.getcwd()", context=second)
        print(f"directory of the second context: {execution.text}")

        began = time.monotonic()
        nap = "import time; time.sleep(1)"
        await asyncio.gather(*(sandbox.run_code(nap, context=each) for each in (first, second)))
        print(f"two naps of 1 s, side by side: {time.monotonic() - began:.1f} s")

        execution = await sandbox.run_code("console.log([1, 2, 3].map((n) => n * n))", language="javascript")
        print(f"JavaScript: {''.join(execution.logs.stdout).strip()}")

        await sandbox.restart_code_context(first)
        execution = await sandbox.run_code("x", context=first)
        print(f"x after a restart: {execution.error.name}")

        await sandbox.remove_code_context(second)
        contexts = await sandbox.list_code_contexts()
        print(f"contexts: {', '.join(sorted(each.language for each in contexts))}")
    finally:
        await sandbox.kill()


asyncio.run(main())
