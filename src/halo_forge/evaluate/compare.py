"""Two measured models -> Comparisons: one for each metric over all items, and one for each metric and slice.

`compare_items` is the whole of it for one metric made of scores per item, whatever the items are: rows of the holdout
or prompts of a suite. Axes: N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from halo_forge.artifacts import Comparison, Direction, Measurement, Status
from halo_forge.evaluate.metrics import METRICS
from halo_forge.evaluate.slices import MIN_SLICE_ITEMS
from halo_forge.evaluate.statistics import (
    FloatArray,
    Interval,
    PairedEstimate,
    Resampling,
    compare_error_rates,
    compare_labels,
    compare_means,
    compare_perplexities,
    compare_rates,
    compare_ratios,
)
from halo_forge.metrics import METRIC_FACTS

if TYPE_CHECKING:  # they import torch, and two versions' kept scores are compared without it
    from halo_forge.evaluate.measure import Measured
    from halo_forge.evaluate.retention import Retention
    from halo_forge.evaluate.score import ItemKind, Scored

BoolArray = npt.NDArray[np.bool_]
Slices = Mapping[str, BoolArray]
"""NAME=LABEL -> which items [N]; see `slices.slice_masks`."""


@dataclass(frozen=True, slots=True)
class Comparing:
    """How all metrics are compared. is_subsampled: answers of fewer rows than there are, by evaluation.max_prompts."""

    resampling: Resampling
    slices: Slices
    is_subsampled: bool = False


def compare_items(
    metric: str,
    direction: Direction,
    kind: ItemKind,
    base: FloatArray,
    tuned: FloatArray,
    slices: Slices,
    resampling: Resampling,
    *,
    is_subsampled: bool = False,
) -> tuple[Comparison, ...]:
    """Everything for one metric: over all items, then over each slice.

    base, tuned  scores of the same items [N]; nan where an item says nothing about the metric (it then counts for
                 neither). kind: "rate" 0 or 1, "fraction" in [0, 1], "count" any real
    slices       NAME=LABEL -> mask [N], {} for none
    Where nothing is left to compare, one comparison says `not_measured`; a slice with fewer than MIN_SLICE_ITEMS items
    left does so too. Raises ValueError for scores that are not of their kind.
    """
    usable = ~(np.isnan(base) | np.isnan(tuned))
    _check_kind(metric, kind, base[usable], tuned[usable])

    def compare(chosen: BoolArray) -> Comparison:
        picked = chosen & usable
        return _compare_scores(metric, direction, kind, (base[picked], tuned[picked]), resampling)

    return over_slices(compare, usable, slices, is_subsampled)


def over_slices(
    compare: Callable[[BoolArray], Comparison], usable: BoolArray, slices: Slices, is_subsampled: bool
) -> tuple[Comparison, ...]:
    """compare(mask [N]) over all items and over each slice. usable [N]: the items that say anything."""
    whole = marked(compare(np.ones_like(usable)), "all", is_subsampled)
    rows = [whole]
    for name, mask in slices.items() if whole.tuned.status == "measured" else ():
        num = int((mask & usable).sum())
        if num < MIN_SLICE_ITEMS:
            reason = f"{num} items of this slice say something about the metric; at least {MIN_SLICE_ITEMS} must"
            row = not_compared(whole.metric, "not_measured", reason, n=num, direction=whole.delta.direction)
        else:
            row = compare(mask)
        rows.append(marked(row, name, is_subsampled))
    return tuple(rows)


def marked(row: Comparison, slice_name: str, is_subsampled: bool) -> Comparison:
    marks = {"slice": slice_name, "subsampled": is_subsampled}
    sides = {side: getattr(row, side).model_copy(update=marks) for side in ("base", "tuned", "delta")}
    return row.model_copy(update=sides)


def compare_metrics(
    scored: Scored,
    base: Measured,
    tuned: Measured,
    general: Retention | None,
    how: Comparing,
    *,
    wanted: frozenset[str],
) -> tuple[Comparison, ...]:
    """Metrics in the order of the table, the user's own before those of the general texts. One that does not apply is
    left out, unless it is `wanted` (a gate rule reads it): then it is there as not measured, with the reason."""
    rows: list[Comparison] = []
    for name in (*METRICS, *scored.own):
        kind = METRICS[name].kind if name in METRICS else None
        if kind == "general":
            continue
        if name in scored.failed:
            rows.append(not_compared(name, "failed", scored.failed[name], direction=_direction(name, scored)))
        elif name in scored.unmeasured:
            rows.append(not_compared(name, "not_measured", scored.unmeasured[name]))
        elif name in scored.inapplicable:
            if name in wanted:
                rows.append(not_compared(name, "not_measured", scored.inapplicable[name]))
        elif kind == "perplexity":
            rows += _compare_nll(name, base, tuned, how)
        elif kind == "ratio":
            rows += _compare_lengths(name, scored, how)
        elif kind == "errors":
            rows += _compare_errors(name, scored, how)
        elif kind == "classes":
            rows += _compare_classes(name, scored, how)
        else:
            rows += compare_items(
                name, _direction(name, scored), scored.kind(name), scored.base[name], scored.tuned[name],
                how.slices, how.resampling, is_subsampled=how.is_subsampled,
            )  # fmt: skip
    return (*rows, *compare_retention(general, how.resampling))


def _direction(name: str, scored: Scored) -> Direction:
    return METRICS[name].direction if name in METRICS else scored.own[name]


def compare_retention(general: Retention | None, resampling: Resampling) -> tuple[Comparison, ...]:
    """general_perplexity and general_kl; the base is no distance from itself, so the latter has no test."""
    names = [name for name, metric in METRICS.items() if metric.kind == "general"]
    if general is None:
        reason = "no general text can be written with this tokenizer"
        return tuple(not_compared(name, "not_measured", reason) for name in names)
    perplexity = _compare_sums(names[0], general.base_nll, general.tuned_nll, general.num_tokens, resampling)
    kl = _compare_sums(names[1], np.zeros_like(general.kl), general.kl, general.num_tokens, resampling)
    return perplexity, kl.model_copy(update={"p_value": None, "test": None})


def _compare_nll(name: str, base: Measured, tuned: Measured, how: Comparing) -> tuple[Comparison, ...]:
    """Every row with an answer to measure counts, also those beyond evaluation.max_prompts."""
    usable = base.num_tokens > 0

    def compare(chosen: BoolArray) -> Comparison:
        of = chosen & usable
        return _compare_sums(name, base.nll_sums[of], tuned.nll_sums[of], base.num_tokens[of], how.resampling)

    return over_slices(compare, usable, how.slices, is_subsampled=False)


def _compare_sums(
    name: str, base: FloatArray, tuned: FloatArray, num_tokens: npt.NDArray[np.int64], resampling: Resampling
) -> Comparison:
    """Sums of nats over the tokens of each text [N]."""
    n = len(num_tokens)
    if not n:
        return not_compared(name, "not_measured", "no holdout row has an answer to measure")
    bad = int((~(np.isfinite(base) & np.isfinite(tuned))).sum())
    if bad:
        reason = f"the likelihood of {bad} of {n} answers is not a finite number"
        return not_compared(name, "failed", reason, n=n)
    compare = compare_ratios if name == "general_kl" else compare_perplexities
    estimate = compare(base, tuned, num_tokens, resampling)
    if not np.isfinite([estimate.base, estimate.tuned]).all():
        return not_compared(name, "failed", "the perplexity is too large for a number", n=n)
    if METRICS[name].direction == "none":
        return comparison_of(name, "none", estimate, n, (0, 0))
    changes = int((tuned < base).sum()), int((tuned > base).sum())
    return comparison_of(name, METRICS[name].direction, estimate, n, changes)


def _compare_lengths(name: str, scored: Scored, how: Comparing) -> tuple[Comparison, ...]:
    """Words over words, summed over items: of the references for both, or of the base, which then is 1."""
    base, tuned, reference = scored.words
    against = reference if name == "length_to_reference" else base
    usable = ~(np.isnan(base) | np.isnan(tuned) | np.isnan(against))

    def compare(chosen: BoolArray) -> Comparison:
        of = chosen & usable & (against > 0)  # an empty one has no length to hold another against
        if not of.any():
            return not_compared(name, "not_measured", "no text to hold the answers' length against", direction="none")
        estimate = compare_ratios(base[of], tuned[of], against[of], how.resampling)
        return comparison_of(name, "none", estimate, int(of.sum()), (0, 0))

    return over_slices(compare, usable & (against > 0), how.slices, how.is_subsampled)


def _compare_errors(name: str, scored: Scored, how: Comparing) -> tuple[Comparison, ...]:
    """All edits over all words (or characters) of the references; items are resampled whole."""
    base, tuned, num_units = scored.base[name], scored.tuned[name], scored.units[name]
    usable = ~(np.isnan(base) | np.isnan(tuned)) & (num_units > 0)

    def compare(chosen: BoolArray) -> Comparison:
        of = chosen & usable
        if not of.any():
            return not_compared(name, "not_measured", "no answer was generated that this metric applies to")
        weights = num_units[of]
        estimate = compare_error_rates(base[of] * weights, tuned[of] * weights, weights, how.resampling)
        changes = int((tuned < base)[of].sum()), int((tuned > base)[of].sum())
        return comparison_of(name, METRICS[name].direction, estimate, int(of.sum()), changes)

    return over_slices(compare, usable, how.slices, how.is_subsampled)


def _compare_classes(name: str, scored: Scored, how: Comparing) -> tuple[Comparison, ...]:
    assert scored.labels is not None
    base, tuned, expected = scored.labels
    usable: BoolArray = expected.any(axis=1)

    def compare(chosen: BoolArray) -> Comparison:
        of = chosen & usable
        estimate = compare_labels(base[of], tuned[of], expected[of], how.resampling)
        hits, before = ((side * expected)[of].any(axis=1) for side in (tuned, base))
        changes = int((hits & ~before).sum()), int((before & ~hits).sum())
        return comparison_of(name, "higher", estimate, int(of.sum()), changes)

    return over_slices(compare, usable, how.slices, how.is_subsampled)


def kind_of(base: FloatArray, tuned: FloatArray) -> ItemKind:
    """The kind of scores [N] that nobody declared: 0 and 1 are a rate, others between them a fraction, else a count."""
    scores = np.concatenate([base, tuned])
    scores = scores[~np.isnan(scores)]
    if np.isin(scores, (0, 1)).all():
        return "rate"
    return "fraction" if ((scores >= 0) & (scores <= 1)).all() else "count"


def _check_kind(metric: str, kind: ItemKind, base: FloatArray, tuned: FloatArray) -> None:
    scores = np.concatenate([base, tuned])
    fits = {
        "rate": np.isin(scores, (0, 1)).all(),
        "fraction": ((scores >= 0) & (scores <= 1)).all(),
        "count": np.isfinite(scores).all(),
    }[kind]
    if len(base) != len(tuned) or not fits:
        raise ValueError(f"the scores of {metric} are not those of a {kind}")


def _compare_scores(
    metric: str, direction: Direction, kind: ItemKind, scores: tuple[FloatArray, FloatArray], resampling: Resampling
) -> Comparison:
    base, tuned = scores
    if not len(base):
        reason = "no answer was generated that this metric applies to"
        return not_compared(metric, "not_measured", reason, direction=direction)
    if kind == "rate":
        estimate = compare_rates(base, tuned, resampling.confidence)
    else:
        estimate = compare_means(base, tuned, resampling, bounded=kind == "fraction")
    if direction == "none":
        return comparison_of(metric, direction, estimate, len(base), (0, 0))
    better: BoolArray = tuned > base if direction == "higher" else tuned < base
    wins = int(better.sum())
    return comparison_of(metric, direction, estimate, len(base), (wins, int((tuned != base).sum()) - wins))


def comparison_of(
    name: str, direction: Direction, estimate: PairedEstimate, n: int, changes: tuple[int, int]
) -> Comparison:
    """An estimate as a record. changes: items won and lost."""
    note = "one item gives no interval" if n == 1 and estimate.delta_interval is None else None

    def measurement(value: float, interval: Interval | None, error: float | None) -> Measurement:
        return Measurement(
            metric=name,
            value=value,
            n=n,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            direction=direction,
            note=note,
            standard_error=error,
        )

    base_error, tuned_error, delta_error = estimate.errors
    return Comparison(
        metric=name,
        base=measurement(estimate.base, estimate.base_interval, base_error),
        tuned=measurement(estimate.tuned, estimate.tuned_interval, tuned_error),
        delta=measurement(estimate.delta, estimate.delta_interval, delta_error),
        wins=changes[0],
        losses=changes[1],
        p_value=estimate.p_value,
        test=estimate.test if estimate.p_value is not None else None,
    )


def not_compared(
    name: str, status: Status, reason: str, *, n: int = 0, direction: Direction | None = None
) -> Comparison:
    """A metric that keeps its place without a number. direction: by the table, where it is not given."""
    empty = Measurement(
        metric=name, value=None, n=n, status=status, direction=direction or METRIC_FACTS[name].direction, note=reason
    )  # fmt: skip
    return Comparison(metric=name, base=empty, tuned=empty, delta=empty)
