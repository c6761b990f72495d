"""The released model measured again: its numbers now against those it was released with. Reads reports, loads no model.

Decoding is greedy and the items are the same, so nothing but the model's bytes, a library or the machine can move a
number; there is no sample to be unlucky with. The sign test says only whether changed items lean to one side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halo_forge.artifacts import Comparison, EvalReport, Measurement
from halo_forge.monitor.records import MetricChange, RegressionReport
from halo_forge.monitor.significance import sign_test_p
from halo_forge.runs import provenance

Answers = Mapping[str, Mapping[str, Any]]
"""Row id -> the tuned model's answer: text and scores."""


def compare_with_release(
    released: EvalReport,
    now: EvalReport,
    answers: tuple[Answers, Answers] | None,
    max_regression: float,
    release: str | None,
    config_sha256: str,
) -> RegressionReport:
    """`answers`: those of the release and those of now, where both are at hand."""
    tuned = _changes(released, now, "tuned", answers, max_regression)
    base = _changes(released, now, "base", None, max_regression)
    libraries = _changed_libraries(released, now)
    verdict, reason = _verdict(tuned, base, libraries)
    num_changed = None
    if answers is not None:
        before, after = answers
        num_changed = sum(before[key]["text"] != after[key]["text"] for key in before.keys() & after.keys())
    return RegressionReport(
        provenance=provenance(config_sha256, {"weights": now.weights_sha256, "holdout": now.holdout_sha256}),
        verdict=verdict,
        reason=reason,
        release=release,
        num_items=now.num_items,
        num_answers_changed=num_changed,
        changes=tuned,
        base_changes=base,
        changed_libraries=libraries,
    )


def _verdict(
    tuned: tuple[MetricChange, ...], base: tuple[MetricChange, ...], libraries: Mapping[str, Any]
) -> tuple[Any, str]:
    measured = [change for change in tuned if change.verdict != "not_measured"]
    if not measured:
        return "not_measured", "no metric was measured both at the release and now"
    worse = [change for change in measured if change.verdict == "worse"]
    if not worse:
        return "ok", f"{len(measured)} metrics are as they were released, within monitor.max_regression"
    names = ", ".join(f"{change.metric} {change.released:.4g} -> {change.now:.4g}" for change in worse)
    moved = any(change.verdict not in ("same", "not_measured") for change in base)
    why = "the base model moved too, so a library or the machine did it" if moved else "the base model did not move"
    return "regressed", f"{names}; {why}" + (f" (changed: {', '.join(sorted(libraries))})" if libraries else "")


def _changes(
    released: EvalReport, now: EvalReport, side: str, answers: tuple[Answers, Answers] | None, max_regression: float
) -> tuple[MetricChange, ...]:
    before = {row.metric: row for row in released.comparisons if row.tuned.slice == "all"}
    after = {row.metric: row for row in now.comparisons if row.tuned.slice == "all"}
    return tuple(
        _change(getattr(row, side), _side(after.get(metric), side), answers, max_regression)
        for metric, row in before.items()
    )


def _side(row: Comparison | None, side: str) -> Measurement | None:
    return getattr(row, side) if row is not None else None


def _change(
    before: Measurement, after: Measurement | None, answers: tuple[Answers, Answers] | None, max_regression: float
) -> MetricChange:
    if before.value is None or after is None or after.value is None:
        return MetricChange(
            metric=before.metric, released=before.value, now=after.value if after else None, change=None,
            tolerance=max_regression, verdict="not_measured", num_items=after.n if after else 0,
        )  # fmt: skip
    is_share = before.direction == "higher" and max(abs(before.value), abs(after.value)) <= 1
    tolerance = max_regression if is_share else max_regression * abs(before.value)
    change = after.value - before.value
    if change == 0:
        verdict: Any = "same"
    elif abs(change) <= tolerance or before.direction == "none":
        verdict = "changed"
    else:
        verdict = "better" if (change > 0) == (before.direction == "higher") else "worse"
    signs = _signs(before.metric, answers) if answers is not None else None
    return MetricChange(
        metric=before.metric,
        released=before.value,
        now=after.value,
        change=change,
        tolerance=tolerance,
        verdict=verdict,
        num_items=after.n,
        changed_items=sum(signs) if signs else None,
        p_value=sign_test_p(*signs) if signs else None,
    )


def _signs(metric: str, answers: tuple[Answers, Answers]) -> tuple[int, int] | None:
    """(items whose score rose, items whose score fell); None where no item has a score of this metric."""
    before, after = answers
    pairs = [
        (before[key]["scores"][metric], after[key]["scores"][metric])
        for key in before.keys() & after.keys()
        if metric in before[key]["scores"] and metric in after[key]["scores"]
    ]
    if not pairs:
        return None
    return sum(new > old for old, new in pairs), sum(new < old for old, new in pairs)


def _changed_libraries(released: EvalReport, now: EvalReport) -> dict[str, tuple[str | None, str | None]]:
    before = {**released.provenance.libraries, "halo-forge": released.provenance.code_version}
    after = {**now.provenance.libraries, "halo-forge": now.provenance.code_version}
    names = sorted({*before, *after})
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def read_answers(path: Path) -> Answers | None:
    """The tuned model's answers of an answers.jsonl, or None where the file is not there or is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return {row["id"]: {"text": row["tuned"]["text"], "scores": dict(row["tuned"]["scores"])} for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None
