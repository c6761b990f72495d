"""Two versions on the same items, from the scores that each kept: compared in pairs, as base and tuned are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import Comparison, EvalReport, Measurement
from halo_forge.errors import DataError
from halo_forge.evaluate.compare import compare_items, comparison_of, kind_of, marked
from halo_forge.evaluate.item_scores import SUITE_SET
from halo_forge.evaluate.statistics import Resampling, compare_error_rates, compare_perplexities
from halo_forge.evaluate.suites.comparing import compare_judged
from halo_forge.evaluate.suites.scoring import Judged
from halo_forge.metrics import BENCH_PREFIX, METRIC_FACTS

LIKELIHOODS: tuple[tuple[str, str], ...] = (("perplexity", "holdout"), ("general_perplexity", "general_texts"))
"""Metrics that are worked out from likelihoods, and the set of items each is of."""

Key = tuple[str, str, int]
"""(set, id, how many lines of this id came before): rows with the same content have the same id."""


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Files of item_scores.py: the first one's header with the sets of all, and the items in the files' order."""

    header: dict[str, Any]
    items: dict[Key, dict[str, Any]]


def read_scores(*paths: Path) -> ItemScores:
    """All files that are there, as one. One whose scores are of other weights than the first one's is left out.
    Raises DataError where none is there, and for one that is no such file."""
    files = [_read_file(path) for path in paths if path.is_file()] or [_read_file(paths[0])]
    alike = [file for file in files if file.header.get("weights_sha256") == files[0].header.get("weights_sha256")]
    sets = {name: sha256 for file in alike for name, sha256 in file.header["sets"].items()}
    return ItemScores(
        {**files[0].header, "sets": sets}, {key: item for file in alike for key, item in file.items.items()}
    )


def _read_file(path: Path) -> ItemScores:
    items: dict[Key, dict[str, Any]] = {}
    seen: dict[tuple[str, str], int] = {}
    try:
        with open(path, encoding="utf-8") as file:
            header = json.loads(next(file))
            if header["schema_version"] != 1 or not isinstance(header["sets"], dict):
                raise ValueError("another version of this file")
            for line in file:
                item = json.loads(line)
                name = (str(item["set"]), str(item["id"]))
                seen[name] = seen.get(name, -1) + 1
                items[(*name, seen[name])] = _checked(item)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        raise DataError(
            "the scores of single items cannot be read",
            where=str(path),
            expected=f"eval/scores.jsonl of an evaluation ({type(error).__name__}: {error})",
            fix="evaluate the run again: `halo-forge evaluate RUN`",
        ) from None
    return ItemScores(header, items)


def _checked(item: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: float(value) for name, value in item.get("scores", {}).items()}
    slices = {str(kind): str(name) for kind, name in item.get("slices", {}).items()}
    checked: dict[str, Any] = {"scores": numbers, "slices": slices}
    if "units" in item:
        checked["units"] = {str(name): int(count) for name, count in item["units"].items()}
    if "nll" in item:
        checked |= {"nll": float(item["nll"]), "num_tokens": int(item["num_tokens"])}
    if not all(map(math.isfinite, (*numbers.values(), checked.get("nll", 0.0)))):
        raise ValueError("a score that is not a finite number")
    return checked


def why_not_comparable(own: ItemScores, other: ItemScores) -> str | None:
    """Why what was scored on the holdout cannot be compared, or None. Suites and benchmarks may be all the same."""
    if own.header["sets"].get("holdout") != other.header["sets"].get("holdout"):
        return "it was evaluated on another holdout, so no item is the same"
    if own.header.get("decoding") != other.header.get("decoding"):
        return f"its answers were decoded otherwise ({other.header.get('decoding')}, here {own.header.get('decoding')})"
    return None


def compare_versions(
    own: ItemScores, other: ItemScores, report: EvalReport, resampling: Resampling
) -> tuple[Comparison, ...]:
    """Each metric over the items that both have a score of, for all items and for each slice; `base` is `other`.

    Items that one of the two has no score of are left out; n says how many are left. A metric that the two measured
    in different ways (another holdout, suite, schema or tokenizer) is not among the comparisons, and neither is one
    that the report has no value of. Raises ValueError for scores that are not of their metric's kind.
    """
    keys = [key for key in own.items if key in other.items and _is_alike(key[0], own.header, other.header)]
    slices = sorted({label for key in keys for label in _labels(own.items[key])})
    overall = (row.tuned for row in report.comparisons if row.tuned.slice == "all")
    rows = {row.metric: row for row in overall if row.status == "measured"}
    comparisons: list[Comparison] = []
    for label in ("all", *slices):
        chosen = [key for key in keys if label == "all" or label in _labels(own.items[key])]
        comparisons += _of_likelihoods(own, other, chosen, label, resampling)
        holdout = [key for key in chosen if key[0] == "holdout"]
        comparisons += _of_scores(own, other, holdout, label, resampling, rows)
    comparisons += _of_suites(own, other, [key for key in keys if key[0].startswith(SUITE_SET)], resampling, rows)
    of_benchmarks = [key for key in keys if key[0].startswith(BENCH_PREFIX)]
    comparisons += _of_scores(own, other, of_benchmarks, "all", resampling, rows)
    return tuple(comparisons)


def _is_alike(of_set: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the two were asked the same items of a set in the same way."""
    is_answered = of_set == "holdout" or of_set.startswith(SUITE_SET)
    if is_answered and own.get("decoding") != other.get("decoding"):
        return False
    return own["sets"].get(of_set) == other["sets"].get(of_set)


def _labels(item: Mapping[str, Any]) -> list[str]:
    return [f"{kind}={name}" for kind, name in item["slices"].items()]


def _of_likelihoods(
    own: ItemScores, other: ItemScores, keys: Sequence[Key], label: str, resampling: Resampling
) -> Iterator[Comparison]:
    for metric, of_set in LIKELIHOODS:
        pairs = [(own.items[key], other.items[key]) for key in keys if key[0] == of_set]
        pairs = [(a, b) for a, b in pairs if "nll" in a and "nll" in b]
        if not pairs or any(a["num_tokens"] != b["num_tokens"] for a, b in pairs):
            continue  # another tokenizer: nats per token of one are not those of the other
        now, before = (np.array([pair[side]["nll"] for pair in pairs]) for side in (0, 1))
        num_tokens = np.array([a["num_tokens"] for a, _ in pairs], dtype=np.int64)
        estimate = compare_perplexities(before, now, num_tokens, resampling)
        changes = int((now < before).sum()), int((now > before).sum())
        yield marked(comparison_of(metric, "lower", estimate, len(pairs), changes), label, False)


def _of_scores(
    own: ItemScores,
    other: ItemScores,
    keys: Sequence[Key],
    label: str,
    resampling: Resampling,
    rows: Mapping[str, Measurement],
) -> Iterator[Comparison]:
    for metric in sorted({name for key in keys for name in own.items[key]["scores"]}):
        if metric not in rows:
            continue
        if metric in METRIC_FACTS and METRIC_FACTS[metric].kind == "errors":
            yield from _of_error_rates(metric, own, other, keys, label, resampling, rows[metric].subsampled)
            continue
        if metric == "schema_valid" and own.header.get("json_schema") != other.header.get("json_schema"):
            continue
        both = [(own.items[key]["scores"], other.items[key]["scores"]) for key in keys]
        pairs = [(a[metric], b[metric]) for a, b in both if metric in a and metric in b]
        if not pairs:
            continue
        now, before = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
        direction = rows[metric].direction
        (found,) = compare_items(metric, direction, kind_of(before, now), before, now, {}, resampling)
        yield marked(found, label, rows[metric].subsampled)


def _of_error_rates(
    metric: str,
    own: ItemScores,
    other: ItemScores,
    keys: Sequence[Key],
    label: str,
    resampling: Resampling,
    subsampled: bool,
) -> Iterator[Comparison]:
    """All edits over all words (or characters); versions of before these were kept are not compared."""
    rates = []
    for key in keys:
        a, b = own.items[key], other.items[key]
        units = a.get("units", {}).get(metric, 0)
        if units and units == b.get("units", {}).get(metric) and metric in a["scores"] and metric in b["scores"]:
            rates.append((a["scores"][metric], b["scores"][metric], units))
    if not rates:
        return
    now, before, num_units = (np.array(column, dtype=np.float64) for column in zip(*rates, strict=True))
    estimate = compare_error_rates(before * num_units, now * num_units, num_units, resampling)
    changes = int((now < before).sum()), int((now > before).sum())
    found = comparison_of(metric, METRIC_FACTS[metric].direction, estimate, len(rates), changes)
    yield marked(found, label, subsampled)


def _of_suites(
    own: ItemScores, other: ItemScores, keys: Sequence[Key], resampling: Resampling, rows: Mapping[str, Measurement]
) -> Iterator[Comparison]:
    """All suites together, as the report has them."""
    both = [(other.items[key]["scores"], own.items[key]["scores"]) for key in keys]
    pairs = [(Judged(before), Judged(now)) for before, now in both if before.keys() == now.keys()]
    yield from (row for row in compare_judged(pairs, resampling) if row.metric in rows)
