"""What a benchmark run leaves on disk."""

from __future__ import annotations

from pathlib import Path

from halo_forge.artifacts import Artifact, Comparison, Measurement, Record
from halo_forge.runs import read_artifact

BENCH, REPORT = "eval/bench", "report.json"
"""Where a run keeps its benchmarks, and their record in it."""


class BenchRun(Record):
    """One benchmark. num_items of num_total were run (equal without a limit); tasks are lm-eval's, with their versions;
    num_fewshot is the most examples that a prompt shows."""

    name: str
    tasks: dict[str, str]
    num_items: int
    num_total: int
    num_fewshot: int
    time_s: float


class BenchReport(Artifact):
    """`measurements` are of the model asked for (the tuned one of a run); `comparisons` against its base, for a run.

    The headline of a benchmark is the metric `bench.NAME`; its other numbers are `bench.NAME.METRIC`. `items` is a
    JSONL path beside this record, one line an item and lm-eval task:
    {"benchmark", "task", "id", "prompt", "target", "base"?, "tuned": {"answers", "scores"}}; `answers` are texts, or
    [log-likelihood, is greedy] of each choice.
    """

    model: str
    engine: str  # "lm-eval 0.4.13"
    limit: int | None
    chat_template: bool
    dtype: str
    runs: tuple[BenchRun, ...]
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    items: str
    weights_sha256: str = ""
    time_s: float = 0.0
    notes: tuple[str, ...] = ()


def kept_comparisons(directory: Path, weights_sha256: str) -> tuple[Comparison, ...]:
    """What benchmarks were run on these weights; nothing where others were, or none."""
    path = directory / REPORT
    if not path.is_file():
        return ()
    kept = read_artifact(path, BenchReport)
    return kept.comparisons if kept.weights_sha256 == weights_sha256 else ()
