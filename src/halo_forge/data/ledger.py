"""The ledger: one line for every row that was read, and totals that must add up.

    {"file", "line", "action": kept | fixed | dropped, "code", "reason", "split", "excerpt"}

`fixed` rows are kept rows that were mended; a plainly kept row with a code carries a flag (something found and left as
it is). Several codes of one row are joined by commas. `excerpt` stands with dropped and fixed rows only: at most 120
characters, without e-mail addresses, secrets or control characters.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halo_forge.data.rows import EXCERPT_SOURCE_CHARS
from halo_forge.errors import DataError
from halo_forge.runs import fsync_directory

Action = Literal["kept", "fixed", "dropped"]
EXCERPT_CHARS = 120
POLICY_CODES = frozenset(
    {"duplicate", "in_holdout", "in_validation", "too_long", "no_supervised_tokens_after_truncation"}
)
"""Why a sound row is left out. Every other dropped row is damage and counts against data.max_bad_fraction."""
MEANINGS = {
    "bom_removed": "the file began with a byte order mark, which is left out",
    "role_normalised": "a role was written in another way",
    "nul_removed": "NUL characters are left out",
    "empty_system_dropped": "an empty system message is left out",
    "turns_joined": "two turns of one side in a row became one",
    "leading_assistant_dropped": "the assistant spoke before the user; that turn is left out",
    "trailing_turn_dropped": "turns after the last answer are left out",
    "json_text_parsed": "the messages were a list inside a string",
    "special_tokens_neutralised": "special tokens in the content are encoded as ordinary text",
    "truncated": "cut at data.max_seq_length",
    "reasoning_not_rendered": "the chat template leaves out the reasoning",
    "text_not_rendered": "the chat template leaves out text beside a tool call",
    "system_not_rendered": "the chat template leaves out the system message",
    "tools_not_rendered": "the chat template leaves out the tools",
    "control_characters": "holds control or direction characters, which a terminal may obey",
    "not_nfc": "holds decomposed characters (not NFC), which tokenize differently from their usual form",
    "merged_boundary": "one token stands across the border between prompt and answer",
}
"""What the codes of fixed and flagged rows say."""

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
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def redacted(text: str) -> str:
    """At most 120 characters, safe to print and to pass on."""
    if len(text) >= EXCERPT_SOURCE_CHARS:  # its last word is cut, and half a secret is not recognised
        text = re.sub(r"""[^\s",:{}\[\]]+$""", "", text) + "…"
    text = UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", SECRET.sub("[redacted]", text))
    return text if len(text) <= EXCERPT_CHARS else text[: EXCERPT_CHARS - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one row. `split` is train, validation or holdout for kept rows, None for dropped ones."""

    file: str
    line: int
    action: Action
    codes: tuple[str, ...] = ()
    reason: str = ""
    split: str | None = None
    excerpt: str = ""

    def to_dict(self) -> dict[str, Any]:
        shown = self.action in ("dropped", "fixed")
        return {
            "file": self.file, "line": self.line, "action": self.action, "code": ",".join(self.codes) or None,
            "reason": self.reason or None, "split": self.split, "excerpt": redacted(self.excerpt) if shown else None,
        }  # fmt: skip

    @property
    def is_damage(self) -> bool:
        return self.action == "dropped" and not POLICY_CODES.intersection(self.codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    read: int
    kept: int
    fixed: int
    dropped: int


def totals_of(entries: Iterable[Entry]) -> Totals:
    actions = Counter(entry.action for entry in entries)
    kept = actions["kept"] + actions["fixed"]
    return Totals(read=actions.total(), kept=kept, fixed=actions["fixed"], dropped=actions["dropped"])


def totals_by_file(entries: Iterable[Entry]) -> dict[str, Totals]:
    by_file: dict[str, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(entry.file, []).append(entry)
    return {file: totals_of(group) for file, group in by_file.items()}


def reason_counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Rows per reason code, over dropped and fixed rows, most frequent first."""
    counts = Counter(code for entry in entries if entry.action != "kept" for code in entry.codes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_totals(entries: Iterable[Entry], read_rows: Mapping[str, int], split_rows: Mapping[str, int]) -> None:
    """Hold the ledger against two counts taken elsewhere: rows the readers yielded (per file) and rows written (per
    split). Raises DataError where a row is missing or counted twice, because then nothing else can be believed."""
    entries = list(entries)
    by_file = totals_by_file(entries)
    for file in {*read_rows, *by_file}:
        recorded = by_file[file].read if file in by_file else 0
        if recorded != read_rows.get(file, 0):
            raise _does_not_add_up(f"{read_rows.get(file, 0)} rows were read and {recorded} are in it", file)
    kept = Counter(entry.split for entry in entries if entry.action != "dropped")
    for split in {*split_rows, *kept}:
        written = split_rows.get(str(split), 0)
        if kept[split] != written:
            raise _does_not_add_up(f"it keeps {kept[split]} rows for {split} and {written} were written", str(split))


def _does_not_add_up(what: str, where: str) -> DataError:
    return DataError(
        f"the ledger does not add up: {what}",
        where=where,
        expected="read = kept + dropped, in every file and split",
        fix="this is a bug in halo-forge; report it with the data file if you may share it",
    )


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """One JSON line per row, atomically, without holding the text in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(staging, "w", encoding="utf-8") as file:
            for entry in entries:
                file.write(json.dumps(entry.to_dict(), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
