"""A finding about a run, and the facts of the run that it is judged with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinding:
    """One thing that is wrong, with what it was told from.

    code         stable name; with `source` it says whether two findings are the same
    severity     error: the model is not worth keeping as it is; warning: it could be clearly better; note: good to know
    title        what was seen, in a few words
    evidence     the numbers, in words
    next_action  what to change, naming configuration keys
    first_step, last_step  optimizer steps that show it, both included
    numbers      the evidence for programs: losses in nats, steps, shares
    curve        where it is to be seen
    source       the data source it is about, where it is about one
    """

    code: str
    severity: Severity
    title: str
    evidence: str
    next_action: str
    first_step: int
    last_step: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    curve: Literal["train", "validation"] = "train"
    source: str | None = None

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.code, self.source

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def finding_of(line: Mapping[str, Any]) -> TrainingFinding:
    """From `to_dict`, or from a line of metrics.jsonl with kind "finding". Raises KeyError, TypeError, ValueError."""
    known = {f.name: line[f.name] for f in fields(TrainingFinding) if f.name in line}
    known["first_step"], known["last_step"] = int(known["first_step"]), int(known["last_step"])
    if known["severity"] not in SEVERITIES:
        raise ValueError(f"severity {known['severity']!r}")
    if not all(isinstance(known[name], str) for name in ("code", "title", "evidence", "next_action")):
        raise TypeError("a finding's words are text")
    return TrainingFinding(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known about a run beside its curves; None = not known.

    num_steps        planned optimizer steps
    is_finished      no step is to come
    learning_rate    the peak
    """

    num_steps: int | None = None
    is_finished: bool = False
    learning_rate: float | None = None
    method: str | None = None
    num_epochs: float | None = None
    num_train_rows: int | None = None
    examples_per_step: int | None = None
