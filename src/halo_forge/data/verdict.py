"""Whether prepared rows may be trained on: rows that a policy refuses, too much damage, nothing left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from halo_forge.config.schema import Config, RowAction
from halo_forge.data.decisions import Rows
from halo_forge.data.inputs import Source
from halo_forge.data.ledger import Entry, Summary
from halo_forge.data.parts import Part
from halo_forge.data.reasons import REASONS
from halo_forge.errors import DataError

NUM_SHOWN_ROWS = 5


def refuse_part(part: Part, sources: Sequence[Source], actions: Mapping[str, RowAction]) -> None:
    """Raise DataError for the first row of a part whose reason code stops the run. Contamination is told once all
    rows are read, because one hit says little."""
    batch = part.read(["code", "source", "line", "reason"])
    codes = batch["code"]
    if codes.null_count == len(codes):
        return
    for at, code in enumerate(codes.to_pylist()):
        if code and actions[code] == "fail" and REASONS[code].kind != "contamination":
            label = sources[batch["source"][at].as_py()].label
            raise refused_row(f"{label}:{batch['line'][at]}", code, batch["reason"][at].as_py())


def refused_row(where: str, code: str, reason: str) -> DataError:
    fix = f"mend the row, or leave such rows out: --set data.policies.{code}=skip"
    if REASONS[code].kind == "damage":
        fix += " (every kind of damage: --set data.on_bad_row=skip)"
    return DataError(f"{reason} ({code})", where=where, fix=fix)


def refuse_decided(rows: Rows, summary: Summary, actions: Mapping[str, RowAction]) -> None:
    """Raise DataError for copies, contradictions or contaminated rows where the policy is to fail."""
    decided = sorted(row for row, (code, _) in rows.left_out.items() if actions.get(code) == "fail")
    if decided:
        code, reason = rows.left_out[decided[0]]
        raise refused_row(rows.place(decided[0]), code, reason)
    num_hits = summary.reasons["contaminated"]
    if num_hits and actions["contaminated"] == "fail":
        hits = summary.examples["contaminated"]
        shown = "\n".join(f"  {entry.file}:{entry.line}: {entry.reason}" for entry in hits)
        raise DataError(
            f"{num_hits} training row{'s repeat' if num_hits > 1 else ' repeats'} what the model will be tested on"
            f"\n{shown}",
            where=f"{hits[0].file}:{hits[0].line}",
            fix="leave them out: --set data.policies.contaminated=skip (data/ledger.jsonl lists every one)",
        )


def refuse_unusable(summary: Summary, config: Config, where: str | None) -> None:
    """Raise DataError where nothing is left to train on, or more rows are damaged than data.max_bad_fraction."""
    limit, num_read = config.data.max_bad_fraction, summary.num_read
    if not summary.by_split["train"]:
        raise DataError(
            "nothing to train on: " + (_worst(summary) or "the sources hold no rows"),
            where=where,
            expected="at least one usable row in the training files",
        )
    if summary.num_damaged > limit * num_read:
        shown = "\n".join(f"  {e.file}:{e.line}: {e.reason} ({e.codes[0]})" for e in summary.bad[:NUM_SHOWN_ROWS])
        share = summary.num_damaged / num_read
        raise DataError(
            f"{summary.num_damaged} of {num_read} rows cannot be used ({share:.1%}; "
            f"data.max_bad_fraction allows {limit:.1%})\n{shown}",
            where=summary.bad[0].file,
            fix=f"mend the rows (data/ledger.jsonl lists them), or allow more: "
            f"--set data.max_bad_fraction={min(1.0, share + 0.01):.2f}",
        )


def _worst(summary: Summary) -> str:
    first: dict[str, Entry] = {}
    for code, entries in summary.examples.items():
        dropped = [entry for entry in entries if entry.action == "dropped"]
        if dropped:
            first[code] = dropped[0]
    counts = Counter({code: summary.reasons[code] for code in first})
    return ", ".join(
        f"{count} {code} (first: {first[code].file}:{first[code].line})" for code, count in counts.most_common()
    )
