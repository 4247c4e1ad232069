"""`python -m cellbox_kernel.kernel -f <connection file>`: the Python kernel.

ipykernel with our defaults (the user's own IPython configuration still wins), formatters, streams, and:

- an environment per execution: `metadata.cellbox.env` of an execute request, an object of strings, holds for that cell;
- what a cell cost: `metadata.cellbox` of an execute reply is `{"cpu_ms", "memory_peak_bytes"}` (see `accounting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type, default
from traitlets.config.loader import Config

from . import startup
from .accounting import CellCost
from .cell_headers import CellboxDisplayPublisher, note_cells_of_threads
from .display_formatter import CellboxDisplayFormatter
from .environment import env_problem
from .iopub import CellboxIOPubThread, bind_iopub
from .lazy_debugger import LazyDebuggerKernel
from .streams import CellboxOutStream


class NoOutputs(defaultdict[int, list[Any]]):
    """IPython's record of everything that cells put out, which here forgets: nothing ever shortens it."""

    def __init__(self) -> None:
        super().__init__(list)

    def __missing__(self, key: int) -> list[Any]:
        return []


class CellboxShell(ZMQInteractiveShell):
    """The interactive shell, with differences:

    - values given to the kernel's environment survive its start;
    - a `_repr_…_` method that raises does not fail the cell: its traceback is on stderr, the other formats are shown;
    - output is not kept in memory (`%notebook` writes a notebook without outputs).
    """

    display_pub_class = Type(CellboxDisplayPublisher)

    def init_history(self) -> None:
        super().init_history()
        self.history_manager.outputs = NoOutputs()

    def init_display_formatter(self) -> None:
        self.display_formatter = CellboxDisplayFormatter(parent=self)
        self.configurables.append(self.display_formatter)

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        if self.display_formatter.formatting:
            self.display_formatter.report(stb)
        else:
            super()._showtraceback(etype, evalue, stb)

    @contextlib.contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        yield  # stock: patches `write` of the stream to keep a copy of everything

    def init_environment(self) -> None:
        given = dict(os.environ)
        super().init_environment()
        os.environ.update(given)


class CellboxKernel(LazyDebuggerKernel):
    """ipykernel with an environment per execution."""

    shell_class = Type(CellboxShell)

    def __init__(self, **kwargs: Any) -> None:
        # What variables were before the running cell; empty between cells.
        self._previous_env: dict[str, str | None] = {}
        super().__init__(**kwargs)

    def start(self) -> None:
        # The stock method sets it after the control thread has begun to read, which loses the first request.
        self._control_lock = asyncio.Lock()
        super().start()

    def _initialize_thread_hooks(self) -> None:
        # Instead of ipykernel's own.
        note_cells_of_threads(lambda: getattr(self._stdout, "parent_header", {}))

    def init_metadata(self, parent: Any) -> dict[str, Any]:
        self._cost = CellCost()
        return super().init_metadata(parent)

    def finish_metadata(self, parent: Any, metadata: Any, reply_content: Any) -> Any:
        metadata = super().finish_metadata(parent, metadata, reply_content)
        # The latest `_cost` is this cell's: one runs at a time.
        return metadata | {"cellbox": self._cost.figures()}

    async def do_execute(
        self,
        code: Any,
        silent: bool,
        store_history: bool = True,
        user_expressions: Any = None,
        allow_stdin: bool = False,
        *,
        cell_meta: Any = None,
        cell_id: Any = None,
    ) -> Any:
        try:
            env = _cell_env(cell_meta)
            _check_code(code)
        except (TypeError, ValueError) as error:
            return self._refused(error, silent)
        with self._cell_environment(env):
            try:
                return await super().do_execute(
                    code, silent, store_history, user_expressions, allow_stdin, cell_meta=cell_meta, cell_id=cell_id
                )
            finally:
                self._drain_streams()

    @contextlib.contextmanager
    def _cell_environment(self, env: Mapping[str, str]) -> Iterator[None]:
        self._restore_env()  # left over when an interrupt hit the restoring itself
        for name, value in env.items():
            self._previous_env[name] = os.environ.get(name)
            os.environ[name] = value
        try:
            yield
        finally:
            self._restore_env()

    def _restore_env(self) -> None:
        for name, value in list(self._previous_env.items()):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
            del self._previous_env[name]

    def _drain_streams(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, CellboxOutStream):  # the user may have put something else there
                stream.drain()

    def _refused(self, error: Exception, silent: bool) -> dict[str, Any]:
        """An execution that can't even begin, reported like one that failed."""
        content = {
            "ename": type(error).__name__,
            "evalue": str(error),
            "traceback": traceback.format_exception_only(error),
        }
        if not silent:
            self.send_response(self.iopub_socket, "error", content)
        return {
            "status": "error",
            **content,
            "execution_count": self.execution_count,
            "user_expressions": {},
            "payload": [],
        }


def _cell_env(metadata: Any) -> Mapping[str, str]:
    ours = metadata.get("cellbox") if isinstance(metadata, dict) else None
    env = ours.get("env") if isinstance(ours, dict) else None
    if env is None:
        return {}
    if problem := env_problem(env):
        raise ValueError(problem)
    return env


def _check_code(code: Any) -> None:
    if not isinstance(code, str):
        raise TypeError("code must be a string")
    code.encode()  # UnicodeEncodeError, a ValueError, for lone surrogates: no source file has them


class CellboxKernelApp(IPKernelApp):
    """Starts the kernel process."""

    name = "cellbox-kernel"

    @default("parent_handle")
    def _gateway_pid(self) -> int:
        # The stock default is read when the module is imported, which a forked kernel did not do.
        return int(os.environ.get("JPY_PARENT_PID") or 0)

    def init_poller(self) -> None:
        # A forked kernel is the zygote's child and may outlive it; `lifetime` ends it with the gateway.
        if os.getppid() == self.parent_handle:
            super().init_poller()

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        self.update_config(_defaults())
        super().load_config_file(*args, **kwargs)

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        # As the stock method, with a thread that never drops a message.
        socket = context.socket(zmq.PUB)
        socket.linger = 1000
        bind_iopub(socket)
        self.iopub_port = self._bind_socket(socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = CellboxIOPubThread(socket, pipe=True)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_extensions(self) -> None:
        startup.load_ipython_extension(self.shell)
        super().init_extensions()


def _defaults() -> Config:
    config = Config()
    config.InteractiveShell.colors = "nocolor"
    config.PlainTextFormatter.max_seq_length = 0
    # No file in the user's home, and no thread writing it; `In`, `Out` and the count work as ever.
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.Session.packer = "cellbox_kernel.messages.pack"
    config.Session.unpacker = "cellbox_kernel.messages.unpack"
    # ZeroMQ frees a copy when it has sent it; what it borrows instead waits for Python's turn, in its hundreds.
    config.Session.copy_threshold = 16 * 1024 * 1024
    config.IPKernelApp.kernel_class = CellboxKernel
    config.IPKernelApp.outstream_class = f"{CellboxOutStream.__module__}.{CellboxOutStream.__name__}"
    return config


def main() -> None:
    CellboxKernelApp.launch_instance()


if __name__ == "__main__":
    main()
