"""IPython extension that gives the Python kernel its display formatters, images and plots.

Loaded by the kernel itself before the first cell; leaves nothing in the user's namespace and imports no library of
the user's.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

from .arrow_html import arrow_table_html
from .formatters import ChartFormatter, DataFormatter, PlainJSONFormatter
from .images import patch_pillow
from .import_hooks import after_import

# Font of the shipped matplotlibrc that draws East Asian text; images without it fall back in silence.
OPTIONAL_FONT = "Noto Sans CJK JP"


def load_ipython_extension(shell: Any) -> None:
    """Idempotent."""
    display_formatter = shell.display_formatter
    if isinstance(display_formatter.formatters.get("application/json"), PlainJSONFormatter):
        return
    for formatter_class in (DataFormatter, ChartFormatter, PlainJSONFormatter):
        formatter = formatter_class(parent=display_formatter)
        display_formatter.formatters[formatter.format_type] = formatter
        shell.configurables.append(formatter)  # so that `%config` finds its limits
    display_formatter.active_types = display_formatter.format_types
    for class_name in ("Table", "RecordBatch"):
        display_formatter.formatters["text/html"].for_type_by_name("pyarrow.lib", class_name, arrow_table_html)
    after_import("PIL.Image", patch_pillow)
    use_matplotlibrc()
    # A box in the picture says it better; the user's own filters come before this one.
    warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning, append=True)


def use_matplotlibrc() -> None:
    """Our font list, unless the user has settings of their own; no warning for a font that is not installed."""
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "matplotlib", "matplotlibrc")
    if not own.exists():
        os.environ.setdefault("MATPLOTLIBRC", str(Path(__file__).with_name("matplotlibrc")))
    logging.getLogger("matplotlib.font_manager").addFilter(lambda record: OPTIONAL_FONT not in record.getMessage())
