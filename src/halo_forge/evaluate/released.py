"""Two versions on the same items, from the scores that each kept: compared in pairs, as base and tuned are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import Comparison, EvalReport, Measurement
from halo_forge.errors import DataError
from halo_forge.evaluate.compare import compare_items, comparison_of, marked
from halo_forge.evaluate.score import ItemKind
from halo_forge.evaluate.statistics import FloatArray, Resampling, compare_perplexities

LIKELIHOODS: tuple[tuple[str, str], ...] = (("perplexity", "holdout"), ("general_perplexity", "general_texts"))
"""Metrics that are worked out from likelihoods, and the set of items each is of."""

Key = tuple[str, str, int]
"""(set, id, how many lines of this id came before): rows with the same content have the same id."""


@dataclass(frozen=True, slots=True)
class ItemScores:
    """A file of eval/scores.jsonl: its header and its items in the file's order."""

    header: dict[str, Any]
    items: dict[Key, dict[str, Any]]


def read_scores(path: Path) -> ItemScores:
    """Raises DataError for a file that is missing or is no such file."""
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
    if "nll" in item:
        checked |= {"nll": float(item["nll"]), "num_tokens": int(item["num_tokens"])}
    return checked


def why_not_comparable(own: ItemScores, other: ItemScores, report: EvalReport) -> str | None:
    """Why the two were not made on the same items in the same way, or None."""
    if own.header.get("weights_sha256") != report.weights_sha256:
        return "eval/scores.jsonl of this run is of other weights than its report: evaluate it again"
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
    in different ways (another schema, another tokenizer) is not among the comparisons.
    """
    keys = [key for key in own.items if key in other.items]
    slices = sorted({label for key in keys for label in _labels(own.items[key])})
    rows = {row.metric: row.tuned for row in report.comparisons if row.tuned.slice == "all"}
    comparisons: list[Comparison] = []
    for label in ("all", *slices):
        chosen = [key for key in keys if label == "all" or label in _labels(own.items[key])]
        comparisons += _of_likelihoods(own, other, chosen, label, resampling)
        holdout = [key for key in chosen if key[0] == "holdout"]
        comparisons += _of_scores(own, other, holdout, label, resampling, rows)
    return tuple(comparisons)


def _labels(item: Mapping[str, Any]) -> list[str]:
    return [f"{kind}={name}" for kind, name in item["slices"].items()]


def _of_likelihoods(
    own: ItemScores, other: ItemScores, keys: Sequence[Key], label: str, resampling: Resampling
) -> Iterator[Comparison]:
    for metric, of_set in LIKELIHOODS:
        if own.header["sets"].get(of_set) != other.header["sets"].get(of_set):
            continue
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
        if metric == "schema_valid" and own.header.get("json_schema") != other.header.get("json_schema"):
            continue
        both = [(own.items[key]["scores"], other.items[key]["scores"]) for key in keys]
        pairs = [(a[metric], b[metric]) for a, b in both if metric in a and metric in b]
        if not pairs:
            continue
        now, before = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
        direction = rows[metric].direction
        (found,) = compare_items(metric, direction, _kind(np.concatenate([before, now])), before, now, {}, resampling)
        yield marked(found, label, rows[metric].subsampled)


def _kind(values: FloatArray) -> ItemKind:
    """Scores of 0 and 1 are yes/no scores, others between the two are bounded, and the rest is counted."""
    if np.isin(values, (0.0, 1.0)).all():
        return "rate"
    return "fraction" if values.min() >= 0 and values.max() <= 1 else "count"
