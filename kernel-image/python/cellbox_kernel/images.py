"""PIL images: `show()` displays in the output, and saving to a path named by a string displays as well."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def patch_pillow(pil_image: ModuleType) -> None:
    """Called with `PIL.Image` after its import."""
    image_class = pil_image.Image
    original_save = image_class.save

    def show(self: Any, title: str | None = None, **_: Any) -> None:
        """Displays this image in the cell's output; no viewer is started."""
        _display(self)

    def save(self: Any, fp: Any, *args: Any, **kwargs: Any) -> None:
        original_save(self, fp, *args, **kwargs)
        # A string only: programs that want a file and nothing else can pass a pathlib.Path or an open file.
        if isinstance(fp, str):
            _display(self)

    save.__doc__ = original_save.__doc__
    save.__wrapped__ = original_save  # type: ignore[attr-defined]
    image_class.show = show
    image_class.save = save


def _display(image: Any) -> None:
    from IPython.display import display

    display(image)
