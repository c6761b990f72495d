"""Where the `halo-forge` command begins: what must be settled before the process has allocated anything.

A command that trains on a CPU starts itself once more, as the same process, with settings that glibc reads at the
start alone: memory in pages of 2 MB, and freed memory kept for the next micro-batch. Nothing is computed differently.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

COMMANDS_THAT_TRAIN = frozenset({"demo", "run", "sft", "iterate", "reasoning", "agentic", "vlm", "audio"})
LARGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824"
"""Activations of a step are a few dozen tensors of 1 to 150 MB, made and freed in every layer. Given back each time,
as is the default, they come again page by page: 5 % of a LoRA step, 11 % of a full one (measured)."""


def main() -> None:
    environment = with_large_pages(os.environ, sys.argv[1:])
    if sys.platform == "linux" and environment is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    from halo_forge.cli import main as command_line

    command_line.main()


def with_large_pages(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, str] | None:
    """The environment to start again with; None where nothing is to change: another command, settings of the user's
    own, or HALO_FORGE_LARGE_PAGES=0."""
    trains = bool(arguments) and arguments[0] in COMMANDS_THAT_TRAIN
    is_switched_off = environment.get("HALO_FORGE_LARGE_PAGES") == "0"
    if not trains or is_switched_off or "GLIBC_TUNABLES" in environment:
        return None
    return {**environment, "GLIBC_TUNABLES": LARGE_PAGES}
