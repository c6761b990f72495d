"""Trackers for real: what is read back from their own stores equals metrics.jsonl; a failing one stops nothing.

Those whose package is not installed are skipped; TensorBoard is among the packages of the tests.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import Interrupted, UsageError
from halo_forge.train.watching import trackers
from halo_forge.train.watching.trackers import require_trackers, tracked_values
from training_runs import final_weights, losses, prepared_run, train_now

CADENCE: dict[str, Any] = {"eval_steps": 4, "output.save_steps": 3, "output.save_total_limit": 2}


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed (pip install {name})"
    )


def notes_of(prepared: Any, **options: Any) -> list[str]:
    notes: list[str] = []
    train_now(
        prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None, **options
    )
    return notes


def stopped_after(num_micro_batches: int) -> Any:
    left = iter(range(num_micro_batches))

    def check() -> None:
        if next(left, None) is None:
            raise Interrupted("stopped by a test")

    return check


def train_in_two_parts(tokenizer: PreTrainedTokenizerBase, model: Path, output: Path, tracker: str) -> None:
    """12 steps with a stop in step 8, and back to the checkpoint of step 6: what was sent of step 7 is sent again."""
    prepared = prepared_run(tokenizer, model, output, **{"output.trackers": [tracker]}, **CADENCE)
    with pytest.raises(Interrupted):
        train_now(prepared, check=stopped_after(8))
    assert len(losses(output)) == 7
    notes = notes_of(prepared, resume_from=output / "checkpoint-6")
    assert not [note for note in notes if "tracker" in note], notes
    assert len(losses(output)) == 12


def validation_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "validation"]


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own reader and writer
def test_tensorboard_holds_every_step_once(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train_in_two_parts(tiny_tokenizer, tiny_model_dir, output, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "trackers" / "run"))
    events.Reload()
    found = events.Scalars("train/loss")
    assert [event.step for event in found] == list(range(1, 13))
    assert [event.value for event in found] == pytest.approx(losses(output), rel=1e-6)  # events hold 32 bits
    assert [event.step for event in events.Scalars("validation/loss")] == [4, 8, 12]
    assert [event.value for event in events.Scalars("validation/loss")] == pytest.approx(validation_losses(output))
    assert {"train/learning_rate", "train/grad_norm", "train/num_tokens"} <= set(events.Tags()["scalars"])


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")  # of mlflow's file store
def test_mlflow_goes_on_in_the_same_run(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    output = tmp_path / "run"
    train_in_two_parts(tiny_tokenizer, tiny_model_dir, output, "mlflow")
    client = mlflow.MlflowClient((tmp_path / "store").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'halo-forge'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert json.loads((output / "trackers.json").read_text()) == {"mlflow": run.info.run_id}
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert [history[step] for step in range(1, 13)] == losses(output)
    assert run.data.params["training.learning_rate"] == "0.001"
    assert run.data.metrics["validation/loss"] == validation_losses(output)[-1]


@needs("trackio")
@pytest.mark.filterwarnings("ignore")  # of its server's libraries
def test_trackio_keeps_the_run_in_a_local_store(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, **{"output.trackers": ["trackio"]}, **CADENCE)
    assert not [note for note in notes_of(prepared) if "tracker" in note]
    name = json.loads((output / "trackers.json").read_text())["trackio"]
    from trackio import context_vars
    from trackio.sqlite_storage import SQLiteStorage

    assert context_vars.current_run.get() is None  # else it speaks on stdout when the process ends

    rows = [row for row in SQLiteStorage.get_logs("halo-forge", name) if "train/loss" in row]
    assert [row["train/loss"] for row in rows] == losses(output)


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of W&B's file: 7 bytes of its own, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, **{"output.trackers": ["wandb"]}, **CADENCE)
    assert not [note for note in notes_of(prepared) if "tracker" in note]
    run_id = json.loads((output / "trackers.json").read_text())["wandb"]
    (store,) = (output / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in log_records(store.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        found += [json.loads(items["train/loss"])] if "train/loss" in items else []
    assert found == losses(output)


def test_a_missing_package_stops_the_run_before_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty directory of the tracker's name is not its package."""
    (tmp_path / "mlflow").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", _only_from(tmp_path))
    for name in ("wandb", "mlflow"):
        with pytest.raises(UsageError, match=f"pip install {name}"):
            require_trackers([name])


def _only_from(place: Path) -> Any:
    from importlib.machinery import PathFinder

    return lambda name: PathFinder.find_spec(name, [str(place)])


@pytest.fixture
def broken_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """TensorBoard's real writer, whose disk is full from the sixth number on."""
    from accelerate.tracking import TensorBoardTracker

    real, calls = TensorBoardTracker.log, []

    def log(self: Any, values: Any, step: int | None = None, **options: Any) -> None:
        calls.append(step)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(self, values, step=step, **options)

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    return calls


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, broken_writer: list[int]
) -> None:
    plain = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "plain", **CADENCE)
    train_now(plain)
    tracked = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "tracked", **{"output.trackers": ["tensorboard"]}, **CADENCE
    )
    notes = [note for note in notes_of(tracked) if "tracker" in note]
    assert len(notes) == 1
    assert "tensorboard is switched off (OSError: [Errno 28] No space left on device)" in notes[0]
    assert len(broken_writer) == 6
    assert losses(tmp_path / "tracked") == losses(tmp_path / "plain")
    assert final_weights(tmp_path / "tracked") == final_weights(tmp_path / "plain")


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_that_holds_up_the_run_is_switched_off(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "MAX_CALL_S", 0.0)
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", **{"output.trackers": ["tensorboard"]}, **CADENCE
    )
    notes = [note for note in notes_of(prepared) if "tracker" in note]
    assert len(notes) == 1
    assert "one call took" in notes[0]


def test_what_is_sent_of_a_line() -> None:
    line = {
        "kind": "train", "step": 3, "loss": 1.5, "learning_rate": 1e-4, "applied": True,
        "by_source": {"mine": {"loss": 2.0, "num_supervised_tokens": 7}},
    }  # fmt: skip
    assert tracked_values(line) == {"train/loss": 1.5, "train/learning_rate": 1e-4, "train/loss/mine": 2.0}
    assert tracked_values({"kind": "validation", "step": 3, "loss": 1.25}) == {"validation/loss": 1.25}
    assert tracked_values({"kind": "finding", "step": 3, "code": "loss_flat"}) == {}
