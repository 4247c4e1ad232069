"""Starts, watches and restarts kernel processes for the gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import zmq
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_server._tz import isoformat
from kernel_gateway.services.kernels.manager import SeedingMappingKernelManager
from traitlets import Type, default

from . import kernelspecs
from .activity import Activity
from .connection import CellboxWebsocketConnection
from .endings import CountBeforeDeath, describe_ending
from .environment import cwd_problem, home_directory, kernel_environment
from .lifetime import die_with_gateway
from .memory_cgroup import own_memory_cgroup
from .sent_messages import SentMessages
from .zygote_client import ZygoteClient

# Bytes of output kept for a client that has gone away and may come back; beyond it the kernel's own side holds them.
OFFLINE_BUFFER_BYTES = 32 * 1024 * 1024

# Messages that ZeroMQ takes from a kernel ahead of us, of at most 1 MiB each as far as streams go.
RECEIVE_QUEUE_MESSAGES = 32

# We connect to a kernel before it listens. ZeroMQ's own pause is 100 ms each time; ours begins with this and doubles.
FIRST_RECONNECT_MS = 8
LAST_RECONNECT_MS = 100


class CellboxKernelSpecManager(KernelSpecManager):
    """Finds kernelspecs; `python3` is always ours, whatever a `pip install` in the sandbox wrote over it."""

    @default("ensure_native_kernel")
    def _no_stock_python_kernel(self) -> bool:
        return False

    def find_kernel_specs(self) -> dict[str, str]:
        return super().find_kernel_specs() | {"python3": os.path.dirname(__file__)}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        if kernel_name == "python3":
            row = next(row for row in kernelspecs.LANGUAGES if row.name == "python3")
            return KernelSpec(resource_dir=os.path.dirname(__file__), **row.kernel_json())
        return super().get_kernel_spec(kernel_name)


class CellboxKernelRestarter(AsyncIOLoopKernelRestarter):
    """Notices a dead kernel within half a second.

    Ports are kept over a restart: open connections reconnect to the same addresses. A kernel that keeps dying within
    three seconds of its start is given up after ten tries.
    """

    time_to_dead = 0.5
    stable_start_time = 3.0
    restart_limit = 10
    random_ports_until_alive = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._memory = own_memory_cgroup()
        self._oom_kills = CountBeforeDeath(None)
        self._described: Any = None

    def start(self) -> None:
        self._oom_kills = CountBeforeDeath(self._memory.oom_kills())
        super().start()

    async def poll(self) -> None:
        # Before asking whether it lives: a kill between the two must not count as an earlier one.
        oom_kills = self._memory.oom_kills()
        try:
            if await self.kernel_manager.is_alive():
                self._oom_kills.seen_alive(oom_kills)
            await super().poll()
        except Exception as error:
            self.log.warning("Kernel %s can not be started again: %s", self.kernel_manager.kernel_id, error)
            self.give_up()

    def _fire_callbacks(self, event: str) -> None:
        """Tells everyone concerned; from here on they can read how the process ended."""
        manager = self.kernel_manager
        process = getattr(manager.provisioner, "process", None)
        if process is not None and process is not self._described and process.poll() is not None:
            self._described = process
            number = 1 + (manager.last_ending or {"ending": 0})["ending"]
            status = None if getattr(process, "status_unknown", False) else process.returncode
            ending = describe_ending(number, status, self._oom_kills.before, self._memory)
            manager.last_ending = ending | {"at": round(time.time() * 1000)}
            self._oom_kills = CountBeforeDeath(self._memory.oom_kills())  # what killed this one killed no later one
        super()._fire_callbacks(event)

    def give_up(self) -> None:
        """No process will answer for this kernel any more: everyone concerned hears of it."""
        self.stop()
        self._fire_callbacks("dead")


class CellboxKernelManager(AsyncIOLoopKernelManager):
    """One kernel process, restarted with the environment and directory that it was first started with."""

    restarter_class = Type(CellboxKernelRestarter)
    # What the client that started the kernel wants to be told again of it.
    client_metadata: dict[str, Any] | None = None
    # To the client that was connected last.
    sent: SentMessages | None = None
    # See `endings`.
    last_ending: dict[str, Any] | None = None
    # Upper bound of a polite shutdown, in seconds; then SIGTERM and SIGKILL.
    shutdown_wait_time = 2.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activity = Activity(self)

    def _connect_control_socket(self) -> None:
        super()._connect_control_socket()
        # A request to end that the old process never took must not wait for the next one, which has the same ports.
        self._control_socket.linger = 0

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        # Until the new process speaks, a connection must not take the old one's `busy` for its state.
        self.execution_state = "starting"
        if problem := cwd_problem(kw.get("cwd")):
            # A restart after the directory was deleted: a kernel in the home directory beats no kernel.
            kw["cwd"] = home_directory(os.environ)
            self.log.warning("Kernel %s starts in %s: %s", self.kernel_id, kw["cwd"], problem)
        # The connection directory is in /tmp, where users clean up.
        os.makedirs(os.path.dirname(self.connection_file), mode=0o700, exist_ok=True)
        if not os.path.exists(self.connection_file):
            self._connection_file_written = False
            self.write_connection_file()
        await super()._async_launch_kernel(kernel_cmd, preexec_fn=die_with_gateway(), **kw)


class CellboxMappingKernelManager(SeedingMappingKernelManager):
    """All kernels of the sandbox."""

    # Forks Python kernels (see `provisioner`); None: all of them are started by their command.
    zygote: ZygoteClient | None = None

    def _kernel_manager_class_default(self) -> str:
        return f"{__name__}.{CellboxKernelManager.__name__}"

    @default("context")
    def _context_default(self) -> zmq.Context[Any]:
        context = super()._context_default()
        context.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MESSAGES)
        context.setsockopt(zmq.RECONNECT_IVL, FIRST_RECONNECT_MS)
        context.setsockopt(zmq.RECONNECT_IVL_MAX, LAST_RECONNECT_MS)
        return context

    async def start_kernel(self, *args: Any, **kwargs: Any) -> str:
        """Starts a kernel; `env` (over the sandbox's) and `cwd` hold for its whole life, restarts included."""
        cwd = kwargs.pop("cwd", None) or self.root_dir
        kwargs["env"] = kernel_environment(os.environ, kwargs.get("env") or {}, cwd)
        kwargs["cwd"] = cwd
        kwargs.pop("path", None)  # a notebook path decides nothing here
        metadata = kwargs.pop("metadata", None)
        kernel_id = await super().start_kernel(*args, **kwargs)
        self.get_kernel(kernel_id).client_metadata = metadata
        return kernel_id

    def start_watching_activity(self, kernel_id: str) -> None:
        super().start_watching_activity(kernel_id)
        kernel = self.get_kernel(kernel_id)
        kernel.activity.start(kernel._activity_stream)

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """The stock model, with the metadata that the kernel was started with and how it last ended."""
        kernel = self.get_kernel(kernel_id)
        return super().kernel_model(kernel_id) | {
            "last_activity": isoformat(datetime.fromtimestamp(kernel.activity.last, UTC)),
            "metadata": kernel.client_metadata,
            "last_ending": kernel.last_ending,
        }

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> Any:
        """Restarts the process; open connections then speak to the new one and to nothing older."""
        ready = await super().restart_kernel(kernel_id, now=now)
        CellboxWebsocketConnection.kernel_replaced(kernel_id)
        return ready

    def start_buffering(self, kernel_id: str, session_key: str, channels: dict[str, Any]) -> None:
        """Keeps output for a client that lost its connection, up to a limit.

        At the limit we stop reading. Nothing is lost: the kernel's own process holds what follows.
        """
        super().start_buffering(kernel_id, session_key, channels)

        def keep(channel: str) -> Callable[[list[bytes]], None]:
            def on_message(parts: list[bytes]) -> None:
                if (buffer := self._buffer_of(kernel_id, channels)) is None:
                    return
                if channel == "iopub":
                    self.get_kernel(kernel_id).activity.tell(parts)
                buffer["buffer"].append((channel, parts))
                self._count(kernel_id, buffer, parts)

            return on_message

        for channel, stream in channels.items():
            stream.on_recv(keep(channel))

    def keep_first(self, kernel_id: str, channels: dict[str, Any], messages: list[tuple[str, list[bytes]]]) -> None:
        """What the client was still to get comes before all that is kept for it, and counts as well."""
        if buffer := self._buffer_of(kernel_id, channels):
            buffer["buffer"][:0] = messages
            self._count(kernel_id, buffer, [part for _, parts in messages for part in parts])

    def _buffer_of(self, kernel_id: str, channels: dict[str, Any]) -> dict[str, Any] | None:
        buffer = self._kernel_buffers.get(kernel_id)
        return buffer if buffer and buffer["channels"] is channels else None

    def _count(self, kernel_id: str, buffer: dict[str, Any], parts: list[bytes]) -> None:
        buffer["bytes"] = buffer.get("bytes", 0) + sum(map(len, parts))
        if buffer["bytes"] > OFFLINE_BUFFER_BYTES:
            for stream in buffer["channels"].values():
                stream.stop_on_recv()
            self.get_kernel(kernel_id).activity.listen()

    def stop_buffering(self, kernel_id: str) -> None:
        """Drops what is kept."""
        super().stop_buffering(kernel_id)
        self.get_kernel(kernel_id).activity.listen()
