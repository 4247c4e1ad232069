"""Output of every kind and size, through a real gateway."""

from __future__ import annotations

import pytest
from gateway_client import resident_bytes, wait_while_growing

from cellbox_kernel.streams import MAX_MESSAGE_BYTES

MIB = 1024 * 1024


def pid_of(kernel) -> int:
    return int(kernel.run("import os; os.getpid()").text)


@pytest.mark.parametrize("character", ["x", "é", "😀"])
def test_one_long_print_arrives_whole_in_messages_of_at_most_a_mebibyte(kernel, character):
    code = f"print(''.join(chr(ord({character!r}) + i % 3) for i in range(3_000_000)))"
    stdout = kernel.run(code).stdout
    assert max(len(text.encode()) for text in stdout) <= MAX_MESSAGE_BYTES
    text = "".join(stdout)
    assert len(text) == 3_000_001
    assert text[:-1] == "".join(chr(ord(character) + i) for i in range(3)) * 1_000_000


def test_output_that_nobody_takes_waits_in_a_bounded_memory_and_arrives_in_order(gateway):
    kernel = gateway.start_kernel()
    pid = pid_of(kernel)
    before = resident_bytes(pid)
    lines, width = 300, MIB
    msg_id = kernel.send_code(f"for i in range({lines}): print(f'{{i:0{width - 1}}}')")
    largest = wait_while_growing(pid, before + 16 * MIB)
    stdout = "".join(kernel.collect(msg_id).stdout)
    assert largest < before + 200 * MIB
    assert resident_bytes(pid) < before + 200 * MIB
    assert [int(line[-9:]) for line in stdout.splitlines()] == list(range(lines))
    kernel.close()


def test_displays_that_nobody_takes_wait_too(gateway):
    kernel = gateway.start_kernel()
    pid = pid_of(kernel)
    before = resident_bytes(pid)
    kernel.run("text = 'x' * 2**20")
    msg_id = kernel.send_code("for i in range(400): display({'text/plain': f'{i:04}' + text}, raw=True)")
    execution = kernel.collect(msg_id)
    assert [int(result["data"]["text/plain"][:4]) for result in execution.results] == list(range(400))
    assert resident_bytes(pid) < before + 300 * MIB
    kernel.close()


def test_a_cell_that_waits_for_its_reader_can_be_interrupted(gateway):
    kernel = gateway.start_kernel()
    pid = pid_of(kernel)
    before = resident_bytes(pid)
    msg_id = kernel.send_code("while True: print('x' * 1_000_000)")
    wait_while_growing(pid, before + 16 * MIB)
    gateway.request("POST", f"/api/kernels/{kernel.id}/interrupt")
    assert kernel.collect(msg_id).error[0] == "KeyboardInterrupt"
    assert kernel.run("1").text == "1"
    kernel.close()


def test_printed_text_is_not_kept_in_memory(gateway):
    kernel = gateway.start_kernel()
    pid = pid_of(kernel)
    kernel.run("print('x' * 1000)")
    before = resident_bytes(pid)
    kernel.run("for i in range(200): print('x' * 2**20)")
    assert resident_bytes(pid) < before + 150 * MIB
    kernel.close()


def test_bytes_that_are_no_text_are_replaced_wherever_they_come_from(kernel):
    assert kernel.run("import os; _ = os.write(1, b'a\\xff\\x00b')").stdout == ["a\ufffd\0b"]
    assert kernel.run("import os; _ = os.write(2, b'\\xc3')").stderr == ["\ufffd"]
    junk = kernel.run("import subprocess; _ = subprocess.run(['head', '-c', '300000', '/dev/urandom'])")
    assert junk.error is None and len("".join(junk.stdout)) > 100_000
    assert kernel.run(r"import sys; print('\udc80', file=sys.stderr)").stderr == ["\ufffd\n"]
    assert kernel.run("print('ok')").stdout[-1].endswith("ok\n")


def test_a_child_process_that_floods_loses_nothing(kernel):
    code = "import subprocess; _ = subprocess.run(['seq', '1', '300000'])"
    assert "".join(kernel.run(code).stdout) == "".join(f"{i}\n" for i in range(1, 300_001))


@pytest.mark.parametrize(
    "start",
    [
        "threading.Thread(target=late).start()",
        "threading.Thread(target=lambda: threading.Thread(target=late).start()).start()",
        "concurrent.futures.ThreadPoolExecutor().submit(late)",
        "asyncio.get_running_loop().run_in_executor(None, late)",
    ],
)
def test_late_output_names_the_cell_that_started_its_thread(kernel, start):
    kernel.run("import asyncio, concurrent.futures, threading, time; go = threading.Event()")
    kernel.run("def late(): go.wait(); print('late'); done.set()")
    kernel.run("go.clear(); done = threading.Event()")
    starter = kernel.send_code(f"{start}; None")
    kernel.collect(starter)
    other = kernel.send_code("print('own'); go.set(); done.wait(5); time.sleep(0.5); print('own')")
    texts: dict[str, str] = {}
    idle = False
    while not (idle and len(texts) == 2):
        _, message = kernel.receive()
        parent = message["parent_header"].get("msg_id")
        if message["header"]["msg_type"] == "stream":
            texts[parent] = texts.get(parent, "") + message["content"]["text"]
        idle = idle or (parent == other and message["content"].get("execution_state") == "idle")
    assert texts == {starter: "late\n", other: "own\nown\n"}


def test_what_a_thread_displays_later_belongs_to_the_cell_that_started_it(kernel):
    kernel.run("import threading; go = threading.Event()")
    starter = kernel.send_code(
        "t = threading.Thread(target=lambda: (go.wait(), display({'a/b': 1}, raw=True))); t.start()"
    )
    kernel.collect(starter)
    kernel.send_code("go.set(); t.join()")
    while True:
        _, message = kernel.receive()
        if message["header"]["msg_type"] == "display_data":
            break
    assert message["parent_header"]["msg_id"] == starter


def test_late_output_of_a_task_names_the_cell_that_created_it(kernel):
    starter = kernel.send_code("import asyncio\nasync def late():\n    await asyncio.sleep(0.2)\n    print('late')")
    kernel.collect(starter)
    starter = kernel.send_code("task = asyncio.get_running_loop().create_task(late())")
    kernel.collect(starter)
    while True:
        _, message = kernel.receive()
        if message["header"]["msg_type"] == "stream":
            break
    assert (message["parent_header"]["msg_id"], message["content"]["text"]) == (starter, "late\n")


def test_a_kernel_says_nothing_before_its_first_cell(gateway):
    # This variable rules a fork out: the kernel is started by its command.
    kernel = gateway.start_kernel(env={"PYTHONHASHSEED": "5"})
    msg_id, said = kernel.send_code("1"), []
    while True:
        _, message = kernel.receive()
        if message["header"]["msg_type"] == "stream":
            said.append(message["content"]["text"])
        if message["parent_header"].get("msg_id") == msg_id and message["content"].get("execution_state") == "idle":
            break
    assert said == []
    kernel.close()


def test_a_fork_of_the_kernel_may_print_a_lot(kernel):
    code = (
        "import multiprocessing as mp\n"
        "child = mp.get_context('fork').Process(target=lambda: print('x' * 3_000_000, flush=True))\n"
        "child.start(); child.join()\n"
        "print(child.exitcode)"
    )
    msg_id = kernel.send_code(code)
    execution = kernel.collect(msg_id)
    text = "".join(execution.stdout)
    # What the child says last may come after the end of the cell.
    while len(text) < 3_000_003:
        _, message = kernel.receive()
        if message["parent_header"].get("msg_id") == msg_id:
            text += message["content"].get("text", "")
    assert (text.count("x"), execution.error) == (3_000_000, None)
    assert text.replace("x", "") in ("\n0\n", "0\n\n")
