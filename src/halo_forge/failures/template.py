"""rows.template.jsonl: 50 to 200 rows for a person to write, shared out over the clusters by their size.

A row has its prompt and answer left empty, which `data check` and `iterate` refuse by line (`empty_content`), the
cluster as a slice, and beside the messages what to write and a failure to look at. Nothing here is written by a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from halo_forge.failures.records import FailureCluster

ROWS_PER_FAILURE = 3
MIN_ROWS, MAX_ROWS = 50, 200
"""What seed 004 adds in one iteration."""


def num_rows_to_write(sizes: Sequence[int]) -> list[int]:
    """Rows for clusters of these sizes: in proportion, at least one each, by largest remainders."""
    if not sizes:
        return []
    total = max(min(ROWS_PER_FAILURE * sum(sizes), MAX_ROWS), MIN_ROWS, len(sizes))
    spare = total - len(sizes)
    exact = [spare * size / sum(sizes) for size in sizes]
    rows = [1 + int(part) for part in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda at: (int(exact[at]) - exact[at], at))
    for at in by_remainder[: total - sum(rows)]:
        rows[at] += 1
    return rows


def template_lines(clusters: Sequence[FailureCluster]) -> str:
    """The file: each cluster's rows together, its examples in turn."""
    lines = []
    for cluster in clusters:
        for number in range(cluster.num_rows_to_write):
            lines.append(json.dumps(_row(cluster, number), ensure_ascii=True) + "\n")
    return "".join(lines)


def _row(cluster: FailureCluster, number: int) -> dict[str, Any]:
    example = cluster.examples[number % len(cluster.examples)]
    turns = [("user", ""), ("assistant", "")]
    if cluster.system is not None:
        turns.insert(0, ("system", cluster.system))
    return {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "slices": {"cluster": cluster.id},
        "write": (
            f"a prompt like this one, but another, and the answer it should get; the model's are wrong: {cluster.name}"
        ),
        "seen": {"prompt": example.prompt, "expected": example.expected, "answered": example.answered},
    }
