"""The ledger: one line for every row that was read, and totals that must add up.

    {"file", "line", "action": kept | fixed | dropped, "code", "reason", "split", "excerpt"}

`fixed` rows are kept rows that were mended; a plainly kept row with a code carries a flag (something found and left as
it is). Several codes of one row are joined by commas. `excerpt` stands with dropped and fixed rows only: at most 120
characters, without e-mail addresses, secrets or control characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from halo_forge.data.files.rows import EXCERPT_SOURCE_CHARS
from halo_forge.data.reasons import REASONS
from halo_forge.errors import DataError
from halo_forge.runs import fsync_directory

Action = Literal["kept", "fixed", "dropped"]
EXCERPT_CHARS = 120
NUM_EXAMPLES = 5
SECRET = re.compile(
    r"""[\w.+-]+@[\w-]+(\.[\w-]+)+                                   # e-mail
      | -----BEGIN[ A-Z]*PRIVATE[ ]KEY-----.*                        # keys
      | \b(sk|pk|rk)[-_][\w-]{16,} | \bhf_\w{16,} | \bgh[pousr]_\w{20,} | \bgithub_pat_\w{20,} | \bglpat-[\w-]{16,}
      | \bxox[abprs]-[\w-]{10,} | \bAKIA[0-9A-Z]{12,} | \bAIza[\w-]{30,} | \beyJ[\w-]{10,}\.[\w-]{10,}[\w.-]*
      | (?i:\b(password|passwd|secret|token|api[_-]?key)\b["']?\s*[:=]\s*["']?)[^\s"',}]{4,}
      | (?i:\bbearer\s+)[\w.~+/-]{12,}=*
    """,
    re.X,
)
SECRET_SIGNS = (
    "@", "-----begin", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
    "github_pat_", "glpat-", "xox", "akia", "aiza", "eyj", "password", "passwd", "secret", "token", "apikey", "api_key",
    "api-key", "bearer",
)  # fmt: skip
"""Without one of these, casefolded, a text holds nothing that SECRET finds: a hundred times quicker to see."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


LAST_WORD = re.compile(r"""[^\s",:{}\[\]]+""")
"""Matched backwards from the end: looked for from the front it takes quadratic time."""


def redacted(text: str) -> str:
    """At most 120 characters, safe to print and to pass on."""
    if len(text) >= EXCERPT_SOURCE_CHARS:  # its last word is cut, and half a secret is not recognised
        cut_word = LAST_WORD.match(text[::-1])
        text = (text[: -cut_word.end()] if cut_word else text) + "…"
    lowered = text.casefold()
    if any(sign in lowered for sign in SECRET_SIGNS):
        text = SECRET.sub("[redacted]", text)
    if not text.isprintable():
        text = UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one row. `codes` say why it was dropped or what was mended, `flags` what was found and left.
    `split` is train, validation or holdout for kept rows, None for dropped ones."""

    file: str
    line: int
    action: Action
    codes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    reason: str = ""
    split: str | None = None
    excerpt: str = ""

    def to_dict(self) -> dict[str, Any]:
        shown = self.action in ("dropped", "fixed")
        return {
            "file": self.file, "line": self.line, "action": self.action, "code": ",".join(self.all_codes) or None,
            "reason": self.reason or None, "split": self.split, "excerpt": redacted(self.excerpt) if shown else None,
        }  # fmt: skip

    @property
    def all_codes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.codes, *self.flags)))

    @property
    def is_damage(self) -> bool:
        return self.action == "dropped" and any(REASONS[code].kind == "damage" for code in self.codes)


def meanings(codes: Iterable[str]) -> str:
    return "; ".join(REASONS[code].meaning for code in codes)


@dataclass(slots=True, kw_only=True)
class Totals:
    """Of one file. read = kept + dropped; fixed rows are among the kept."""

    read: int = 0
    kept: int = 0
    fixed: int = 0
    dropped: int = 0

    def count(self, action: Action, num_rows: int = 1) -> None:
        self.read += num_rows
        self.kept += num_rows * (action != "dropped")
        self.fixed += num_rows * (action == "fixed")
        self.dropped += num_rows * (action == "dropped")


@dataclass(slots=True)
class Summary:
    """What a ledger adds up to, counted while it is written.

    reasons   rows per reason code, over dropped and fixed rows       flagged   the same, over kept rows
    examples  the first entries with each code                       bad       the first damaged rows
    """

    by_file: dict[str, Totals] = field(default_factory=dict)
    by_split: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Entry]] = field(default_factory=dict)
    num_damaged: int = 0
    bad: list[Entry] = field(default_factory=list)

    def count(self, entry: Entry) -> None:
        self.by_file.setdefault(entry.file, Totals()).count(entry.action)
        if entry.split:
            self.by_split[entry.split] += 1
        self.reasons.update(entry.codes)
        self.flagged.update(entry.flags)
        for code in entry.all_codes:
            shown = self.examples.setdefault(code, [])
            if len(shown) < NUM_EXAMPLES:
                shown.append(entry)
        if entry.is_damage:
            self.num_damaged += 1
            if len(self.bad) < NUM_EXAMPLES:
                self.bad.append(entry)

    def count_kept(self, file: str, splits: Counter[str]) -> None:
        """Rows with nothing to tell, many at a time."""
        self.by_file.setdefault(file, Totals()).count("kept", splits.total())
        self.by_split.update(splits)

    @property
    def num_read(self) -> int:
        return sum(totals.read for totals in self.by_file.values())

    def totals(self) -> Totals:
        found = self.by_file.values()
        return Totals(
            read=sum(t.read for t in found), kept=sum(t.kept for t in found), fixed=sum(t.fixed for t in found),
            dropped=sum(t.dropped for t in found),
        )  # fmt: skip

    def reason_counts(self) -> dict[str, int]:
        """Rows per reason code, over dropped and fixed rows, most frequent first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))


def check_totals(summary: Summary, read_rows: Mapping[str, int], split_rows: Mapping[str, int]) -> None:
    """Hold the ledger against two counts taken elsewhere: rows the readers yielded (per file) and rows written (per
    split). Raises DataError where a row is missing or counted twice, because then nothing else can be believed."""
    for file in {*read_rows, *summary.by_file}:
        recorded = summary.by_file[file].read if file in summary.by_file else 0
        if recorded != read_rows.get(file, 0):
            raise _does_not_add_up(f"{read_rows.get(file, 0)} rows were read and {recorded} are in it", file)
    for split in {*split_rows, *summary.by_split}:
        written = split_rows.get(split, 0)
        if summary.by_split[split] != written:
            raise _does_not_add_up(
                f"it keeps {summary.by_split[split]} rows for {split} and {written} were written", split
            )


def _does_not_add_up(what: str, where: str) -> DataError:
    return DataError(
        f"the ledger does not add up: {what}",
        where=where,
        expected="read = kept + dropped, in every file and split",
        fix="this is a bug in halo-forge; report it with the data file if you may share it",
    )


class LineWriter:
    """A JSONL file that appears whole or not at all; its text is never held in memory."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = open(self._staging, "wb")  # noqa: SIM115 (closed by close or abandon)
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)

    def write_json(self, value: Any) -> None:
        self.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")

    def close(self) -> str:
        """The file's sha256, once it is durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._staging, self.path)
        fsync_directory(self.path.parent)
        return self.digest.hexdigest()

    def abandon(self) -> None:
        self._file.close()
        self._staging.unlink(missing_ok=True)
