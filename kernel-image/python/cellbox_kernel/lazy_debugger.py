"""ipykernel's debugger, imported when somebody debugs: with debugpy it takes 6 MB of memory in every kernel."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ipykernel.ipkernel import IPythonKernel

_DEBUGGER = "ipykernel.debugger"


class LazyDebuggerKernel(IPythonKernel):
    """The stock kernel, which starts without a debugger and makes the stock one at the first `debug_request`."""

    def __init__(self, **kwargs: Any) -> None:
        with _no_debugger():
            super().__init__(**kwargs)

    async def poll_stopped_queue(self) -> None:
        """The stock kernel begins at once to wait for stops; here the first request does."""

    async def do_debug_request(self, msg: Any) -> Any:
        if not hasattr(self, "debugger"):
            self._make_debugger()
        return await super().do_debug_request(msg)

    def _make_debugger(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # debugpy's advice to people who start a debugger
            from ipykernel.debugger import Debugger, _is_debugpy_available
        if _is_debugpy_available:
            self.debugger = Debugger(
                self.log,
                self.debugpy_stream,
                self._publish_debug_event,
                self.debug_shell_socket,
                self.session,
                self.debug_just_my_code,
            )
            # A reference, or the collector may take it.
            self._stops = asyncio.ensure_future(super().poll_stopped_queue())


@contextlib.contextmanager
def _no_debugger() -> Iterator[None]:
    """`ipykernel.debugger` as it looks where debugpy is not installed."""
    real = sys.modules.get(_DEBUGGER)
    stand_in = ModuleType(_DEBUGGER)
    stand_in.__dict__.update(_is_debugpy_available=False, Debugger=None)
    sys.modules[_DEBUGGER] = stand_in
    try:
        yield
    finally:
        del sys.modules[_DEBUGGER]
        if real is not None:
            sys.modules[_DEBUGGER] = real
