"""Findings and sample answers of the training section, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halo_forge.diagnosis import TrainingFinding
from halo_forge.report.answers import common_frame
from halo_forge.report.charts import Mark
from halo_forge.report.read_run import Metrics, SampleAnswer
from halo_forge.report.visible import Clipped, clip, cut

TONES = {"error": "fail", "warning": "wait", "note": "none"}
MAX_FINDINGS = 20
WORDS_CHARS = 600
MAX_PROMPTS = 10
MAX_STEPS_SHOWN = 8
SAMPLE_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingBox:
    """`number` is that of its mark on the chart; 0 for one that has no mark."""

    number: int
    severity: str
    tone: str
    title: str
    evidence: str
    next_action: str
    steps: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFindings:
    now: tuple[FindingBox, ...]
    past: tuple[FindingBox, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleStep:
    step: int
    answer: Clipped
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    prompt: Clipped
    reference: Clipped
    steps: tuple[SampleStep, ...]


def training_findings(metrics: Metrics) -> TrainingFindings | None:
    """None where nothing was trained; both lists empty where nothing was found."""
    if metrics.diagnosis is None:
        return None
    found = metrics.diagnosis.findings[:MAX_FINDINGS]
    now = tuple(_box(finding, number) for number, finding in enumerate(found, start=1))
    return TrainingFindings(
        now=now,
        past=tuple(_box(finding, 0) for finding in metrics.diagnosis.past[:MAX_FINDINGS]),
        marks=tuple(
            Mark(
                number=box.number,
                first=finding.first_step,
                last=finding.last_step,
                tone=box.tone,
                words=f"{box.title}, {box.steps}",
            )
            for box, finding in zip(now, found, strict=True)
        ),
    )


def _box(finding: TrainingFinding, number: int) -> FindingBox:
    first, last = finding.first_step, finding.last_step
    return FindingBox(
        number=number,
        severity=finding.severity,
        tone=TONES[finding.severity],
        title=cut(finding.title, WORDS_CHARS),
        evidence=cut(finding.evidence[:1].upper() + finding.evidence[1:], WORDS_CHARS),
        next_action=cut(finding.next_action, WORDS_CHARS),
        steps=f"step {first:,}" if first == last else f"steps {first:,} to {last:,}",
    )


def sample_views(samples: Sequence[SampleAnswer]) -> tuple[SampleView, ...]:
    """By prompt, in the order they were asked; of many steps the first, the last and some between."""
    by_prompt: dict[str, list[SampleAnswer]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    begins, ends = common_frame(list(by_prompt))
    return tuple(
        SampleView(
            prompt=clip(prompt.removeprefix(begins).removesuffix(ends), SAMPLE_CHARS),
            reference=clip(answers[0].reference, SAMPLE_CHARS),
            steps=tuple(
                SampleStep(step=answer.step, answer=clip(answer.answer, SAMPLE_CHARS), stopped=answer.stopped)
                for answer in _spread(answers)
            ),
        )
        for prompt, answers in list(by_prompt.items())[:MAX_PROMPTS]
    )


def _spread(answers: Sequence[SampleAnswer]) -> list[SampleAnswer]:
    if len(answers) <= MAX_STEPS_SHOWN:
        return list(answers)
    places = {round(place * (len(answers) - 1) / (MAX_STEPS_SHOWN - 1)) for place in range(MAX_STEPS_SHOWN)}
    return [answers[place] for place in sorted(places)]
