"""What the monitor reads (the reference of a release) and what it answers (checks, alarms, a verdict)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from halo_forge.artifacts import Artifact, Record
from halo_forge.traits.prompt_space import PromptSpace

MonitorVerdict = Literal["ok", "drift", "too_few_rows"]
CheckKind = Literal["length", "rate", "category", "vector"]


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
    """reference.json of a release: how its prompts and the tuned model's answers on the holdout were distributed.

    What an older release did not store (schema_version 1), or could not measure, is None and is not checked.
    """

    schema_version: Literal[1, 2]
    num_rows: int
    prompt_chars: Histogram
    answer_chars: Histogram
    json_valid_rate: float | None
    empty_rate: float | None
    weights_sha256: str
    holdout_sha256: str
    rules_version: int | None = None  # of traits.answers, for the two rates below
    refusal_rate: float | None = None
    repetition_rate: float | None = None
    stop_rate: float | None = None
    prompt_languages: dict[str, int] | None = None
    answer_languages: dict[str, int] | None = None
    prompt_space: PromptSpace | None = None

    @model_validator(mode="after")
    def _rows_are_counted(self) -> Reference:
        for histogram in (self.prompt_chars, self.answer_chars):
            if sum(histogram.counts) != self.num_rows:
                raise ValueError("the counts do not add up to num_rows")
        if self.num_rows and (self.json_valid_rate is None or self.empty_rate is None):
            raise ValueError("rows without rates")
        return self


class DriftCheck(Record):
    """One comparison. `statistic` is a population stability index (lengths, categories), an absolute change (rates) or
    a squared maximum mean discrepancy (vectors).

    `p_value`: how often two samples of these sizes from one distribution differ so much; `adjusted_p`: the same for the
    family of all checks. It drifted when the adjusted one is at most the stated false-alarm rate and the statistic is
    above the threshold: what is significant may be too small to matter. `noise` is about the smallest statistic that
    could have been significant with so few rows.
    """

    name: str
    kind: CheckKind
    reference: float | None  # median characters, the rate, or the share of the commonest category
    observed: float | None
    statistic: float
    threshold: float
    noise: float
    p_value: float
    adjusted_p: float = 1.0
    significant: bool = False
    drifted: bool = False
    words: str


class Topic(Record):
    """Prompts far from all of the release's that lie near each other. Without `store_texts` the name is a hash, and
    there are neither words nor examples."""

    name: str
    num_rows: int
    words: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


class WindowReport(Record):
    """Rows that were judged together. `start` and `end` are the earliest and latest time that its rows name."""

    number: int
    start: str | None
    end: str | None
    num_rows: int
    num_duplicates: int
    num_late: int
    checks: tuple[DriftCheck, ...]
    topics: tuple[Topic, ...] = ()
    raised: tuple[str, ...] = ()  # checks whose alarm this window raised, and cleared
    cleared: tuple[str, ...] = ()


class Alarm(Record):
    """A check's state between windows: raised after so many drifted windows in a row, cleared after so many calm."""

    name: str
    is_on: bool = False
    num_drifted: int = 0
    num_calm: int = 0
    since_window: int | None = None


class Alert(Record):
    """One file of the spool: an alarm was raised or cleared. `id` is the same when it is written a second time."""

    id: str
    event: Literal["raised", "cleared"]
    release: str | None
    window: int
    start: str | None
    end: str | None
    check: DriftCheck
    topics: tuple[Topic, ...] = ()


class MonitorReport(Artifact):
    """`bad_lines` counts unusable lines of the log by reason; they take part in nothing else.

    Without a state the log is one window. With one, `checks` are those of the last window that was judged, the verdict
    is `drift` while any alarm is on, and `num_rows` counts everything read since the state began.
    """

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
    topics: tuple[Topic, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    num_windows: int = 0
    num_open_rows: int = 0
    num_duplicates: int = 0
    false_alarm_rate: float = 0.0
    not_measured: dict[str, str] = Field(default_factory=dict)  # check -> why
    notes: tuple[str, ...] = ()

    def words(self) -> str:
        """The report for a person: verdict, then each check, then topics and notes."""
        lines = [f"{self.verdict.replace('_', ' ')}: {self.reason}"]
        lines += [f"  {'drift' if check.drifted else 'ok':<6} {check.words}" for check in self.checks]
        lines += [
            f"  topic  {topic.name}: {topic.num_rows} rows{_words_of(topic)}" for topic in self.topics if topic.num_rows
        ]
        lines += [
            f"  alarm  {alarm.name}: on since window {alarm.since_window}" for alarm in self.alarms if alarm.is_on
        ]
        lines += [f"  none   {name}: not measured, {why}" for name, why in self.not_measured.items()]
        lines += [f"  note   {note}" for note in self.notes]
        return "\n".join(lines)


def _words_of(topic: Topic) -> str:
    return f" ({', '.join(topic.words)})" if topic.words else ""


class MetricChange(Record):
    """One metric of the released model now and when it was released, on the same items. `changed_items` are those
    whose score differs; `p_value` is the sign test's over them, two-sided; None where scores of items are not at hand.
    """

    metric: str
    released: float | None
    now: float | None
    change: float | None
    tolerance: float
    verdict: Literal["same", "changed", "better", "worse", "not_measured"]
    num_items: int
    changed_items: int | None = None
    p_value: float | None = None


class RegressionReport(Artifact):
    """`regressed`: a metric is worse than at the release by more than the tolerance. `changed_libraries` name what is
    installed otherwise now; `base_changes` are the same metrics of the untuned model: where it moved as well, the
    machine or a library did it."""

    verdict: Literal["ok", "regressed", "not_measured"]
    reason: str
    release: str | None
    num_items: int
    num_answers_changed: int | None
    changes: tuple[MetricChange, ...]
    base_changes: tuple[MetricChange, ...]
    changed_libraries: dict[str, tuple[str | None, str | None]]

    def words(self) -> str:
        lines = [f"{self.verdict.replace('_', ' ')}: {self.reason}"]
        for change in self.changes:
            values = " -> ".join("not measured" if v is None else f"{v:.4g}" for v in (change.released, change.now))
            lines.append(f"  {change.verdict.replace('_', ' '):<13} {change.metric}: {values}")
        lines += [f"  library       {name}: {old} -> {new}" for name, (old, new) in self.changed_libraries.items()]
        return "\n".join(lines)
