"""How a kernel's end is told, through a real gateway and in a real cgroup."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_client import Gateway, Kernel

from cellbox_kernel.endings import CountBeforeDeath, describe_ending
from cellbox_kernel.memory_cgroup import MemoryCgroup, own_memory_cgroup

LIMIT_BYTES = 512 * 1024 * 1024


def ending_of(kernel: Kernel, status: str = "restarting") -> dict[str, Any]:
    """What the next announcement says."""
    while True:
        _, message = kernel.receive()
        if message["header"]["msg_type"] == "status" and message["content"]["execution_state"] == status:
            return message["metadata"]["cellbox"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os._exit(3)", {"exit_code": 3}),
        ("import os; os._exit(255)", {"exit_code": 255}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {"signal": "SIGSEGV"}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {"signal": "SIGKILL"}),
        ("import ctypes; ctypes.string_at(0)", {"signal": "SIGSEGV"}),
        ("exit()", {"exit_code": 0}),
        ("quit()", {"exit_code": 0}),
    ],
)
def test_an_ending_tells_exit_code_or_signal(gateway, code, told):
    kernel = gateway.start_kernel()
    kernel.send_code(code)
    ending = ending_of(kernel)
    assert {name: ending.get(name) for name in ("exit_code", "signal")} == {"exit_code": None, "signal": None} | told
    assert (ending["ending"], ending["oom"]) == (1, False)
    assert gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["last_ending"] == ending
    assert kernel.run("1").text == "1"
    kernel.close()


def test_endings_are_counted_and_none_is_told_before_the_first(gateway):
    kernel = gateway.start_kernel()
    assert gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["last_ending"] is None
    for number in (1, 2):
        kernel.send_code("import os; os._exit(3)")
        assert ending_of(kernel)["ending"] == number
        assert kernel.run("1").text == "1"
    kernel.close()


def test_a_restart_that_was_asked_for_is_no_ending(gateway):
    kernel = gateway.start_kernel()
    assert gateway.request("POST", f"/api/kernels/{kernel.id}/restart")[0] == 200
    assert gateway.request("GET", f"/api/kernels/{kernel.id}")[1]["last_ending"] is None
    kernel.close()


def test_the_reply_of_a_cell_that_calls_exit_says_so(gateway):
    kernel = gateway.start_kernel()
    reply = kernel.run("print('last'); exit()").reply
    assert reply["status"] == "ok"
    assert {"source": "ask_exit", "keepkernel": False} in reply["payload"]
    assert ending_of(kernel)["exit_code"] == 0
    assert kernel.run("import sys; sys.exit(3)").error == ("SystemExit", "3")
    assert kernel.run("1").text == "1"
    kernel.close()


def test_a_kernel_that_is_killed_from_outside_names_the_signal(gateway):
    kernel = gateway.start_kernel()
    os.kill(int(kernel.run("import os; os.getpid()").text), signal.SIGTERM)
    assert ending_of(kernel)["signal"] == "SIGTERM"
    kernel.close()


@pytest.fixture
def limited_gateway(home: str) -> Iterator[Gateway]:
    """A gateway in a cgroup with a memory limit."""
    own = own_memory_cgroup()
    if own._directory is None or own._files.limit != "memory.limit_in_bytes":
        pytest.skip("needs version 1 of the memory controller")
    group = own._directory / f"endings-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"needs a writable cgroup: {error}")
    gateway = Gateway(home)
    try:
        # Before anything is forked: the zygote is started with the gateway, so all of them have to move.
        for pid in own_session_and_children(gateway.process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                (group / "cgroup.procs").write_text(str(pid))
        yield gateway
    finally:
        gateway.close()
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        group.rmdir()


def own_session_and_children(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since
        return []
    return [pid, *(descendant for child in children for descendant in own_session_and_children(int(child)))]


def test_a_kernel_killed_for_memory_is_told_as_that_with_peak_and_limit(limited_gateway):
    kernel = limited_gateway.start_kernel()
    kernel.send_code("kept = []\nwhile True: kept.append(bytearray(b'x') * 2**24)")
    ending = ending_of(kernel)
    assert (ending["signal"], ending["oom"], ending["memory_limit_bytes"]) == ("SIGKILL", True, LIMIT_BYTES)
    assert LIMIT_BYTES * 0.9 < ending["memory_peak_bytes"] <= LIMIT_BYTES
    # A kill of another kind right after it is not memory's, though the peak stays where it was.
    kernel.run("1")
    kernel.send_code("import os; os.kill(os.getpid(), 9)")
    ending = ending_of(kernel)
    assert (ending["ending"], ending["signal"], ending["oom"]) == (2, "SIGKILL", False)
    kernel.close()


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_a_process_that_is_slow_to_die_was_killed_by_what_was_counted_since(monkeypatch):
    clock = iter((0.0, 0.5, 1.0, 2.9, 3.0, 5.0, 6.1, 6.2, 7.1))
    monkeypatch.setattr("cellbox_kernel.endings.time.monotonic", lambda: next(clock))
    kills = CountBeforeDeath(1)
    seen = []
    # Killed at 4.9, and found alive until 6.2; the polls of a gateway that was held up come close together.
    for count in (1, 2, 2, 2, 3, 3, 3, 3):
        kills.seen_alive(count)
        seen.append(kills.before)
    assert seen == [1, 1, 1, 2, 2, 2, 2, 3]


def proc(root: Path, cgroup: str, mountinfo: str, oom_kills: int = 0) -> Path:
    write(root / "proc" / "self", cgroup=cgroup, mountinfo=mountinfo)
    write(root / "proc", vmstat=f"oom_kill {oom_kills}\n")
    return root / "proc"


def test_version_2_is_read_from_the_own_group_with_the_lowest_limit_above(tmp_path):
    top = tmp_path / "cgroup"
    write(top / "a", memory__max="1000\n")
    write(top / "a" / "b", memory__max="max\n", memory__peak="700\n", memory__events="low 0\noom_kill 4\n")
    own = own_memory_cgroup(proc(tmp_path, "0::/a/b\n", f"1 2 0:1 / {top} rw - cgroup2 cgroup rw\n"))
    assert (own.oom_kills(), own.peak_bytes(), own.limit_bytes()) == (4, 700, 1000)


def test_version_1_is_read_where_the_engine_mounts_the_own_group_alone(tmp_path):
    top = tmp_path / "memory"
    write(
        top,
        memory__limit_in_bytes="1000\n",
        memory__max_usage_in_bytes="900\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    mounts = f"1 2 0:1 / /other rw - cgroup cgroup rw,cpu\n1 2 0:1 /docker/x {top} ro - cgroup cgroup rw,memory\n"
    for path in ("/docker/x", "/elsewhere"):
        own = own_memory_cgroup(proc(tmp_path, f"4:memory:{path}\n1:cpu:/docker/x\n", mounts))
        assert (own.oom_kills(), own.peak_bytes(), own.limit_bytes()) == (2, 900, 1000)


def test_without_a_memory_cgroup_the_machines_count_of_kills_decides(tmp_path):
    own = own_memory_cgroup(proc(tmp_path, "0::/\n", "1 2 0:1 / / rw - ext4 /dev/vda rw\n", oom_kills=5))
    assert (own.oom_kills(), own.peak_bytes(), own.limit_bytes()) == (5, None, None)
    assert describe_ending(1, -9, 4, own) == {"ending": 1, "signal": "SIGKILL", "oom": True}
    assert describe_ending(1, -9, 5, own) == {"ending": 1, "signal": "SIGKILL", "oom": False}
    assert describe_ending(1, -11, 4, own)["oom"] is False


def test_where_nothing_is_counted_a_kill_at_the_limit_is_memorys(tmp_path):
    write(tmp_path, memory__max="1000\n", memory__peak="1000\n")
    at_limit = MemoryCgroup(tmp_path, "cgroup2", proc=tmp_path / "none")
    assert describe_ending(1, -9, None, at_limit)["oom"] is True
    write(tmp_path, memory__peak="999\n")
    assert describe_ending(1, -9, None, at_limit)["oom"] is False


def test_an_ending_that_nobody_saw_has_neither_code_nor_signal(tmp_path):
    assert describe_ending(1, None, 0, MemoryCgroup(None, "cgroup2", proc=tmp_path)) == {"ending": 1, "oom": False}
