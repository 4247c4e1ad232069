"""What the zygote imports, and when a kernel forked from it would differ from one that imports the same itself."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import logging
import os
import site
import sys
import time
from collections.abc import Iterator, Mapping

# What a kernel imports only as it starts.
_KERNEL_IMPORTS = ("faulthandler", "IPython.core.completerlib", "tornado.platform.asyncio")

# Variables that the interpreter, the C library or a compiled module reads once, where we can't see it.
_READ_IN_C = (
    "PYTHON", "LD_", "LC_", "LANG", "GLIBC_TUNABLES", "MALLOC_", "OPENBLAS_", "GOTO", "OMP_", "GOMP_", "KMP_", "MKL_",
    "BLIS_", "NPY_", "NUMEXPR_", "ARROW_",
)  # fmt: skip
# Read at import, and set right in the fork.
_SET_IN_THE_FORK = {"JPY_PARENT_PID"}
# Files in the working directory that change an import, beside modules.
_FILES_READ_AT_IMPORT = {"matplotlibrc"}

log = logging.getLogger("cellbox.zygote")


class Warmth:
    """The imported modules and what they depended on."""

    def __init__(self, imports: list[str]) -> None:
        # Modules that could not be imported.
        self.skipped: list[str] = []
        # Why no kernel can be forked from this process at all.
        self.unusable: str | None = None
        self._env = _given_environment()
        # What any of these files says of itself was different: the modules in memory are not those on the disk.
        self._stamps = {path: _stamp(path) for path in _import_roots()}
        opened_before = _open_files()
        gc.disable()
        with _recorded_environment() as names:
            self._import(imports)
        self._read_at_import = names - _SET_IN_THE_FORK
        _exercise()
        # What imports have set for the time after them, and Python itself at its start (LC_CTYPE).
        self.set_by_imports = {name: value for name, value in os.environ.items() if name not in self._env}
        os.environ.clear()
        os.environ.update(self._env)
        self._stamps |= {path: _stamp(path) for path in _module_files() | _settings_files()}
        self._top_names = {name.partition(".")[0] for name in sys.modules}
        gc.collect()
        _return_free_memory()
        gc.freeze()
        _stop_threads()
        if thread_count() != 1:
            self.unusable = "an imported module has started a thread"
        elif opened := _open_files() - opened_before:
            # Kernels would share its position, or take each other's events.
            self.unusable = f"an imported module keeps {opened.pop()} open"

    def _import(self, imports: list[str]) -> None:
        from . import kernel, startup  # noqa: F401  (the kernel itself, imported for its effect)

        # As `IPKernelApp.init_gui_pylab` does before the user's first import of matplotlib.
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        startup.use_matplotlibrc()
        for name in _KERNEL_IMPORTS:
            importlib.import_module(name)
        for name in imports:
            try:
                importlib.import_module(name)
            except Exception as error:  # whatever the module raises, kernels can start without it
                self.skipped.append(name)
                log.warning("%s is not imported beforehand: %s: %s", name, type(error).__name__, error)

    def refusal(self, env: Mapping[str, str], cwd: str) -> tuple[str, bool] | None:
        """Why a kernel with this environment and directory needs a process that imports everything itself.

        A sentence, and whether the same is true of every kernel from now on; None when a fork is as good.
        """
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                return f"{path} has changed since it was imported", True
        in_c = {name for name in self._env.keys() | env.keys() if name.startswith(_READ_IN_C)}
        for name in (self._read_at_import | in_c) - _SET_IN_THE_FORK:
            if env.get(name) != self._env.get(name):
                return f"the variable {name} may change what is imported", False
        if name := self._shadowed_by(cwd):
            return f"{os.path.join(cwd, name)} may change what is imported", False
        return None

    def _shadowed_by(self, cwd: str) -> str | None:
        """The name of a file in `cwd` that a kernel started there would import instead of what we have."""
        try:
            names = os.listdir(cwd)
        except OSError:
            return None  # Python finds no modules there either
        for name in names:
            stem, dot, suffix = name.partition(".")
            if name in _FILES_READ_AT_IMPORT:
                return name
            if stem not in self._top_names:
                continue
            if dot and suffix.endswith(("py", "so", "pyc")):
                return name
            if not dot and os.path.exists(os.path.join(cwd, name, "__init__.py")):
                return name
        return None


def _given_environment() -> dict[str, str]:
    """The environment that this process was started with."""
    with open("/proc/self/environ", "rb") as file:
        entries = [os.fsdecode(entry).partition("=") for entry in file.read().split(b"\0")]
    return {name: value for name, equals, value in entries if equals}


def thread_count() -> int:
    """Threads of this process, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def _return_free_memory() -> None:
    """Gives the system what imports have freed, 4 MB, where the C library can: no kernel would ever ask for it."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _stop_threads() -> None:
    """Makes libraries end their idle threads, as OpenBLAS does before a fork; it starts them again when needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 2
    while thread_count() != 1 and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that has ended is listed for another moment


def _open_files() -> set[str]:
    files = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor
            files.add(os.readlink(f"/proc/self/fd/{name}"))
    return files - {f"/proc/{os.getpid()}/fd"}


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None  # absent; when it appears, that is a change
    return status.st_mtime_ns, status.st_size


def _import_roots() -> set[str]:
    """Directories in which an installation adds or removes names."""
    roots = {path for path in sys.path if path}
    if site.ENABLE_USER_SITE and site.USER_SITE:
        roots.add(site.USER_SITE)
    return roots


def _module_files() -> set[str]:
    """Files of the imported modules, without the standard library's."""
    library = os.path.dirname(os.__file__)
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {
        path
        for path in files
        if isinstance(path, str) and (not path.startswith(library) or "-packages" + os.sep in path)
    }


def _settings_files() -> set[str]:
    """Settings of the user's own that an import reads, there or not."""
    if matplotlib := sys.modules.get("matplotlib"):
        return {os.path.join(matplotlib.get_configdir(), "matplotlibrc"), matplotlib.matplotlib_fname()}
    return set()


@contextlib.contextmanager
def _recorded_environment() -> Iterator[set[str]]:
    """The names of all variables looked up meanwhile."""
    names: set[str] = set()
    original = type(os.environ)

    class Recorder(original):  # type: ignore[misc, valid-type]
        def __getitem__(self, name: str) -> str:
            if isinstance(name, str):
                names.add(name)
            return super().__getitem__(name)

    os.environ.__class__ = Recorder
    try:
        yield names
    finally:
        os.environ.__class__ = original


def _exercise() -> None:
    """Uses the libraries once: much of them is imported, and fonts are read, at the first table and chart only."""
    try:
        if pandas := sys.modules.get("pandas"):
            frame = pandas.DataFrame({"number": [1.5, 2.5], "text": ["a", "b"]})
            frame.describe()
            repr(frame)
            frame._repr_html_()
        if "matplotlib.backends.backend_agg" in sys.modules and "matplotlib.figure" in sys.modules:
            _draw()
    except Exception as error:  # a library of another version; it is imported, only colder
        log.warning("the zygote could not try out what it imported: %s: %s", type(error).__name__, error)


def _draw() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Made without pyplot, which would keep it among the user's figures.
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([1, 2, 3], [1.5, 2.5, 3.5], label="line")
    axes.bar([1, 2], [1, 2])
    axes.set_title("title")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
    if e2b_charts := sys.modules.get("e2b_charts"):
        e2b_charts.chart_figure_to_dict(figure)
    # Its fonts are open files; matplotlib itself forgets them in a fork.
    if forget_fonts := getattr(sys.modules["matplotlib.font_manager"], "_get_font", None):
        forget_fonts.cache_clear()
