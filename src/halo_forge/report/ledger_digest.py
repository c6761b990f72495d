"""The ledger in a few hundred numbers: what became of all rows, and a few rows for every reason.

The file may have millions of lines. It is read line by line, plainly kept rows are not even parsed, and what stays in
memory depends on the number of reason codes only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_CODES = 200
MAX_EXAMPLES_PER_CODE = 5
PLAINLY_KEPT = (b'"action": "kept", "code": null', b'"action":"kept","code":null')
"""How a line says so. A quotation mark inside a JSON text is escaped, so no excerpt can imitate this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    place: str  # file:line
    action: str
    reason: str
    excerpt: str


@dataclass(slots=True)
class CodeRows:
    """Rows with one reason code by what was done with them, and the first few of them."""

    actions: Counter[str] = field(default_factory=Counter)
    examples: list[LedgerRow] = field(default_factory=list)


@dataclass(slots=True)
class LedgerDigest:
    """`dropped_by_code` counts every dropped row once, under the first of its codes, so it adds up to the dropped."""

    actions: Counter[str] = field(default_factory=Counter)
    codes: dict[str, CodeRows] = field(default_factory=dict)
    dropped_by_code: Counter[str] = field(default_factory=Counter)
    num_bad_lines: int = 0
    is_there: bool = False

    @property
    def num_rows(self) -> int:
        return self.actions.total()


def read_ledger(path: Path, problems: list[str]) -> LedgerDigest:
    """Never raises for the content of the file; a torn last line is passed over, other bad lines are counted."""
    digest = LedgerDigest()
    if not path.is_file():
        return digest
    digest.is_there = True
    try:
        for row in _told_rows(path, digest):
            _add(digest, row)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    if digest.num_bad_lines:
        problems.append(f"{digest.num_bad_lines} lines of {path.name} cannot be read; nothing of them is shown")
    return digest


def _told_rows(path: Path, digest: LedgerDigest) -> Iterator[dict[str, Any]]:
    """Rows that have something to tell; the others are only counted."""
    num_plain = 0
    with open(path, "rb") as file:
        for line in file:
            if PLAINLY_KEPT[0] in line or PLAINLY_KEPT[1] in line:
                num_plain += 1
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            elif line.endswith(b"\n") and line.strip():
                digest.num_bad_lines += 1
    digest.actions["kept"] += num_plain


def _add(digest: LedgerDigest, row: dict[str, Any]) -> None:
    action = str(row.get("action"))
    if action not in ("kept", "fixed", "dropped"):
        return
    digest.actions[action] += 1
    codes = [code for code in str(row.get("code") or "").split(",") if code]
    if not codes and action != "kept":
        codes = [str(row.get("reason") or "no reason recorded")]
    codes = [code if code in digest.codes or len(digest.codes) < MAX_CODES else "other codes" for code in codes]
    if action == "dropped":
        digest.dropped_by_code[codes[0]] += 1
    for code in codes:
        known = digest.codes.setdefault(code, CodeRows())
        known.actions[action] += 1
        if len(known.examples) < MAX_EXAMPLES_PER_CODE:
            known.examples.append(
                LedgerRow(
                    place=f"{row.get('file')}:{row.get('line')}",
                    action=action,
                    reason=str(row.get("reason") or ""),
                    excerpt=str(row.get("excerpt") or ""),
                )
            )
