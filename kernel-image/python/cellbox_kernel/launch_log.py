"""Keeps the log short when a kernel's command can not be started, which is no fault of ours."""

from __future__ import annotations

import logging
from pathlib import Path

# Where jupyter_client reports one and the same failed start; each time with a traceback or the environment.
_FULL_REPORT, _OTHER_REPORTS = "manager.py", ("launcher.py", "multikernelmanager.py")


def shorten_failed_starts(record: logging.LogRecord) -> bool:
    """A logging filter: of a program that can't be run, one line remains."""
    path = Path(record.pathname)
    if record.levelno < logging.ERROR or path.parent.name != "jupyter_client":
        return True
    if record.exc_info and not isinstance(record.exc_info[1], OSError):
        return True  # something else, whose traceback somebody will need
    if path.name in _OTHER_REPORTS:
        return False
    if path.name == _FULL_REPORT and record.exc_info:
        record.exc_info = None
        record.msg = f"A kernel could not be started: {record.msg}"
    return True
