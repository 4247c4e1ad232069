"""`python -m cellbox_kernel.kernel -f <connection file>`: the Python kernel.

ipykernel with our defaults (the user's own IPython configuration still wins), formatters, streams, and an environment
per execution: `metadata.cellbox.env` of an execute request, an object of strings, holds for that cell only.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import zmq
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type
from traitlets.config.loader import Config

from . import startup
from .environment import env_problem
from .streams import CellboxOutStream


class CellboxShell(ZMQInteractiveShell):
    """The interactive shell; values given to the kernel's environment survive its start."""

    def init_environment(self) -> None:
        given = dict(os.environ)
        super().init_environment()
        os.environ.update(given)


class CellboxKernel(IPythonKernel):
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

    @contextmanager
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

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        self.update_config(_defaults())
        super().load_config_file(*args, **kwargs)

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        # ZeroMQ drops what a PUB socket can't send soon enough; output is never dropped here.
        context.setsockopt(zmq.SNDHWM, 0)
        super().init_iopub(context)

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
    config.IPKernelApp.kernel_class = CellboxKernel
    config.IPKernelApp.outstream_class = f"{CellboxOutStream.__module__}.{CellboxOutStream.__name__}"
    return config


def main() -> None:
    CellboxKernelApp.launch_instance()


if __name__ == "__main__":
    main()
