"""What the memory controller of this process's own cgroup tells, version 1 or 2. Every figure may be missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# A limit of version 1 that means none: the largest number of bytes in whole pages.
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class _Files:
    oom_kills: str
    peak: str
    limit: str


_VERSIONS = {
    "cgroup2": _Files("memory.events", "memory.peak", "memory.max"),
    "cgroup": _Files("memory.oom_control", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
}


class MemoryCgroup:
    """The cgroup at `directory`; its figures include those of the cgroups below it.

    `top` is the highest directory above it that belongs to the hierarchy: limits hold downwards.
    """

    def __init__(
        self, directory: Path | None, version: str, top: Path | None = None, proc: Path = Path("/proc")
    ) -> None:
        self._directory = directory
        self._files = _VERSIONS[version]
        self._top = top or directory
        self._vmstat = proc / "vmstat"

    def oom_kills(self) -> int | None:
        """How often a process of this cgroup was killed for memory; of the whole machine where no cgroup says it."""
        for file in (self._directory and self._directory / self._files.oom_kills, self._vmstat):
            if found := re.search(r"^oom_kill (\d+)$", _read(file), re.MULTILINE):
                return int(found[1])
        return None

    def peak_bytes(self) -> int | None:
        """The most memory that was ever in use at a time."""
        return self._number(self._directory, self._files.peak)

    def limit_bytes(self) -> int | None:
        """The lowest limit that holds here; None when there is none."""
        limits = []
        directory = self._directory
        while directory is not None:
            limits.append(self._number(directory, self._files.limit))
            directory = directory.parent if directory != self._top else None
        return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)

    def _number(self, directory: Path | None, name: str) -> int | None:
        text = _read(directory and directory / name).strip()
        return int(text) if text.isdecimal() else None  # `max`: no limit


def own_memory_cgroup(proc: Path = Path("/proc")) -> MemoryCgroup:
    """The cgroup that this process is in, as far as it can be seen from here."""
    paths = {}
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    # A mount that comes later may cover an earlier one.
    for line in reversed(_read(proc / "self" / "mountinfo").splitlines()):
        fields, _, rest = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        version, _, options = rest.split()[:3]
        if version not in _VERSIONS or (version == "cgroup" and "memory" not in options.split(",")):
            continue
        path = paths.get("memory" if version == "cgroup" else "")
        if path is None:
            continue
        mounted = Path(mount_point)
        try:
            directory = mounted / Path(path).relative_to(root)
        except ValueError:
            # The engine mounted this cgroup alone, and its namespace names it otherwise.
            directory = mounted
        if (directory / _VERSIONS[version].oom_kills).exists():
            return MemoryCgroup(directory, version, mounted, proc)
    return MemoryCgroup(None, "cgroup2", proc=proc)


def _read(file: Path | None) -> str:
    try:
        return file.read_text() if file else ""
    except (OSError, ValueError):  # not there, or not for us to read: the figure is missing
        return ""
