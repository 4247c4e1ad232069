"""`python -m cellbox_kernel.zygote <control fd> [<module> …]`: imports the modules once and forks kernels from there.

The gateway (`zygote_client`) starts it and holds the other end of the control socket; nobody else can reach it. Each
message on the control socket asks for one kernel and carries three descriptors:

- the request: a file with JSON `{"argv": arguments after the module's name, "env": the whole environment, "cwd"}`;
- the channel: a socket for the answers about this kernel;
- the lifeline: the reading end of a pipe; the kernel dies when the gateway's end is closed (see `lifetime`).

Answers on the channel: `{"pid"}` with a pidfd, later `{"status"}` as Popen spells it; or `{"refused", "stale"}`. A
kernel that ended stays a zombie until the gateway closes its channel, so that no other process has its number while the
gateway may still signal it. When the control socket is closed the zygote ends as soon as it has no kernels.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from .zygote_child import KernelRequest, become_kernel_process
from .zygote_warmth import Warmth, thread_count

# How long a forked process may take to become a kernel process; it needs about a millisecond.
SETTLE_SECONDS = 5.0
MAX_MESSAGE_BYTES = 65536


@dataclass
class Child:
    """A kernel that this process forked and has not reaped."""

    pid: int
    pidfd: int
    channel: socket.socket
    released: bool = False  # the gateway has closed its end


class Zygote:
    """The zygote's loop. One thread, no signal handlers, no descriptor that a kernel would keep."""

    def __init__(self, control: socket.socket, warmth: Warmth) -> None:
        self._control: socket.socket | None = control
        self._warmth = warmth
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._by_fd: dict[int, Child] = {}  # under pidfd and channel each

    def serve(self) -> KernelRequest | None:
        """Returns in each forked process, with the request it was forked for; in the zygote at its end, with None."""
        while self._control is not None or self._by_fd:
            for fd, _ in self._poll.poll():
                if self._control is not None and fd == self._control.fileno():
                    if request := self._on_control(self._control):
                        return request
                elif child := self._by_fd.get(fd):
                    self._on_exit(child) if fd == child.pidfd else self._on_channel(child)
        return None

    def _on_control(self, control: socket.socket) -> KernelRequest | None:
        try:
            message, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
        except ConnectionResetError:  # closed before it read what we said
            message = b""
        if not message:
            self._poll.unregister(control)
            control.close()
            self._control = None
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        request_file, channel_fd, lifeline = fds
        channel = socket.socket(fileno=channel_fd)
        with open(request_file, "rb") as file:
            file.seek(0)
            request = KernelRequest(**json.load(file), lifeline=lifeline)
        refusal = self._warmth.refusal(request.env, request.cwd)
        if refusal is None and thread_count() != 1:
            refusal = ("the zygote has more than one thread", False)
        if refusal is None:
            try:
                if self._fork(request, channel):
                    return request
            except OSError as error:
                refusal = (f"the zygote could not fork: {error}", False)
        os.close(lifeline)
        if refusal is not None:
            _answer(channel, {"refused": refusal[0], "stale": refusal[1]})
            channel.close()
        return None

    def _fork(self, request: KernelRequest, channel: socket.socket) -> bool:
        """Whether this is the forked process; it has let go of everything that belongs to the zygote then."""
        reader, request.settled = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(request.settled)
            raise
        if pid == 0:
            os.close(reader)
            channel.close()
            self._abandon()
            return True
        os.close(request.settled)
        try:
            if problem := _read_until_closed(reader, SETTLE_SECONDS):
                raise OSError(problem)
            child = Child(pid, os.pidfd_open(pid), channel)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        _answer(channel, {"pid": pid}, child.pidfd)
        for fd in (child.pidfd, channel.fileno()):
            self._by_fd[fd] = child
            self._poll.register(fd, select.POLLIN)
        return False

    def _abandon(self) -> None:
        if self._control is not None:
            self._control.close()
        for fd, child in self._by_fd.items():
            if fd == child.pidfd:
                os.close(fd)
            else:
                child.channel.close()
        self._by_fd.clear()

    def _on_exit(self, child: Child) -> None:
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        self._forget(child.pidfd)
        os.close(child.pidfd)
        child.pidfd = -1
        status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        _answer(child.channel, {"status": status})
        if child.released:
            os.waitpid(child.pid, 0)

    def _on_channel(self, child: Child) -> None:
        """The gateway says nothing on a channel: it has closed its end."""
        self._forget(child.channel.fileno())
        child.channel.close()
        child.released = True
        if child.pidfd == -1:
            os.waitpid(child.pid, 0)

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._by_fd[fd]


def _answer(channel: socket.socket, answer: dict[str, Any], *fds: int) -> None:
    try:
        socket.send_fds(channel, [json.dumps(answer).encode()], fds)
    except OSError:
        pass  # the gateway has lost interest in this kernel; its end of the channel is closed


def _read_until_closed(fd: int, seconds: float) -> str | None:
    """What was written before the other end was closed, None for nothing."""
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    try:
        if not ready.poll(seconds * 1000):
            return f"the new process was not ready within {seconds:g} s"
        return os.read(fd, MAX_MESSAGE_BYTES).decode(errors="replace") or None
    finally:
        os.close(fd)


def main() -> None:
    # `-m` put our own working directory there, which is not the kernel's.
    sys.path.pop(0)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    warmth = Warmth(sys.argv[2:])
    control.send(json.dumps({"skipped": warmth.skipped, "unusable": warmth.unusable}).encode())
    if warmth.unusable is not None:
        return
    request = Zygote(control, warmth).serve()
    if request is None:
        return
    become_kernel_process(request, warmth.set_by_imports)
    del control, warmth, request
    from . import kernel

    kernel.main()


if __name__ == "__main__":
    main()
