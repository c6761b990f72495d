"""What the monitor reads (the reference of a release) and what it answers (checks and a verdict)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from halo_forge.artifacts import Artifact, Record

MonitorVerdict = Literal["ok", "drift", "too_few_rows"]


class Histogram(Record):
    """counts[i] = values in (edges[i-1], edges[i]]; the first and last bin lie outside what was measured."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _bins_fit_edges(self) -> Histogram:
        if len(self.counts) != (len(self.edges) + 1 if self.edges else 0):
            raise ValueError("a histogram has one more count than edges")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges ascend")
        if any(count < 0 for count in self.counts):
            raise ValueError("counts are not negative")
        return self


class Reference(Record):
    """reference.json of a release: how the tuned model's answers on the holdout were distributed."""

    schema_version: Literal[1]
    num_rows: int
    prompt_chars: Histogram
    answer_chars: Histogram
    json_valid_rate: float | None
    empty_rate: float | None
    weights_sha256: str
    holdout_sha256: str

    @model_validator(mode="after")
    def _rows_are_counted(self) -> Reference:
        for histogram in (self.prompt_chars, self.answer_chars):
            if sum(histogram.counts) != self.num_rows:
                raise ValueError("the counts do not add up to num_rows")
        if self.num_rows and (self.json_valid_rate is None or self.empty_rate is None):
            raise ValueError("rows without rates")
        return self


class DriftCheck(Record):
    """One comparison. `statistic` is a population stability index for lengths and an absolute change for rates.

    It drifted when the statistic is above the configured threshold and above `noise`, the largest value that two
    samples of these sizes from one and the same distribution reach (once in a thousand comparisons).
    """

    name: str
    kind: Literal["length", "rate"]
    reference: float  # median characters, or the rate
    observed: float
    statistic: float
    threshold: float
    noise: float
    drifted: bool
    words: str


class MonitorReport(Artifact):
    """`bad_lines` counts unusable lines of the log by reason; they take part in nothing else."""

    verdict: MonitorVerdict
    reason: str
    release: str | None  # "name v3", or None for a run that was not published
    log: str
    num_rows: int
    num_reference_rows: int
    num_bad_lines: int
    bad_lines: dict[str, int]
    first_bad_lines: tuple[int, ...]  # 1-based line numbers
    checks: tuple[DriftCheck, ...]
    notes: tuple[str, ...] = ()

    def words(self) -> str:
        """The report for a person: verdict, then each check, then the notes."""
        lines = [f"{self.verdict.replace('_', ' ')}: {self.reason}"]
        lines += [f"  {'drift' if check.drifted else 'ok':<6} {check.words}" for check in self.checks]
        lines += [f"  note   {note}" for note in self.notes]
        return "\n".join(lines)
