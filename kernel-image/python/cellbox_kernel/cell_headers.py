"""Which cell output belongs to: the one whose code runs, started the thread, or created the task.

A thread's cell is noted on the thread object when it is started. (ipykernel notes it by the thread's number, which the
system gives to another thread later.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ipykernel.zmqshell import ZMQDisplayPublisher
from jupyter_client.session import extract_header

_NOTE = "_cellbox_cell_header"

_cell: ContextVar[dict[str, Any] | None] = ContextVar("cellbox_cell", default=None)


def note_cells_of_threads(current: Callable[[], dict[str, Any]]) -> None:
    """From here on every thread notes `current()` of the thread that starts it."""
    stock_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        setattr(thread, _NOTE, current())
        stock_start(thread)

    start.__doc__ = stock_start.__doc__
    threading.Thread.start = start  # type: ignore[method-assign]


def header_of_thread() -> dict[str, Any] | None:
    """The header noted for the thread that calls; None in one that no cell has started."""
    return getattr(threading.current_thread(), _NOTE, None) or None


class CellboxDisplayPublisher(ZMQDisplayPublisher):
    """The stock publisher; what a thread or task displays belongs to its own cell."""

    @property
    def parent_header(self) -> dict[str, Any]:
        return _cell.get() or header_of_thread() or self._latest_header

    def set_parent(self, parent: dict[str, Any]) -> None:
        self._latest_header = extract_header(parent)
        _cell.set(self._latest_header)

    _latest_header: dict[str, Any] = {}
