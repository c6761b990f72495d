"""What changed between two versions, and what it did: data, mix, configuration, software, and every metric.

Read from what the versions hold; no model answers anew. Where both kept the scores of single items and were asked the
same ones, a change is judged in pairs (verdict.pair_versions); else from both intervals, and only on the same holdout:
on another one the numbers are shown and called not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from halo_forge.artifacts import Comparison, Direction, EvalReport, Measurement, PreparedData, Record
from halo_forge.config import flatten
from halo_forge.errors import UsageError
from halo_forge.publish.history import complete_versions
from halo_forge.publish.manifest import Manifest, read_manifest
from halo_forge.publish.registry import version_directory
from halo_forge.publish.released import kept_scores
from halo_forge.runs import read_artifact

EVAL_REPORT, DATA_MANIFEST = "eval/report.json", "data/manifest.json"
Outcome = Literal["better", "worse", "unchanged", "unclear", "not comparable", "not measured"]


class Change(Record):
    """`before` and `after` in words of JSON; None where there was, or is, nothing."""

    what: str
    before: Any = None
    after: Any = None


class MetricChange(Record):
    """`low` and `high` bound the change: of `num_pairs` items that both have a score of, in pairs; 0: from the two
    intervals (their half-widths added in squares). `outcome` is better or worse only where that leaves zero out."""

    metric: str
    direction: Direction
    before: Measurement | None
    after: Measurement | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    num_pairs: int = 0
    outcome: Outcome


class VersionDiff(Record):
    """`same_holdout` None: one of the two has none."""

    name: str
    before: int
    after: int
    verdicts: tuple[str, str]
    same_weights: bool
    same_holdout: bool | None
    data: tuple[Change, ...]
    mix: tuple[Change, ...]
    config: tuple[Change, ...]
    software: tuple[Change, ...]
    model: tuple[Change, ...]
    metrics: tuple[MetricChange, ...]


Pair = Callable[[Sequence[Path], Sequence[Path], EvalReport], Mapping[str, Comparison]]
"""(files of item scores before, those after, the report after) -> metric -> the comparison in pairs."""


def diff_versions(
    registry: Path, name: str, before: int | str, after: int | str, pair: Pair | None = None
) -> VersionDiff:
    """Hold two versions of a model against each other. Raises ModelNotFound, DataError for records that cannot be
    read, UsageError where both names are one version."""
    old_place, new_place = (version_directory(registry, name, version) for version in (before, after))
    if old_place == new_place:
        raise UsageError(
            f"both are {name} {old_place.name}", expected="two versions", fix=f"halo-forge models log {name}"
        )
    old, new = read_manifest(old_place), read_manifest(new_place)
    old_data, new_data = (read_artifact(place / DATA_MANIFEST, PreparedData) for place in (old_place, new_place))
    old_report, new_report = (read_artifact(place / EVAL_REPORT, EvalReport) for place in (old_place, new_place))
    holdouts = [manifest.split_sha256.get("holdout") for manifest in (old, new)]
    same_holdout = None if None in holdouts else holdouts[0] == holdouts[1]
    kept = [kept_scores(place, manifest)[0] for place, manifest in ((old_place, old), (new_place, new))]
    paired = pair(*kept, new_report) if pair is not None and all(kept) else {}
    return VersionDiff(
        name=name,
        before=old.version,
        after=new.version,
        verdicts=(old.verdict, new.verdict),
        same_weights=old.weights_sha256 == new.weights_sha256,
        same_holdout=same_holdout,
        data=_changes(_data_facts(old_data), _data_facts(new_data)),
        mix=_changes(_mix(old_data), _mix(new_data)),
        config=_changes(_settings(old), _settings(new)),
        software=_changes(_software(old), _software(new)),
        model=_changes(_model(old), _model(new)),
        metrics=_metric_changes(old_report, new_report, paired, comparable=bool(same_holdout)),
    )


def previous_version(registry: Path, name: str, version: int) -> int | None:
    """The version that was published before this one and is still here."""
    older = [number for number in complete_versions(registry / name) if number < version]
    return older[-1] if older else None


def _changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[Change, ...]:
    keys = list(dict.fromkeys([*before, *after]))
    pairs = ((key, before.get(key), after.get(key)) for key in keys)
    return tuple(Change(what=key, before=old, after=new) for key, old, new in pairs if old != new)


# ---------------------------------------------------------------------------------------------- what went in


def _data_facts(prepared: PreparedData) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for source in prepared.sources:
        name = f"source {source.name or Path(source.path).name}"
        facts[f"{name}, sha256"] = source.sha256[:16]
        facts |= {f"{name}, rows {key}": getattr(source, key) for key in ("read", "kept", "fixed", "dropped")}
    for split, report in prepared.splits.items():
        facts |= {
            f"{split}, rows": report.rows,
            f"{split}, tokens": report.tokens,
            f"{split}, trained tokens": report.supervised_tokens,
            f"{split}, sha256": report.sha256[:16],
        }
    return facts | {f"rows with {code}": rows for code, rows in prepared.reasons.items()}


def _mix(prepared: PreparedData) -> dict[str, Any]:
    """Each source's share of the trained tokens, as far as the preparation recorded it, and its weight in the loss."""
    total = sum(source.train_supervised_tokens for source in prepared.sources)
    shares: dict[str, Any] = {}
    for source in prepared.sources:
        name = source.name or Path(source.path).name
        if total:
            shares[f"{name}, share of trained tokens"] = round(source.train_supervised_tokens / total, 4)
        shares[f"{name}, loss weight"] = source.loss_weight
    return shares


def _settings(manifest: Manifest) -> dict[str, Any]:
    """Every key; where a run writes and how it is published is no difference between models."""
    return {
        key: value for key, value in flatten(manifest.config).items() if key.split(".")[0] not in ("output", "publish")
    }


def _software(manifest: Manifest) -> dict[str, Any]:
    return {"halo-forge": manifest.provenance.code_version} | dict(manifest.provenance.libraries)


def _model(manifest: Manifest) -> dict[str, Any]:
    names = (
        "base_model", "base_revision", "base_model_sha256", "method", "template_sha256", "base_tokenizer_sha256",
        "tokenizer_files_sha256", "generation_config_sha256",
    )  # fmt: skip
    return {name: getattr(manifest, name) for name in names}


# ---------------------------------------------------------------------------------------------- what came out


def _metric_changes(
    before: EvalReport, after: EvalReport, paired: Mapping[str, Comparison], *, comparable: bool
) -> tuple[MetricChange, ...]:
    old = {row.metric: row.tuned for row in before.overall}
    new = {row.metric: row.tuned for row in after.overall}
    return tuple(
        _paired_change(old[metric], new[metric], paired[metric])
        if metric in paired and metric in old and metric in new
        else _metric_change(metric, old.get(metric), new.get(metric), comparable or metric.startswith("general_"))
        for metric in dict.fromkeys([*old, *new])
    )


def _paired_change(before: Measurement, after: Measurement, found: Comparison) -> MetricChange:
    delta = found.delta
    change = MetricChange(metric=found.metric, direction=after.direction, before=before, after=after, outcome="unclear")
    if delta.value is None:
        return change.model_copy(update={"outcome": "not measured"})
    low, high = (delta.value if bound is None else bound for bound in (delta.low, delta.high))
    return change.model_copy(
        update={"change": delta.value, "low": delta.low, "high": delta.high, "num_pairs": delta.n,
                "outcome": _outcome(after.direction, delta.value, low, high)}
    )  # fmt: skip


def _metric_change(
    metric: str, before: Measurement | None, after: Measurement | None, comparable: bool
) -> MetricChange:
    some = after or before
    assert some is not None
    change = MetricChange(metric=metric, direction=some.direction, before=before, after=after, outcome="not measured")
    if before is None or after is None or before.value is None or after.value is None:
        return change
    delta = after.value - before.value
    if not comparable:
        return change.model_copy(update={"outcome": "not comparable"})
    bounds = (before.low, before.high, after.low, after.high)
    if any(bound is None for bound in bounds):
        return change.model_copy(update={"change": delta, "outcome": "unchanged" if delta == 0 else "unclear"})
    old_low, old_high, new_low, new_high = (float(bound) for bound in bounds if bound is not None)
    low = delta - math.hypot(after.value - new_low, old_high - before.value)
    high = delta + math.hypot(new_high - after.value, before.value - old_low)
    return change.model_copy(
        update={"change": delta, "low": low, "high": high, "outcome": _outcome(some.direction, delta, low, high)}
    )


def _outcome(direction: Direction, delta: float, low: float, high: float) -> Outcome:
    if delta == 0:
        return "unchanged"
    if low <= 0 <= high or direction == "none":
        return "unclear"
    return "better" if (delta > 0) == (direction == "higher") else "worse"
