"""What the system lets this process have of memory, before anything slow is imported.

    most    what it may hold: by `ulimit -v` (address space), `ulimit -d` (data), or
            its container's memory
    held    what it holds of it already

Nothing here needs more than Python itself.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

_ULIMITS = {
    "RLIMIT_AS": ("ulimit -v", "VmSize"),
    "RLIMIT_DATA": ("ulimit -d", "VmData"),
}
# Where a container's limit is, and what of its statistics no file could be dropped for:
# version 2 of control groups, and version 1.
_CONTAINER = (
    ("memory.max", "memory.stat", "anon"),
    ("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss"),
)


class Limit(NamedTuple):
    """A limit in bytes; `name` is what sets it."""

    name: str
    most: int
    held: int = 0

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return max(self.most - self.held, 0)


def limits() -> list[Limit]:
    """Return the limits of this process, none where the system has none."""
    found = []
    with contextlib.suppress(ImportError):  # Not on Windows.
        import resource

        for kind, (name, field) in _ULIMITS.items():
            soft, _ = resource.getrlimit(getattr(resource, kind))
            if soft != resource.RLIM_INFINITY:
                found.append(Limit(name, soft, _held(field)))
    for place, statistics, name in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit.
            most = int(Path("/sys/fs/cgroup", place).read_text())
            held = _named(Path("/sys/fs/cgroup", statistics), name)
            found.append(Limit("container", most, held))
    return found


def machine_bytes() -> int | None:
    """Bytes of memory of the machine, or None where nothing says so."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def process_bytes() -> int:
    """Bytes that this process may hold: of the machine, and by every limit."""
    return min([machine_bytes() or sys.maxsize, *(limit.most for limit in limits())])


def _held(field: str) -> int:
    """Return a number of `/proc/self/status`, in bytes; zero where there is none."""
    return 1024 * _named(Path("/proc/self/status"), f"{field}:")


def _named(path: Path, name: str) -> int:
    """Return the number after a name in a file of such lines, or zero."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            first, *others = line.split()[:2] or [""]
            if first == name:
                return int(others[0])
    return 0
