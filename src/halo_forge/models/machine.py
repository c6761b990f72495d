"""The memory of this machine, as this process may use it. No torch, so that the doctor can ask too."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path


def memory_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(limit, available) in bytes: of the machine, or of the container where that is less."""
    values = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024
    total, available = values["MemTotal"], values["MemAvailable"]
    for folder, limit_file, usage_file, cached in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = read_words(folder / limit_file), read_words(folder / usage_file)
        if limit and usage and limit[0] != "max" and int(limit[0]) < total:
            words = read_words(folder / "memory.stat")
            # Cached file pages are counted as used, and given up as soon as somebody needs the room.
            reclaimable = int(words[words.index(cached) + 1]) if cached in words else 0
            total = int(limit[0])
            available = min(available, total - int(usage[0]) + reclaimable)
    return total, available


def read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def resident_bytes() -> int:
    """Memory this process holds now; where the system does not say (macOS), the most it ever held."""
    words = read_words(Path("/proc/self/statm"))
    if words:
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident_bytes()


def return_freed_memory() -> None:
    """Let glibc give the system what was freed anywhere in the heap; other C libraries do so by themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_resident_bytes() -> int:
    """The most this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def usable_bytes() -> int | None:
    """What this process may hold in all: what is free, and what it holds already. None where it cannot be known.

    Processes of one run on this machine (LOCAL_WORLD_SIZE of a launcher) share what is free.
    """
    try:
        _, available = memory_bytes()
    except (OSError, KeyError, ValueError):
        return None
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + resident_bytes()
