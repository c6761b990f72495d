"""Where the lines of a run go: metrics.jsonl first, then whoever reads along (the diagnosis, the trackers).

Nothing here changes what is trained. Findings stand in metrics.jsonl as lines of kind "finding" and are cut off with it
on resume, so that a resumed run tells what it finds once, as an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halo_forge.diagnosis import RunFacts, curves_of, diagnose
from halo_forge.diagnosis.findings import SEVERITIES
from halo_forge.runs import Notify
from halo_forge.train.checkpoint import TrainState
from halo_forge.train.session import Session
from halo_forge.train.watching.metrics import MetricsLog, read_metrics
from halo_forge.train.watching.trackers import Trackers, start_trackers

LOOKS = 50
"""The diagnosis looks at the run this many times beside every validation. A look costs 1.4 s at 100,000 steps."""
MIN_STEPS_BETWEEN_LOOKS = 5
READ = ("kind", "step", "loss", "grad_norm", "learning_rate", "num_supervised_tokens", "applied", "by_source")
"""Fields that the diagnosis reads; the rest of a line need not stay in memory."""


class RunLog:
    """The lines of one run. `append` writes one, `sync` makes them durable and returns their size in bytes."""

    def __init__(
        self, metrics: MetricsLog, facts: RunFacts, eval_steps: int | None, trackers: Trackers, notify: Notify
    ) -> None:
        self.metrics, self.facts, self.eval_steps = metrics, facts, eval_steps
        self.trackers, self.notify = trackers, notify
        self._lines: list[dict[str, Any]] = []
        self._told: dict[tuple[str, str | None], int] = {}
        for line in read_metrics(metrics.path):
            self._remember(line)

    def append(self, **fields: Any) -> None:
        self.metrics.append(**fields)
        self._remember(fields)
        self.trackers.log(fields)
        if self._is_time_to_look(fields["kind"], fields["step"]):
            self.look(fields["step"])

    def look(self, step: int) -> None:
        """Tell what is found now and was not told before, or not as that severe."""
        facts = replace(self.facts, is_finished=step == self.facts.num_steps)
        for finding in diagnose(curves_of(self._lines), facts):
            rank = SEVERITIES.index(finding.severity)
            if rank < self._told.get(finding.identity, len(SEVERITIES)):
                line = {"kind": "finding", "step": step, **finding.to_dict()}
                self.metrics.append(**line)
                self._remember(line)
                self.notify("train.finding", line)

    def sync(self) -> int:
        return self.metrics.sync()

    def close(self) -> None:
        self.metrics.close()
        self.trackers.close()

    def _remember(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "finding":
            self._told[line["code"], line.get("source")] = SEVERITIES.index(line["severity"])
        else:
            self._lines.append({name: line[name] for name in READ if name in line})

    def _is_time_to_look(self, kind: str, step: int) -> bool:
        """At every validation, and between them at even distances; a step that is about to be validated waits."""
        if kind != "train":
            return True
        is_last = step == self.facts.num_steps
        if self.eval_steps is not None and (step % self.eval_steps == 0 or is_last):
            return False
        return is_last or step % max(MIN_STEPS_BETWEEN_LOOKS, (self.facts.num_steps or 0) // LOOKS) == 0


def open_run_log(session: Session, state: TrainState, notify: Notify) -> RunLog:
    """The log of this run, cut back to what the state had seen. For the main process only."""
    metrics = MetricsLog(session.directory / "metrics.jsonl", state.metrics_bytes)
    training = session.config.training
    facts = RunFacts(
        num_steps=session.num_steps,
        learning_rate=session.config.learning_rate,
        method=training.method,
        num_epochs=training.num_train_epochs if training.max_steps is None else None,
        num_train_rows=session.order.num_examples,
        examples_per_step=session.order.examples_per_step,
    )
    trackers = start_trackers(session.config, session.directory, state.step, notify)
    eval_steps = training.eval_steps if len(session.validation) else None
    return RunLog(metrics, facts, eval_steps, trackers, notify)
