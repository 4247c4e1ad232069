"""The gateway's end of the zygote, without a gateway."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellbox_kernel.zygote_client import UNKNOWN_STATUS, ForkedProcess, Unavailable, ZygoteClient

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the zygote needs Linux")

DEADLINE_SECONDS = 30
ENV = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"JPY_PARENT_PID": str(os.getpid())}


@pytest.fixture
def client() -> Iterator[ZygoteClient]:
    client = ZygoteClient(ENV, ["decimal"])
    client.start()
    yield client
    client.close()


def fork(client: ZygoteClient, *argv: str, env: dict[str, str] | None = None, cwd: str = "/tmp") -> ForkedProcess:
    return asyncio.run(client.fork(list(argv), ENV | (env or {}), cwd))


def kernel_argv(directory: Path, count: int = 0) -> tuple[str, str]:
    """A connection file of the kernel's own choice; nobody connects."""
    return "-f", str(directory / f"connection{count}.json")


def test_exit_codes_and_signals_are_told_as_popen_tells_them(client, tmp_path):
    ended = fork(client, "--version")
    assert (ended.wait(DEADLINE_SECONDS), ended.poll(), ended.returncode) == (0, 0, 0)
    assert fork(client, "--no-such-argument=1=2", "-f").wait(DEADLINE_SECONDS) != 0
    killed = fork(client, *kernel_argv(tmp_path))
    assert killed.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0)
    killed.terminate()
    assert killed.wait(DEADLINE_SECONDS) == -signal.SIGTERM
    killed.kill()  # nothing to kill is no error


def test_several_kernels_at_once_are_several_processes(client, tmp_path):
    async def fork_all() -> list[ForkedProcess]:
        argv = [list(kernel_argv(tmp_path, n)) for n in range(5)]
        return await asyncio.gather(*(client.fork(a, ENV, "/tmp") for a in argv))

    processes = asyncio.run(fork_all())
    assert len({process.pid for process in processes}) == 5
    assert all(os.getpgid(process.pid) == os.getsid(process.pid) == process.pid for process in processes)
    for process in processes:
        process.kill()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL


def test_how_a_kernel_ended_is_unknown_without_the_zygote(client, tmp_path):
    process = fork(client, *kernel_argv(tmp_path))
    client.close()
    client.close()
    assert process.poll() is None
    process.kill()
    assert process.wait(DEADLINE_SECONDS) == UNKNOWN_STATUS
    with pytest.raises(Unavailable, match="there is no zygote"):
        fork(client, *kernel_argv(tmp_path))


def test_a_kernel_ends_when_nobody_waits_for_it_any_more(client, tmp_path):
    async def give_up() -> None:
        asking = asyncio.create_task(client.fork(list(kernel_argv(tmp_path)), ENV, "/tmp"))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

    fork(client, "--version").wait(DEADLINE_SECONDS)  # warm
    asyncio.run(give_up())
    fork(client, "--version").wait(DEADLINE_SECONDS)  # after the forgotten one
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    for pid in children:
        try:
            pidfd = os.pidfd_open(int(pid))
        except ProcessLookupError:  # it has ended since
            continue
        assert select.select([pidfd], [], [], DEADLINE_SECONDS)[0]
        os.close(pidfd)


def test_a_kernel_that_can_not_be_set_up_is_refused_with_the_reason(client):
    with pytest.raises(Unavailable, match="could not be set up: .*No such file or directory"):
        fork(client, "--version", cwd="/no/such/directory")
    assert fork(client, "--version").wait(DEADLINE_SECONDS) == 0


def test_an_environment_larger_than_a_socket_takes_arrives(client, tmp_path):
    process = fork(client, *kernel_argv(tmp_path), env={"BIG": "x" * 2_000_000})
    assert process.poll() is None
    process.kill()
    process.wait(DEADLINE_SECONDS)


def test_the_zygote_ends_with_its_last_kernel_when_it_is_no_longer_asked(client, tmp_path):
    process = fork(client, *kernel_argv(tmp_path))
    pidfd = os.pidfd_open(client.pid)
    client._retire()
    assert not select.select([pidfd], [], [], 0.2)[0]
    process.kill()
    assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert select.select([pidfd], [], [], DEADLINE_SECONDS)[0]
    os.close(pidfd)


def test_the_kernelspec_names_a_provisioner_that_is_registered():
    from jupyter_client.provisioning import KernelProvisionerFactory

    from cellbox_kernel.kernelspecs import LANGUAGES
    from cellbox_kernel.provisioner import KERNEL_COMMAND, ZygoteProvisioner

    spec = next(row for row in LANGUAGES if row.name == "python3").kernel_json()
    name = spec["metadata"]["kernel_provisioner"]["provisioner_name"]
    assert KernelProvisionerFactory().provisioners[name].load() is ZygoteProvisioner
    assert spec["argv"] == [*KERNEL_COMMAND, "-f", "{connection_file}"]
    assert json.dumps(spec)
