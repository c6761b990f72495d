"""From parts and decisions to the ledger's entries, in input order."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from halo_forge.config.schema import RowAction
from halo_forge.data.decisions import Rows, excerpt_of
from halo_forge.data.files.rows import EXCERPT_SOURCE_CHARS
from halo_forge.data.ledger import NUM_EXAMPLES, Action, Entry, LineWriter, Summary, meanings
from halo_forge.data.parts import Part
from halo_forge.data.split import SPLITS

_encoded = json.JSONEncoder(ensure_ascii=False).encode
TOLD = ("code", "reason", "fixes", "flags", "found", "excerpt", "conversation")


@dataclass(frozen=True, slots=True)
class Told:
    """An entry with what stands behind it: raw excerpts by code."""

    row: int
    entry: Entry
    found: dict[str, str]


def entries_of(rows: Rows, part: Part, start: int) -> Iterator[Told]:
    """The entries of one part's rows that have something to tell; `start` is its first row's number."""
    here = slice(start, start + part.num_rows)
    column = rows.columns
    speaking = (column["code"][here] != "") | (column["flags"][here] != "") | (column["fixes"][here] != "")
    speaking |= rows.decided[here]
    chosen = np.flatnonzero(speaking)
    if not len(chosen):
        return
    table = part.read(TOLD)
    values = {name: table[name].take(pa.array(chosen)).to_pylist() for name in TOLD}
    for at, offset in enumerate(chosen.tolist()):
        yield _entry(rows, start + offset, {name: values[name][at] for name in TOLD})


def _entry(rows: Rows, row: int, value: dict[str, Any]) -> Told:
    label, line = rows.sources[rows.source[row]].label, int(rows.columns["line"][row])
    found = json.loads(value["found"]) if value["found"] else {}
    code, reason = (value["code"], value["reason"]) if value["code"] else rows.left_out.get(row, (None, None))
    excerpt = value["excerpt"] or (excerpt_of(value["conversation"]) if value["conversation"] else "")
    if code:
        entry = Entry(
            file=label, line=line, action="dropped", codes=(code,), reason=reason or "",
            excerpt=excerpt[:EXCERPT_SOURCE_CHARS],
        )  # fmt: skip
        return Told(row, entry, found)
    fixes = tuple(value["fixes"].split(",")) if value["fixes"] else ()
    flags = (*(value["flags"].split(",") if value["flags"] else ()), *rows.flags.get(row, ()))
    action: Action = "fixed" if fixes else "kept"
    split = SPLITS[rows.split[row]] if rows.split[row] >= 0 else None
    entry = Entry(
        file=label, line=line, action=action, codes=fixes, flags=flags, reason=meanings((*fixes, *flags)), split=split,
        excerpt=excerpt[:EXCERPT_SOURCE_CHARS],
    )  # fmt: skip
    return Told(row, entry, found)


def write_ledger(rows: Rows, writer: LineWriter | None) -> tuple[Summary, list[Told]]:
    """Write an entry for every row (or only count, without a writer); returns what it adds up to, and the first told
    entries of every code."""
    summary, shown = Summary(), []
    labels = [json.dumps(source.label, ensure_ascii=False) for source in rows.sources]
    seen: Counter[str] = Counter()
    start = 0
    for part in rows.parts:
        told = {item.row: item for item in entries_of(rows, part, start)}
        here = slice(start, start + part.num_rows)
        columns = (rows.source[here].tolist(), rows.split[here].tolist(), rows.columns["line"][here].tolist())
        plain: dict[int, Counter[str]] = defaultdict(Counter)
        lines: list[str] = []
        for row, source, split, line in zip(range(start, here.stop), *columns, strict=True):
            item = told.get(row)
            if item is None:
                plain[source][SPLITS[split]] += 1
                if writer:
                    lines.append(
                        f'{{"file": {labels[source]}, "line": {line}, "action": "kept", "code": null, '
                        f'"reason": null, "split": "{SPLITS[split]}", "excerpt": null}}'
                    )
                continue
            summary.count(item.entry)
            new = [code for code in item.entry.all_codes if seen[code] < NUM_EXAMPLES]
            seen.update(new)
            if new:
                shown.append(item)
            if writer:
                lines.append(_encoded(item.entry.to_dict()))
        for source, splits in plain.items():
            summary.count_kept(rows.sources[source].label, splits)
        if writer and lines:
            writer.write(("\n".join(lines) + "\n").encode())
        start += part.num_rows
    return summary, shown


def write_quarantine(rows: Rows, actions: Mapping[str, RowAction], writer: LineWriter) -> None:
    """Every row that is put aside, whole as it stood in its file: {"file", "line", "code", "reason", "row"}."""
    if "quarantine" not in actions.values():
        return
    start = 0
    for part in rows.parts:
        here = range(start, start + part.num_rows)
        codes = [rows.left_out[row][0] if row in rows.left_out else rows.columns["code"][row] for row in here]
        aside = [at for at, code in enumerate(codes) if code and actions[code] == "quarantine"]
        start += part.num_rows
        if not aside:
            continue
        table = part.read(("code", "reason", "raw", "conversation", "line"))
        for at in aside:
            code, reason = table["code"][at].as_py(), table["reason"][at].as_py()
            if not code:
                code, reason = rows.left_out[here.start + at]
            said = table["conversation"][at].as_py()
            row = table["raw"][at].as_py() or (json.loads(said) if said else None)
            label = rows.sources[rows.source[here.start + at]].label
            writer.write_json(
                {"file": label, "line": table["line"][at].as_py(), "code": code, "reason": reason, "row": row}
            )
