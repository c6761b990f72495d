"""Where the `halo-forge` command begins: what must be settled before the process has allocated anything.

A command that trains starts itself once more, as the same process, with settings that glibc reads at the start alone:
memory in pages of 2 MB, kept for the next micro-batch when freed, without holes. Nothing is computed differently.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

COMMANDS_THAT_TRAIN = frozenset({"demo", "run", "sft", "iterate", "reasoning", "agentic", "vlm", "audio"})
MALLOC_SETTINGS = ":".join(
    f"glibc.malloc.{setting}"
    for setting in (
        "hugetlb=1", "mmap_threshold=268435456", "trim_threshold=68719476736", "tcache_count=0", "mxfast=0",
    )
)  # fmt: skip
"""Activations of a step are a few dozen tensors of 1 to 150 MB, made and freed in every layer. Given back each time, as
is the default, they come again page by page: 5 % of a LoRA step, 11 % of a full one; in a virtual machine a GB of new
pages takes 2 s (measured). So nothing is given back below 64 GB.

torch asks for aligned memory, so glibc cuts a few bytes off each tensor's ends. Its two caches of small pieces keep
these from being joined again: every freed tensor leaves a hole a little too small for the next of its size. Without the
caches a full step of a 135M model peaks at 4.3 instead of 5.4 GB, a LoRA step at 2.7 instead of 3.4 (measured)."""


def main() -> None:
    environment = with_malloc_settings(os.environ, sys.argv[1:])
    if sys.platform == "linux" and environment is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    from halo_forge.cli import main as command_line

    command_line.main()


def with_malloc_settings(environment: Mapping[str, str], arguments: Sequence[str]) -> dict[str, str] | None:
    """The environment to start again with; None where nothing is to change: another command, settings of the user's
    own, or HALO_FORGE_MALLOC_SETTINGS=0."""
    trains = bool(arguments) and arguments[0] in COMMANDS_THAT_TRAIN
    is_switched_off = environment.get("HALO_FORGE_MALLOC_SETTINGS") == "0"
    if not trains or is_switched_off or "GLIBC_TUNABLES" in environment:
        return None
    return {**environment, "GLIBC_TUNABLES": MALLOC_SETTINGS}
