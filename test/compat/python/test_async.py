"""The asynchronous half of the official Python SDK."""

import asyncio

import pytest
from e2b_code_interpreter import AsyncSandbox, TimeoutException

from programs import ANALYSIS, CSV, TOTALS

pytestmark = pytest.mark.asyncio

# Neither of two ends before the other has begun.
MEET = """
import os, time
open('{0}', 'w').close()
while not os.path.exists('{1}'): time.sleep(0.02)
"""


async def test_runs_the_whole_program_of_the_readme():
    box = await AsyncSandbox.create(timeout=120)
    await box.files.write("/home/user/sales.csv", CSV)
    assert await box.files.read("sales.csv") == CSV

    printed, results = [], []

    async def on_stdout(message):
        printed.append(message.line)
        await box.files.write("heard", "")

    execution = await box.run_code(ANALYSIS, on_stdout=on_stdout, on_result=results.append, timeout=60)
    assert execution.error is None
    assert "".join(printed) == "2024 17\n2025 23\n"
    charts = [result for result in results if result.png]
    assert [chart.chart.type.value for chart in charts] == ["bar", "line"]
    assert [(each.label, each.value) for each in charts[0].chart.elements] == TOTALS
    table = next(result for result in results if result.is_main_result)
    assert table.data == {"city": ["Bergen", "Oslo"], "sales": [16, 24]}

    other = await box.create_code_context()
    assert (await box.run_code("totals", context=other)).error.name == "NameError"
    assert "24" in (await box.run_code("totals.sales.max()")).text

    assert await box.kill() is True
    assert await box.is_running() is False
    with pytest.raises(TimeoutException):
        await box.run_code("1")


async def test_contexts_run_in_parallel_and_one_context_one_by_one():
    box = await AsyncSandbox.create(timeout=120)
    contexts = await asyncio.gather(*(box.create_code_context() for _ in range(2)))
    cells = MEET.format("a", "b"), MEET.format("b", "a")
    met = await asyncio.gather(
        *(box.run_code(cell, context=each, timeout=30) for cell, each in zip(cells, contexts))
    )
    assert [run.error for run in met] == [None, None]
    runs = await asyncio.gather(*(box.run_code(f"print({n})\n{n}", context=contexts[0]) for n in range(5)))
    assert [run.text for run in runs] == ["0", "1", "2", "3", "4"]
    # One at a time: each has its own number. Which of five requests arrives first is not ours to say.
    counts = sorted(run.execution_count for run in runs)
    assert counts == list(range(counts[0], counts[0] + 5))
    await box.kill()
