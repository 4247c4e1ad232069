"""The gateway's end of the zygote: starts it, asks it for kernels, and starts it anew when it is gone or stale."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .lifetime import die_with_gateway

# A kernel is asked for while the zygote still imports: waiting is quicker than importing the same beside it, until a
# machine is so slow that something must be wrong.
WARM_UP_SECONDS = 30.0
FORK_SECONDS = 20.0
# Between the death of a kernel and the zygote's word on how it ended.
STATUS_SECONDS = 0.5
# What `poll` answers when nobody can say how a kernel ended, because the zygote ended before it.
UNKNOWN_STATUS = 255
# A zygote that keeps dying before it is warm is started again after this long at most.
MAX_BACK_OFF_SECONDS = 60.0

_MESSAGE_BYTES = 65536

log = logging.getLogger("cellbox.zygote")


class Unavailable(Exception):
    """This kernel can't be forked; its message says why."""


class ForkedProcess:
    """A forked kernel, with the part of Popen's interface that a provisioner uses."""

    # As Popen's for streams that are inherited.
    stdin = stdout = stderr = None

    def __init__(self, pid: int, pidfd: int, channel: socket.socket, lifeline: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        # It ended, and `returncode` says nothing about how.
        self.status_unknown = False
        self._pidfd = pidfd
        self._channel = channel
        self._lifeline = lifeline

    def poll(self) -> int | None:
        """None while the process lives, then its exit code, or minus the signal that ended it."""
        if self.returncode is None and _readable(self._pidfd, 0):
            self._finish(self._read_status())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not _readable(self._pidfd, timeout):
            raise subprocess.TimeoutExpired(f"forked kernel {self.pid}", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_status(self) -> int | None:
        try:
            # The zygote tells it at once; a moment of blocking is simpler than another state.
            self._channel.settimeout(STATUS_SECONDS)
            message = self._channel.recv(_MESSAGE_BYTES)
        except OSError:
            return None
        return json.loads(message)["status"] if message else None

    def _finish(self, status: int | None) -> None:
        self.status_unknown = status is None
        self.returncode = UNKNOWN_STATUS if status is None else status
        self._channel.close()  # the zygote lets the process number go
        os.close(self._pidfd)
        os.close(self._lifeline)


class ZygoteClient:
    """One zygote at a time. `start` is callable before there is an event loop; the rest belongs to the loop."""

    def __init__(self, env: Mapping[str, str], imports: Iterable[str]) -> None:
        self._env = dict(env)
        self._imports = list(imports)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._warm = False
        self._restarts = 0
        self._deaths_in_a_row = 0
        # Earlier ones that still look after their kernels.
        self._retired: list[subprocess.Popen[bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the zygote's imports; returns at once. Without Linux's calls there is never a zygote."""
        if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
            return
        self._retired = [process for process in self._retired if process.poll() is None]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._warm = False
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cellbox_kernel.zygote", str(theirs.fileno()), *self._imports],
                    stdin=subprocess.DEVNULL,
                    # None of the user's modules lies there.
                    cwd="/",
                    env=self._env,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    preexec_fn=die_with_gateway(),
                )
            except OSError as error:
                self._control.close()
                self._control = None
                log.warning("The zygote can't be started, kernels start without it: %s", error)
                return
        self._control.setblocking(False)
        self._watch()

    def watch(self, late_start_seconds: float) -> None:
        """From here on a zygote that dies is replaced, and one that was not started yet is after this time."""
        self._loop = asyncio.get_running_loop()
        if self._process is None:
            self._loop.call_later(late_start_seconds, self._restart)
        self._watch()

    async def fork(self, argv: list[str], env: Mapping[str, str], cwd: str) -> ForkedProcess:
        """A new process that runs the Python kernel with these arguments.

        @raises Unavailable: the caller starts the kernel by its command.
        """
        self._read_control()
        if self._control is None:
            raise Unavailable("there is no zygote")
        if not self._warm and self._restarts:
            raise Unavailable("the zygote is not warm yet")
        deadline = FORK_SECONDS if self._warm else WARM_UP_SECONDS
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, lifeline = os.pipe()
        request = os.memfd_create("kernel-request")
        try:
            _write_all(request, json.dumps({"argv": argv, "env": dict(env), "cwd": cwd}).encode())
            socket.send_fds(self._control, [b"fork"], [request, theirs.fileno(), reader])
            theirs.close()  # or its end would not show the zygote's death
            answer, pidfd = await self._answer(channel, deadline)
            if pidfd is None:
                raise Unavailable(answer["refused"])
            return ForkedProcess(answer["pid"], pidfd, channel, lifeline)
        except BaseException as error:
            channel.close()
            os.close(lifeline)  # ends the kernel if it is there already
            if isinstance(error, OSError):
                raise Unavailable(f"the zygote can't be asked: {error}") from error
            raise
        finally:
            theirs.close()
            os.close(reader)
            os.close(request)

    async def _answer(self, channel: socket.socket, deadline: float) -> tuple[dict[str, Any], int | None]:
        try:
            answer, pidfd = await _receive(channel, deadline)
        except OSError as error:  # TimeoutError is one
            self._read_control()  # it may have told why
            if isinstance(error, TimeoutError) and not self._warm:
                self._restarts += 1  # nobody waits for it again until it is warm
                raise Unavailable("the zygote takes long to get warm") from error
            problem = f"gave no answer within {deadline:g} s" if isinstance(error, TimeoutError) else str(error)
            self._give_up(problem)
            raise Unavailable(f"the zygote {problem}") from error
        if answer.get("stale"):
            self._replace_stale(answer["refused"])
        return answer, pidfd

    def close(self) -> None:
        """Ends the zygote; kernels it forked live on. Idempotent."""
        self._closed = True
        self._drop_control()
        for process in [*self._retired, *([self._process] if self._process else [])]:
            process.kill()
            process.wait()
        self._retired = []
        self._process = None

    def _watch(self) -> None:
        if self._loop is not None and self._control is not None:
            self._loop.add_reader(self._control, self._read_control)

    def _drop_control(self) -> None:
        if self._control is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None

    def _read_control(self) -> None:
        """Takes the message that the zygote is warm, and notices its end."""
        while self._control is not None:
            try:
                message = self._control.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it left a request unread; what it said before comes next
            except OSError:
                message = b""
            if not message:
                self._on_death()
                return
            warmth = json.loads(message)
            if warmth["unusable"] is not None:
                log.warning("There is no zygote, kernels start without it: %s", warmth["unusable"])
                self._drop_control()
                return
            self._warm = True
            self._deaths_in_a_row = 0

    def _on_death(self) -> None:
        self._drop_control()
        assert self._process is not None
        self._process.kill()  # if it lives, it can't be asked any more
        code = self._process.wait()
        self._process = None
        if self._closed:
            return
        log.warning("The zygote has died (%s): kernels start without it until another one is warm", code)
        self._deaths_in_a_row += 1
        self._restart_after(0 if self._warm else min(2.0**self._deaths_in_a_row, MAX_BACK_OFF_SECONDS))

    def _give_up(self, problem: str) -> None:
        if self._process is not None and self._control is not None:
            log.warning("The zygote %s; it is replaced", problem)
            self._retire(signal.SIGKILL)
            self._restart_after(1)

    def _replace_stale(self, reason: str) -> None:
        if self._control is not None and self._warm:
            log.warning("The zygote is replaced, kernels start without it meanwhile: %s", reason)
            self._retire()
            self._restart_after(0)

    def _retire(self, signum: int | None = None) -> None:
        """Without its control socket the zygote ends when its last kernel has."""
        self._drop_control()
        if self._process is not None:
            if signum is not None:
                self._process.send_signal(signum)
            self._retired.append(self._process)
            self._process = None

    def _restart_after(self, seconds: float) -> None:
        self._restarts += 1
        if self._loop is not None:
            self._loop.call_later(seconds, self._restart)

    def _restart(self) -> None:
        if not self._closed and self._control is None:
            self.start()


async def _receive(channel: socket.socket, seconds: float) -> tuple[dict[str, Any], int | None]:
    """The first answer on a channel, with the descriptor it may carry."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    readable = asyncio.Event()
    loop.add_reader(channel, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), seconds)
    finally:
        loop.remove_reader(channel)
    message, fds, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 1)
    if not message:
        raise OSError("has died")
    for fd in fds:
        os.set_inheritable(fd, False)
    return json.loads(message), fds[0] if fds else None


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _readable(fd: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
