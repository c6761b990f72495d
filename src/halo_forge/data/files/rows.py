"""One row as a file holds it: its place, its parsed value, or the reason why it could not be read.

Readers (`json_rows`, `table_rows`, `text_rows`) yield these and never raise for a single row; only a file that
cannot be read at all is a DataError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo_forge.errors import RowError

MAX_ROW_CHARS = 16 * 2**20
"""Longest line, array element or CSV record that is read. Anything longer is damage: a file without line ends."""
MAX_DEPTH = 64
EXCERPT_SOURCE_CHARS = 400
"""How much of a row is carried along for the ledger, which cuts and redacts it further."""

SPOOLED = re.compile(r"stdin-[0-9a-f]{64}")
"""Name of the file that keeps what came through standard input."""

Say = Callable[[str], None]
"""How a reader tells something about a whole file, for instance that blank lines were passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`line` is the 1-based line where the row starts (JSONL, CSV, text) or the row's number (JSON array, Parquet,
    data set). Exactly one of `value` and `problem` is set. `fixes` are codes of what the reader mended."""

    path: str
    line: int
    value: dict[str, Any] | None = None
    problem: RowError | None = None
    raw: str | None = None
    fixes: tuple[str, ...] = ()

    def excerpt(self) -> str:
        """The beginning of the row as it stands in its file, unredacted."""
        if self.raw is not None:
            return self.raw[:EXCERPT_SOURCE_CHARS]
        return json.dumps(self.value, ensure_ascii=False, default=str)[:EXCERPT_SOURCE_CHARS]


def checked_row(path: str, line: int, value: Any, raw: str | None = None, fixes: tuple[str, ...] = ()) -> Row:
    """A row from a parsed value of any type; what is not an object becomes a problem."""
    if not isinstance(value, dict):
        problem = RowError("not_an_object", f"a row is an object with named columns; this one is {json_type(value)}")
        return Row(path=path, line=line, problem=problem, raw=raw)
    return Row(path=path, line=line, value=value, raw=raw, fixes=fixes)


def shown_path(path: str | Path) -> str:
    """A path as it may be printed and written as UTF-8, whatever bytes its name has; `stdin` for what came there."""
    if SPOOLED.fullmatch(os.path.basename(path)):
        return "stdin"
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def json_type(value: Any) -> str:
    """The name of a value's type as JSON calls it, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"
