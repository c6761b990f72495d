"""Prompt suites on the page: a verdict for each, what moved in words, and the answers that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Comparison, SuiteReport
from halo_forge.report.read_run import RunFiles, SuiteAnswer
from halo_forge.report.visible import Clipped, clip, cut
from halo_forge.report.wording import interval, label_of, metric_change, metric_value, outcome, plural

MAX_FAILED_SHOWN = 6
QUESTION_CHARS = 400
ANSWER_CHARS = 500
Tone = Literal["pass", "wait", "fail", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAnswer:
    """change: "lost" where the base's answer did not fail, else "both"."""

    id: str
    kind: str
    change: Literal["lost", "both"]
    reason: str
    question: Clipped
    base: Clipped
    tuned: Clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteView:
    name: str
    title: str
    tone: Tone
    kinds: str
    findings: tuple[str, ...]
    rows: tuple[Comparison, ...]
    failed_base: int
    failed_tuned: int
    num_items: int
    shown: tuple[FailedAnswer, ...]


def suite_views(files: RunFiles) -> tuple[SuiteView, ...]:
    reports = files.evaluation.suites if files.evaluation else ()
    return tuple(_view(report, files.suite_answers.get(report.name, [])) for report in reports)


def _view(report: SuiteReport, answers: Sequence[SuiteAnswer]) -> SuiteView:
    own = [row for row in report.comparisons if row.tuned.slice == "all"]
    tone, title = verdict(own)
    return SuiteView(
        name=cut(report.name, 80),
        title=title,
        tone=tone,
        kinds=", ".join(f"{count} {kind}" for kind, count in report.kinds.items()),
        findings=tuple(suite_findings(report)),
        rows=tuple(own),
        failed_base=report.failed_base,
        failed_tuned=report.failed_tuned,
        num_items=report.num_items,
        shown=tuple(_failed(answers)),
    )


def verdict(rows: Sequence[Comparison]) -> tuple[Tone, str]:
    """Of the changes that are proven; the gate alone says whether a level is good enough."""
    found = {outcome(row) for row in rows}
    if "worse" in found:
        return "fail", "worse in part, better in part" if "better" in found else "worse"
    if "better" in found:
        return "pass", "better"
    return ("wait", "no proven change") if found & {"unproven", "neither"} else ("none", "not measured")


def suite_findings(report: SuiteReport) -> list[str]:
    """One sentence for each proven change, and for a group that did far worse than its suite."""
    told = []
    own = {row.metric: row for row in report.comparisons if row.tuned.slice == "all"}
    for row in own.values():
        result = outcome(row)
        if result in ("better", "worse"):
            told.append(
                f"{label_of(row.metric)}: {metric_value(row.metric, row.base.value)} before, "
                f"{metric_value(row.metric, row.tuned.value)} after ({metric_change(row.metric, row.delta.value)}, "
                f"interval {interval(row.metric, row.delta, is_change=True)}, {plural(row.tuned.n, 'item')}): {result}."
            )
    for row in report.comparisons:
        whole = own.get(row.metric)
        if row.tuned.slice != "all" and whole is not None and _far_worse(row, whole):
            told.append(
                f"{label_of(row.metric)}, {cut(row.tuned.slice.removeprefix('group='), 60)}: "
                f"{metric_value(row.metric, row.tuned.value)} of {plural(row.tuned.n, 'item')}, against "
                f"{metric_value(row.metric, whole.tuned.value)} in all."
            )
    return told


def _far_worse(row: Comparison, whole: Comparison) -> bool:
    """Whether all of a group's interval lies on the bad side of the whole suite's value."""
    part, value = row.tuned, whole.tuned.value
    if value is None or part.low is None or part.high is None:
        return False
    return part.high < value if part.direction == "higher" else part.direction == "lower" and part.low > value


def _failed(answers: Sequence[SuiteAnswer]) -> list[FailedAnswer]:
    """Answers of the tuned model that failed; first those that the base did not fail."""
    failed = sorted((answer for answer in answers if answer.tuned_reason), key=lambda answer: bool(answer.base_reason))
    return [
        FailedAnswer(
            id=cut(answer.id, 80),
            kind=cut(answer.kind, 40),
            change="both" if answer.base_reason else "lost",
            reason=cut(answer.tuned_reason, 300),
            question=clip(answer.question, QUESTION_CHARS),
            base=clip(answer.base_text, ANSWER_CHARS),
            tuned=clip(answer.tuned_text, ANSWER_CHARS),
        )
        for answer in failed[:MAX_FAILED_SHOWN]
    ]
