"""How many rows went where, and the one sentence that says it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from halo_forge.artifacts import Finding, PreparedData
from halo_forge.report.read_run import RunFiles
from halo_forge.report.visible import cut
from halo_forge.report.wording import count, plural

WORDS_CHARS = 300
MAX_WARNINGS = 4
MUCH_DAMAGE_FRAC = 0.05
# kind of finding -> (title, what such rows are). The order is the order of the page.
KINDS: dict[str, tuple[str, str]] = {
    "damage": ("Damaged", "rows that cannot be used as they are"),
    "contamination": ("Benchmark repeats", "rows that a later score must not be allowed to know"),
    "privacy": ("Private or secret", "rows that name people or hold keys"),
    "quality": ("Quality", "rows that would teach something unwanted"),
    "duplicate": ("Copies", "rows that say what an earlier row says"),
    "policy": ("Left out by the settings", "sound rows that the configuration does not want"),
    "mended": ("Mended", "rows that are used after a mend"),
    "flag": ("Noticed", "rows that are used as they are"),
    "out": ("Left out", "rows that are not used"),
}
CONTAMINATED = "contaminated"
OLD_ADVICE = re.compile(r"^[\d,. ]+(training )?(rows?|examples?|conversations?): ")


@dataclass(frozen=True, slots=True)
class Totals:
    read: int
    kept: int
    fixed: int
    dropped: int


def totals(files: RunFiles) -> Totals:
    """From the record where there is one, from the ledger where the stage stopped before it wrote one."""
    if files.prepared is not None:
        sources = files.prepared.sources
        return Totals(
            sum(source.read for source in sources),
            sum(source.kept for source in sources),
            sum(source.fixed for source in sources),
            sum(source.dropped for source in sources),
        )
    actions = files.ledger.actions
    return Totals(actions.total(), actions["kept"] + actions["fixed"], actions["fixed"], actions["dropped"])


def data_verdict(files: RunFiles) -> str:
    """`7,473 rows read: 7,401 kept (12 of them mended), 72 left out; enough to specialise in a task.`"""
    found = totals(files)
    mended = f" ({count(found.fixed)} of them mended)" if found.fixed else ""
    if files.prepared is None:
        usable = f"{count(found.kept)} could be used{mended}"
        return (
            f"{count(found.read)} rows read: {usable}, {count(found.dropped)} could not. No training set was written."
        )
    text = f"{plural(found.read, 'row')} read: {count(found.kept)} kept{mended}, {count(found.dropped)} left out"
    advice = _advice(files.prepared)
    if not advice:
        return f"{text}."
    return f"{text}; {advice}." if advice[0].islower() else f"{text}. {advice}."


def data_warnings(files: RunFiles) -> tuple[str, ...]:
    """What a person should look at before training on these rows, a sentence each: much damage, and what stays by
    his own settings although it can spoil a score or leak."""
    found, damaged = totals(files), dropped_by_kind(files).get("damage", 0)
    warnings = [f"{count(damaged)} of them are damaged."] if damaged > MUCH_DAMAGE_FRAC * found.read else []
    for finding in recorded_findings(files):
        is_risk = finding.code == CONTAMINATED or finding.kind == "privacy"
        if is_risk and finding.action == "keep" and finding.rows:
            warnings.append(f"{plural(finding.rows, 'kept row')}: {cut(finding.meaning, 120)}.")
    return tuple(warnings[:MAX_WARNINGS])


def _advice(prepared: PreparedData) -> str:
    """What so many rows are enough for. Records of earlier versions say it among their notes."""
    said = prepared.advice or next((note for note in prepared.notes if OLD_ADVICE.match(note)), "")
    return cut(OLD_ADVICE.sub("", said).strip().rstrip("."), WORDS_CHARS)


def dropped_by_kind(files: RunFiles) -> dict[str, int]:
    """Every dropped row under one kind, so that they add up to the rows left out. Where neither ledger nor findings
    account for exactly these rows (a record without them), what is not accounted for stands under `out`."""
    num_dropped = totals(files).dropped
    kinds = _kinds(files)
    counts: Counter[str] = Counter()
    for code, rows in files.ledger.dropped_by_code.items():
        counts[kinds.get(code, "out")] += rows
    if counts.total() != num_dropped and files.prepared is not None:
        counts.clear()
        for finding in files.prepared.findings:
            if finding.action in ("skip", "quarantine"):
                counts[kind_of(finding.kind)] += finding.rows
    if counts.total() > num_dropped:  # rows with two reasons
        counts.clear()
    counts["out"] += num_dropped - counts.total()
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _kinds(files: RunFiles) -> dict[str, str]:
    return {finding.code: kind_of(finding.kind) for finding in recorded_findings(files)}


def kind_of(name: str) -> str:
    return name if name in KINDS else "out"


def recorded_findings(files: RunFiles) -> tuple[Finding, ...]:
    return files.prepared.findings if files.prepared else ()
