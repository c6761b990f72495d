"""What an inspection and an iteration leave behind. No torch."""

from __future__ import annotations

from typing import Literal

from halo_forge.artifacts import Artifact, Comparison, Measurement, Record

MetricChoice = Literal["a scorer of yours", "the strictest that applies", "short answers", "free text", "--metric"]


class FailedAnswer(Record):
    """One validation row that was answered wrongly. `how` says what is wrong with this answer."""

    id: str
    source: str  # file:line
    prompt: str
    expected: str
    answered: str
    stopped: bool
    how: str


class FailureCluster(Record):
    """Failures of one kind on prompts that are alike. `share` is of all failures. `words` stand in its prompts and in
    few others; `labels` are slices that it has more of. `also_failed`: yes/no metric -> how many of its answers fail
    that too. `num_rows_to_write`: its part of the template."""

    id: str
    name: str
    kind: str
    num: int
    share: float
    words: tuple[str, ...]
    labels: tuple[str, ...]
    also_failed: dict[str, int]
    examples: tuple[FailedAnswer, ...]
    items: tuple[str, ...]  # ids
    num_rows_to_write: int
    system: str | None = None  # the system message that most of its prompts have


class Inspection(Artifact):
    """The failed validation answers of a run. An answer is right where `metric` is at least `right_from`.

    num_rows == num_judged + num_not_judged; num_judged == num_right + num_failed. Paths are relative to `directory`;
    `answers` has one line an item: {"id", "source", "prompt", "expected", "answered", "stopped", "score", "right",
    "how", "cluster"}.
    """

    run: str
    directory: str
    weights_sha256: str
    validation_sha256: str
    metric: str
    why_metric: MetricChoice
    right_from: float
    measurement: Measurement
    num_rows: int
    num_judged: int
    num_not_judged: int
    num_right: int
    num_failed: int
    kinds: dict[str, int]
    clusters: tuple[FailureCluster, ...]
    num_template_rows: int
    answers: str
    template: str
    page: str
    notes: tuple[str, ...] = ()
    time_s: float = 0.0

    def words(self) -> str:
        """The inspection for a person."""
        lines = [
            f"{self.run}: {self.num_failed} of {self.num_judged} validation answers are wrong "
            f"({self.metric} below {self.right_from:g}; {self.why_metric})"
        ]
        for cluster in self.clusters:
            lines += ["", f"{cluster.id}  {cluster.num} ({cluster.share:.0%})  {cluster.name}"]
            for example in cluster.examples[:1]:
                lines += [
                    f"    asked     {_short(example.prompt)}",
                    f"    expected  {_short(example.expected)}",
                    f"    answered  {_short(example.answered)}",
                ]
        lines += ["", *self.notes] if self.notes else [""]
        if self.clusters:
            lines += [
                f"{self.directory}/{self.template}: {self.num_template_rows} rows to write, by cluster",
                f"{self.directory}/{self.page}: the same with more examples",
                f"next: fill the rows, then  halo-forge iterate {self.run} --rows FILE",
            ]
        return "\n".join(lines)


class LeftOutRow(Record):
    """An added row that is not trained on, or was seen to be like another. `line` is of the rows file."""

    line: int
    code: str
    reason: str


class MetricOutcome(Record):
    """One metric on the holdout: of the base, of the run before, of the run after. `change` is after - before, in pairs
    on the same items; its `base` is the run before."""

    metric: str
    base: Measurement
    change: Comparison


class ClusterOutcome(Record):
    """Of the validation items that failed before (`failed`), how many are right now."""

    id: str
    name: str
    failed: int
    right_now: int


class Iteration(Artifact):
    """What a run became by added rows. Written before the training with what it is made from; `metrics`, `clusters` and
    what follows are empty until it was measured.

    num_added: rows of the file that were trained on; the others stand in `left_out`. num_broke: validation items that
    were right before and are wrong now; `broke` shows some.
    """

    parent: str
    parent_weights_sha256: str
    run: str
    rows: str
    rows_sha256: str
    holdout_sha256: str
    validation_sha256: str
    num_read: int
    num_added: int
    num_train_rows_before: int
    num_train_rows: int
    left_out: tuple[LeftOutRow, ...] = ()
    weights_sha256: str = ""
    metrics: tuple[MetricOutcome, ...] = ()
    clusters: tuple[ClusterOutcome, ...] = ()
    num_failed_before: int = 0
    num_right_now: int = 0
    num_right_before: int = 0
    num_broke: int = 0
    broke: tuple[FailedAnswer, ...] = ()
    validation: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        return bool(self.weights_sha256)


def _short(text: str, num_chars: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= num_chars else line[: num_chars - 1] + "…"
