"""What added rows did: on the holdout metric by metric, and on the validation rows cluster by cluster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halo_forge.artifacts import Comparison
from halo_forge.errors import DataError
from halo_forge.evaluate.compare import compare_items
from halo_forge.evaluate.item_scores import SCORES
from halo_forge.evaluate.released import compare_versions, read_scores, why_not_comparable
from halo_forge.evaluate.statistics import Resampling
from halo_forge.failures.inspection import Inspected
from halo_forge.failures.records import ClusterOutcome, Iteration, MetricOutcome
from halo_forge.pipeline import RunResult
from halo_forge.report.wording import interval, metric_change, metric_value, outcome
from halo_forge.sampling.run import RunFacts

NUM_BROKE_SHOWN = 5


def measured_iteration(
    begun: Iteration, parent: RunFacts, result: RunResult, before: Inspected, after: Inspected
) -> Iteration:
    """The iteration with its numbers. What could not be compared is a note."""
    was, now = _right(before), _right(after)
    if [one.id for one in before.shown] != [one.id for one in after.shown]:
        raise DataError("the two runs did not answer the same validation rows", where=begun.run)
    metrics, notes = _on_holdout(parent, result)
    broke = np.flatnonzero((was == 1) & (now == 0))
    place_of = {one.id: at for at, one in enumerate(after.shown)}
    clusters = tuple(
        ClusterOutcome(
            id=cluster.id, name=cluster.name, failed=cluster.num,
            right_now=sum(int(now[place_of[item]] == 1) for item in cluster.items),
        )
        for cluster in before.record.clusters
    )  # fmt: skip
    assert result.trained is not None
    return begun.model_copy(
        update={
            "weights_sha256": result.trained.weights_sha256,
            "metrics": metrics,
            "clusters": clusters,
            "num_failed_before": int((was == 0).sum()),
            "num_right_now": int(((was == 0) & (now == 1)).sum()),
            "num_right_before": int((was == 1).sum()),
            "num_broke": len(broke),
            "broke": tuple(after.shown[at] for at in broke[:NUM_BROKE_SHOWN]),
            "validation": _on_validation(parent, before, was, now),
            "notes": notes,
        }
    )


def _right(inspected: Inspected) -> np.ndarray:
    return inspected.deciding.right


def _resampling(parent: RunFacts) -> Resampling:
    config = parent.config
    return Resampling(config.evaluation.confidence, config.evaluation.bootstrap_samples, config.training.seed)


def _on_validation(parent: RunFacts, before: Inspected, was: np.ndarray, now: np.ndarray) -> Comparison:
    name = before.record.measurement.metric
    (found,) = compare_items(
        name, "higher", "rate", was, now, {}, _resampling(parent), is_subsampled=before.answered.is_subsampled
    )
    return found


def _on_holdout(parent: RunFacts, result: RunResult) -> tuple[tuple[MetricOutcome, ...], tuple[str, ...]]:
    """Before against after in pairs, and the base beside them; or why that cannot be."""
    report = result.report
    if report is None:
        return (), ("evaluation.enabled is false: nothing was measured on the holdout",)
    try:
        own, other = read_scores(result.directory / SCORES), read_scores(parent.directory.file(SCORES))
    except DataError as error:
        return (), (f"not compared on the holdout: {error.what} ({error.where})",)
    problem = why_not_comparable(own, other)
    if problem is not None:
        return (), (f"not compared on the holdout: {problem}",)
    base = {row.metric: row.base for row in report.overall}
    found = compare_versions(own, other, report, _resampling(parent))
    of_all = [row for row in found if row.slice == "all" and row.metric in base]
    order = {metric: at for at, metric in enumerate(base)}
    of_all.sort(key=lambda row: order[row.metric])
    return tuple(MetricOutcome(metric=row.metric, base=base[row.metric], change=row) for row in of_all), ()


# ------------------------------------------------------------------------------------------------ words


def iteration_words(found: Iteration) -> str:
    """The iteration for a person: what was added, what it did where it counts, what it did to the failures."""
    lines = [
        f"{found.run}: {found.num_added} of {found.num_read} rows added to {found.num_train_rows_before} "
        f"of {found.parent}",
        *(f"  line {row.line} left out: {row.reason} [{row.code}]" for row in found.left_out[:NUM_BROKE_SHOWN]),
    ]
    if len(found.left_out) > NUM_BROKE_SHOWN:
        lines.append(f"  and {len(found.left_out) - NUM_BROKE_SHOWN} more left out, in data/ledger.jsonl")
    if found.metrics:
        lines += ["", "on the holdout, the same items for all three:", *_table(found.metrics)]
    lines += ["", "on the validation rows that the added ones were written against:"]
    for cluster in found.clusters:
        lines.append(f"  {cluster.id}  {cluster.right_now} of {cluster.failed} are right now  {cluster.name}")
    lines.append(
        f"  in all {found.num_right_now} of {found.num_failed_before} failures are right now, and "
        f"{found.num_broke} of {found.num_right_before} that were right broke"
    )
    return "\n".join([*lines, *(f"  {note}" for note in found.notes)])


def _table(metrics: Sequence[MetricOutcome]) -> list[str]:
    rows = [("", "base", "before", "after", "change", "", "")]
    for one in metrics:
        change, name = one.change, one.metric
        rows.append(
            (
                name, metric_value(name, one.base.value), metric_value(name, change.base.value),
                metric_value(name, change.tuned.value), metric_change(name, change.delta.value),
                interval(name, change.delta, is_change=True), outcome(change),
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
