"""Long lines for a person: folded between words, what follows under where the words began."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

NARROWEST_CHARS = 40


def reading_width() -> int | None:
    """Characters of a line on stdout where a person reads it: a terminal, or COLUMNS is set. None in a pipe, whose
    reader wants whole lines."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        return None
    return shutil.get_terminal_size().columns


def folded(text: str, hanging: int, width: int | None) -> str:
    """Every line of more than `width` characters folded; its further lines are indented by its own indent and
    `hanging`. Words are never broken, and blanks inside a line that fits stay."""
    if width is None:
        return text
    return "\n".join(
        piece for line in text.split("\n") for piece in _pieces(line, hanging, max(width, NARROWEST_CHARS))
    )


def _pieces(line: str, hanging: int, width: int) -> Iterator[str]:
    if len(line) <= width:
        yield line
        return
    own = line[: len(line) - len(line.lstrip(" "))]
    yield from textwrap.wrap(
        line, width, subsequent_indent=own + " " * hanging, break_long_words=False, break_on_hyphens=False
    )
