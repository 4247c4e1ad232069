"""Which kernels a sandbox offers, and the kernelspecs that start them.

`python -m cellbox_kernel.kernelspecs [<jupyter kernels dir>]` writes one kernelspec per language whose tools are
present, removes the ones it wrote before whose tools are gone, and prints one JSON object:
`{"<language>": {"available": bool, "missing": "<sentence>" | null}}`. Without a directory it only prints.

To add a language, add a row to `LANGUAGES`: a name, a command, an environment and a probe.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Marks the kernelspecs that this module wrote, so that it never deletes somebody else's.
OWNER_KEY = "cellbox"


@dataclass(frozen=True)
class KernelLanguage:
    """One kernel: how to start it and how to find out whether this machine can.

    `argv` is called only when `missing()` returned None. `missing` answers in one sentence what is not there.
    """

    name: str
    display_name: str
    language: str
    argv: Callable[[], list[str]]
    missing: Callable[[], str | None]
    env: Mapping[str, str] = field(default_factory=dict)
    # "signal": SIGINT to the kernel's process group; "message": an interrupt_request on the control channel.
    interrupt_mode: str = "signal"
    # How the gateway starts it, by the name of a registered kernel provisioner; None: by its command.
    provisioner: str | None = None
    # Files written beside kernel.json (name -> text); argv reaches them as `{resource_dir}/<name>`.
    files: Mapping[str, str] = field(default_factory=dict)
    # Called with the directory when all that is written; answers in one sentence why the kernel can't start after all.
    finish: Callable[[Path], str | None] = lambda spec_dir: None

    def kernel_json(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {OWNER_KEY: True}
        if self.provisioner:
            metadata["kernel_provisioner"] = {"provisioner_name": self.provisioner}
        return {
            "argv": self.argv(),
            "display_name": self.display_name,
            "language": self.language,
            "env": dict(self.env),
            "interrupt_mode": self.interrupt_mode,
            "metadata": metadata,
        }


def python_argv() -> list[str]:
    return [sys.executable, "-m", "cellbox_kernel.kernel", "-f", "{connection_file}"]


def _missing_module(module: str, remedy: str) -> str | None:
    return None if find_spec(module) else f"The Python package {module} is not installed. {remedy}"


def _missing_program(program: str, remedy: str) -> str | None:
    return None if _program(program) else f"The program {program} was not found. {remedy}"


def _program(name: str) -> str | None:
    """The program's path, this Python environment's own first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return shutil.which(name, path=path)


def _bash_missing() -> str | None:
    return _missing_program("bash", "Install bash.") or _missing_module("bash_kernel", "pip install bash_kernel")


def _deno_argv() -> list[str]:
    return [_program("deno") or "deno", "jupyter", "--kernel", "--conn", "{connection_file}"]


def _deno_missing() -> str | None:
    return _missing_program("deno", "pip install deno")


def _r_missing() -> str | None:
    missing = _missing_program("R", "Install R (Debian: r-base-core) and its package IRkernel (r-cran-irkernel).")
    if missing or _output(["R", "--slave", "-e", 'cat(requireNamespace("IRkernel", quietly=TRUE))']) == "TRUE":
        return missing
    return "The R package IRkernel is not installed. Install it (Debian: r-cran-irkernel)."


JAVA_KERNEL = "io.github.padreati:rapaio-jupyter-kernel:3.0.1"
JAVA_KERNEL_JAR = "rapaio-jupyter-kernel.jar"
# The kernel's classes are made for this version; the image has 21.
JAVA_VERSION = 17
# Ours, as LoopThread is, which replaces one of the jar; their sources are in `java`.
JAVA_MAIN_CLASS = "org.rapaio.jupyter.kernel.channels.CellboxMain"


def java_kernel_jar() -> Path:
    """Where the Java kernel's jar is, or, when it is nowhere yet, where it belongs."""
    own = Path(sys.prefix) / "share" / "cellbox" / "java" / JAVA_KERNEL_JAR
    image = Path("/opt/cellbox/java") / JAVA_KERNEL_JAR
    return image if image.is_file() and not own.is_file() else own


def _java_argv() -> list[str]:
    # {resource_dir} first: JAVA_FILES and our classes there replace the files of the same names in the jar.
    class_path = os.pathsep.join(["{resource_dir}", str(java_kernel_jar())])
    return ["java", "-Djava.awt.headless=true", "-cp", class_path, JAVA_MAIN_CLASS, "{connection_file}"]


def _java_missing() -> str | None:
    missing = _missing_program("java", f"Install a JDK, {JAVA_VERSION} or newer (Debian: openjdk-21-jdk-headless).")
    if missing:
        return missing
    version = re.search(r'version "(\d+)', _output(["java", "-version"]))
    if version is None or int(version[1]) < JAVA_VERSION:
        return f"Java is older than {JAVA_VERSION}. Install a newer JDK (Debian: openjdk-21-jdk-headless)."
    if "jdk.jshell" not in _output(["java", "--list-modules"]):
        return "Java is here without its compiler. Install a JDK (Debian: openjdk-21-jdk-headless)."
    jar = java_kernel_jar()
    if jar.is_file():
        return None
    return f"The Java kernel {JAVA_KERNEL} is not installed: its jar belongs at {jar}. See docs/LANGUAGES.md."


def _compile_java(spec_dir: Path) -> str | None:
    """Puts our classes beside kernel.json, where {resource_dir} on the class path finds them before the jar's."""
    sources = sorted(map(str, Path(__file__).with_name("java").glob("*.java")))
    main_class = spec_dir / f"{JAVA_MAIN_CLASS.replace('.', '/')}.class"
    main_class.unlink(missing_ok=True)  # an earlier one would hide that it can't be compiled
    # Not `javac`: `java -m` takes the compiler of the very Java that will run the kernel.
    compiler = ["java", "-m", "jdk.compiler/com.sun.tools.javac.Main", "--release", str(JAVA_VERSION)]
    problem = _output([*compiler, "-proc:none", "-cp", str(java_kernel_jar()), "-d", str(spec_dir), *sources])
    if main_class.is_file():
        return None
    return f"Java could not compile a part of its kernel: {' '.join(problem.split()) or 'no answer'}"


def _output(command: list[str]) -> str:
    """What a command prints on both streams, "" when it can't run or takes longer than any of ours should."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip()


# logging: the jar's own logs every message at INFO, and the connection file with its key.
# options: results as text/plain (E2B's programs read `text`), no ANSI colours.
JAVA_FILES = {
    "logging.properties": "handlers=java.util.logging.ConsoleHandler\n.level=SEVERE\n",
    "options.json": json.dumps(
        [
            {"key": key, "value": value, "description": ""}
            for key, value in {
                "display.defaultMime": "text/plain",
                "display.defaultMimeImage": "image/png",
                "display.html.border": "1",
                "display.maxRows": "20",
                "display.maxCols": "20",
                "display.maxColWidth": "50",
                "display.maxSeqItems": "50",
                "display.showIndex": "true",
                "display.format.na": "",
                "display.format.precision": "6",
                "display.text.colored": "false",
            }.items()
        ]
    ),
}

DENO_ENV = {"NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}

LANGUAGES: tuple[KernelLanguage, ...] = (
    KernelLanguage(
        "python3", "Python 3", "python", python_argv, lambda: None, provisioner="cellbox-zygote-provisioner"
    ),
    KernelLanguage("javascript", "JavaScript (Deno)", "javascript", _deno_argv, _deno_missing, DENO_ENV),
    KernelLanguage("typescript", "TypeScript (Deno)", "typescript", _deno_argv, _deno_missing, DENO_ENV),
    KernelLanguage(
        "bash",
        "Bash",
        "bash",
        lambda: [sys.executable, "-m", "cellbox_kernel.bash", "-f", "{connection_file}"],
        _bash_missing,
    ),
    KernelLanguage(
        "r",
        "R",
        "R",
        lambda: ["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"],
        _r_missing,
    ),
    # "signal" although the kernel knows interrupt_request: that leaves it alive but mute for ever. The signal ends it,
    # and the gateway starts it anew.
    KernelLanguage("java", "Java", "java", _java_argv, _java_missing, files=JAVA_FILES, finish=_compile_java),
)


def availability() -> dict[str, dict[str, Any]]:
    """For each language whether it can start here, and what is missing if not."""
    report = {}
    for row in LANGUAGES:
        missing = row.missing()
        report[row.name] = {"available": missing is None, "missing": missing}
    return report


def write_kernelspecs(kernels_dir: Path) -> dict[str, dict[str, Any]]:
    """Makes `kernels_dir` hold exactly our available languages beside whatever else is there."""
    report = availability()
    for row in LANGUAGES:
        spec_dir = kernels_dir / row.name
        if report[row.name]["available"]:
            spec_dir.mkdir(parents=True, exist_ok=True)
            (spec_dir / "kernel.json").write_text(json.dumps(row.kernel_json(), indent=1) + "\n")
            for name, text in row.files.items():
                (spec_dir / name).write_text(text)
            if problem := row.finish(spec_dir):
                report[row.name] = {"available": False, "missing": problem}
        if not report[row.name]["available"] and _is_ours(spec_dir):
            shutil.rmtree(spec_dir)
    return report


def _is_ours(spec_dir: Path) -> bool:
    try:
        spec = json.loads((spec_dir / "kernel.json").read_text())
    except (OSError, ValueError):
        return False  # absent or unreadable: not something we wrote
    return isinstance(spec, dict) and bool((spec.get("metadata") or {}).get(OWNER_KEY))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cellbox_kernel.kernelspecs", description=__doc__.split("\n")[0])
    parser.add_argument("kernels_dir", nargs="?", type=Path, help="for example <venv>/share/jupyter/kernels")
    options = parser.parse_args(arguments)
    report = write_kernelspecs(options.kernels_dir) if options.kernels_dir else availability()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
