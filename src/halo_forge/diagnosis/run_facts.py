"""What a run directory tells about a run, whether it is finished, stopped or still going on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo_forge.diagnosis.curves import curves_of, is_finite, is_step
from halo_forge.diagnosis.diagnose import diagnose
from halo_forge.diagnosis.findings import RunFacts, TrainingFinding, finding_of


def metrics_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl; damaged lines and the torn last one of a running or killed process are left out.

    Raises FileNotFoundError.
    """
    lines = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`findings` hold for the run as it stands. `past` were told while it trained and are no longer seen in the whole,
    for instance a loss that rose and came back; their evidence is that of the moment."""

    findings: tuple[TrainingFinding, ...]
    past: tuple[TrainingFinding, ...]
    facts: RunFacts
    last_step: int


def diagnose_run(run: Path) -> Diagnosis:
    """The run as it stands on disk. Raises FileNotFoundError without a metrics.jsonl."""
    return diagnose_lines(run, metrics_lines(run / "metrics.jsonl"))


def diagnose_lines(run: Path, lines: Sequence[Mapping[str, Any]]) -> Diagnosis:
    facts, curves = run_facts(run, lines), curves_of(lines)
    findings = diagnose(curves, facts)
    now = {finding.identity for finding in findings}
    past = {finding.identity: finding for finding in _told(lines) if finding.identity not in now}
    return Diagnosis(findings=tuple(findings), past=tuple(past.values()), facts=facts, last_step=curves.last_step)


def _told(lines: Sequence[Mapping[str, Any]]) -> list[TrainingFinding]:
    told = []
    for line in lines:
        if line.get("kind") == "finding":
            with suppress(KeyError, TypeError, ValueError):
                told.append(finding_of(line))
    return told


def run_facts(run: Path, lines: Sequence[Mapping[str, Any]]) -> RunFacts:
    """From run.json, data/manifest.json, trained.json and the steps so far; what cannot be read is not known."""
    config = _object(_object(_json(run / "run.json")).get("config"))
    training = _object(config.get("training"))
    splits = _object(_object(_json(run / "data" / "manifest.json")).get("splits"))
    rows = _object(splits.get("train")).get("rows")
    rates = [line["learning_rate"] for line in lines if is_finite(line.get("learning_rate"))]
    num_steps = _planned_steps(training, lines)
    last = max((line["step"] for line in lines if is_step(line.get("step"))), default=0)
    batch, accumulated = training.get("per_device_train_batch_size"), training.get("gradient_accumulation_steps")
    return RunFacts(
        num_steps=num_steps,
        is_finished=(run / "trained.json").is_file() or (num_steps is not None and last >= num_steps),
        learning_rate=max(rates, default=None),
        method=training.get("method"),
        num_epochs=training.get("num_train_epochs") if training.get("max_steps") is None else None,
        num_train_rows=rows if isinstance(rows, int) else None,
        examples_per_step=batch * accumulated if isinstance(batch, int) and isinstance(accumulated, int) else None,
    )


def _planned_steps(training: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> int | None:
    """max_steps, or the epochs times the steps that an epoch turned out to have."""
    if is_step(training.get("max_steps")):
        return int(training["max_steps"])
    epochs = training.get("num_train_epochs")
    for line in reversed(lines):
        if is_finite(line.get("epoch")) and line["epoch"] > 0 and is_step(line.get("step")) and is_finite(epochs):
            planned = epochs * round(min(line["step"] / line["epoch"], 2.0**53)) - 1e-9
            return max(1, math.ceil(planned)) if math.isfinite(planned) else None
    return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
