"""Findings while training: told once, when first seen, kept in metrics.jsonl, and not told again by a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.diagnosis import RunFacts, diagnose_run, finding_of
from halo_forge.errors import Interrupted
from halo_forge.train.train import _validation_by_source
from halo_forge.train.watching.metrics import MetricsLog, write_training_log
from halo_forge.train.watching.run_log import RunLog
from halo_forge.train.watching.trackers import Trackers
from synthetic_curves import Run, healthy_run
from training_runs import final_weights, prepared_run, train_now

Event = tuple[str, dict[str, Any]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_through(path: Path, run: Run, first: int = 1, last: int | None = None, keep_bytes: int = 0) -> list[Event]:
    """Send a synthetic run's lines of these steps through a RunLog; what it told."""
    told: list[Event] = []
    log = RunLog(
        MetricsLog(path, keep_bytes),
        RunFacts(num_steps=run.num_steps, learning_rate=2e-4),
        min(run.validation, default=None),
        Trackers({}, lambda event, fields: None),
        lambda event, fields: told.append((event, dict(fields))),
    )
    for line in run.lines():
        if first <= line["step"] <= (last or run.num_steps):
            log.append(**line)
    log.close()
    return told


def rising_and_spiking() -> Run:
    """Spikes from step 121 on, three by 241, and a loss that rises from 250 to above its start."""
    at = np.arange(400)
    run = healthy_run(mean=np.where(at < 250, 2 - at / 250, np.exp((at - 250) / 120)), num_validations=4)
    run.loss[[120, 180, 240]] *= 5
    return run


def test_a_finding_is_told_once_and_again_only_if_it_became_worse(tmp_path: Path) -> None:
    told = write_through(tmp_path / "metrics.jsonl", rising_and_spiking())
    said = [(fields["code"], fields["severity"]) for event, fields in told]
    assert {event for event, _ in told} == {"train.finding"}
    assert len(said) == len(set(said))
    assert said.index(("loss_spikes", "note")) < said.index(("loss_spikes", "warning"))
    assert ("loss_rising", "error") in said
    first = next(fields for _, fields in told if fields["code"] == "loss_spikes")
    assert 121 <= first["step"] <= 130
    kept = [line for line in lines_of(tmp_path / "metrics.jsonl") if line["kind"] == "finding"]
    assert kept == [json.loads(json.dumps(fields)) for _, fields in told]
    assert [finding_of(line).code for line in kept] == [code for code, _ in said]


@pytest.mark.parametrize("cut", [60, 125, 200, 260, 350])
def test_a_resumed_run_tells_the_same_once(tmp_path: Path, cut: int) -> None:
    """Stopped at `cut`, 20 steps of it lost: the file ends as that of a run which was never stopped."""
    run = rising_and_spiking()
    write_through(tmp_path / "whole.jsonl", run)
    parts = tmp_path / "parts.jsonl"
    write_through(parts, run, last=cut - 20)
    size = parts.stat().st_size
    with open(parts, "ab") as file:
        file.write(b'{"kind": "finding", "step": 1, "code": "loss_flat"')  # what a killed process leaves
    write_through(parts, run, first=cut - 19, keep_bytes=size)
    assert lines_of(parts) == lines_of(tmp_path / "whole.jsonl")


def test_every_step_is_kept_while_findings_are_told(tmp_path: Path) -> None:
    run = rising_and_spiking()
    write_through(tmp_path / "metrics.jsonl", run)
    assert [line for line in lines_of(tmp_path / "metrics.jsonl") if line["kind"] != "finding"] == run.lines()
    write_training_log(tmp_path, logging_steps=10)
    history = json.loads((tmp_path / "training_log.json").read_text())["log_history"]
    assert {"train", "validation", "finding"} == {entry["event"] for entry in history}


def test_a_real_run_with_much_too_high_a_rate_says_so_and_trains_the_same(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Full fine-tuning at 0.5 diverges. The findings come while it trains, stay in its files, survive a stop, and the
    weights are those of a run that nobody watched."""
    options: dict[str, Any] = {
        "method": "full", "learning_rate": 0.5, "num_train_epochs": 10, "eval_steps": 20, "output.save_steps": 7,
        "max_grad_norm": None, "output.final": "latest",
    }  # fmt: skip
    told: list[dict[str, Any]] = []

    def notify(event: str, fields: Any) -> None:
        if event == "train.finding":
            told.append(dict(fields))

    whole = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "whole", **options)
    train_now(whole, notify=notify)
    assert "loss_rising" in {finding["code"] for finding in told}
    assert min(finding["step"] for finding in told) < 60

    left = iter(range(45))

    def check() -> None:
        if next(left, None) is None:
            raise Interrupted("stopped by a test")

    parts = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "parts", **options)
    with pytest.raises(Interrupted):
        train_now(parts, check=check)
    train_now(parts)

    def findings(run: Path) -> list[dict[str, Any]]:
        return [line for line in lines_of(run / "metrics.jsonl") if line["kind"] == "finding"]

    assert findings(tmp_path / "parts") == findings(tmp_path / "whole")
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")
    diagnosis = diagnose_run(tmp_path / "whole")
    assert diagnosis.facts.is_finished
    assert "loss_rising" in {finding.code for finding in (*diagnosis.findings, *diagnosis.past)}


def test_trained_json_sums_up_the_last_validation_by_source(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"kind": "train", "step": 1, "loss": 2.0}]
    assert _validation_by_source(tmp_path) == {}
    for step, loss in ((5, 2.0), (10, 1.5)):
        by_source = {"a": {"loss": loss, "num_supervised_tokens": 7}, "b": {"loss": 1.0, "num_supervised_tokens": 1}}
        lines.append({"kind": "validation", "step": step, "loss": loss, "by_source": by_source})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _validation_by_source(tmp_path) == {"a": 1.5, "b": 1.0}
