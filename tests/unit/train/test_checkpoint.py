"""Checkpoints: complete or detected, and never deleted before something newer is durable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from halo_forge.errors import CheckpointError
from halo_forge.train import checkpoint as ck

FINGERPRINT = "f" * 64


class Model:
    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.optimizer = torch.optim.AdamW([self.weight], lr=0.1, fused=True)
        self.names = {self.weight: "weight"}

    def step(self) -> None:
        self.weight.grad = torch.ones_like(self.weight)
        self.optimizer.step()

    def save(self, run: Path, step: int, **state: object) -> Path:
        return ck.save_checkpoint(
            run,
            ck.TrainState(step=step).advanced(**state),
            self.write,
            FINGERPRINT,
        )

    def write(self, directory: Path) -> None:
        save_file({"weight": self.weight.detach()}, directory / "model.safetensors")
        save_file(ck.optimizer_tensors(self.optimizer, self.names), directory / ck.OPTIMIZER_FILE)


@pytest.fixture
def model() -> Model:
    model = Model()
    model.step()
    return model


def test_a_saved_checkpoint_verifies_and_gives_its_state_back(tmp_path: Path, model: Model) -> None:
    path = model.save(tmp_path, 3, best_validation_loss=1.5, samples_sha256="abc")
    assert ck.verify_checkpoint(path) is None
    found = ck.read_checkpoint(path, FINGERPRINT)
    assert found.state == ck.TrainState(step=3, best_validation_loss=1.5, samples_sha256="abc")


def test_optimizer_state_comes_back_bit_for_bit(tmp_path: Path, model: Model) -> None:
    path = model.save(tmp_path, 1)
    fresh = Model()
    ck.load_optimizer(path, fresh.optimizer, fresh.names)
    for field, value in model.optimizer.state[model.weight].items():
        assert torch.equal(value, fresh.optimizer.state[fresh.weight][field])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one bit"])
def test_every_damage_is_detected_and_falls_back(tmp_path: Path, model: Model, name: str, damage: str) -> None:
    model.save(tmp_path, 1)
    path = model.save(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "half":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    found, passed_over = ck.newest_checkpoint(tmp_path, FINGERPRINT)
    assert found is not None
    assert found.state.step == 1
    assert len(passed_over) == 1
    assert "checkpoint-2" in passed_over[0]


def test_no_usable_checkpoint_is_an_error_not_a_fresh_start(tmp_path: Path, model: Model) -> None:
    (model.save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be used"):
        ck.newest_checkpoint(tmp_path, FINGERPRINT)


def test_an_empty_run_has_none(tmp_path: Path) -> None:
    assert ck.newest_checkpoint(tmp_path, FINGERPRINT) == (None, [])


def test_another_fingerprint_is_refused(tmp_path: Path, model: Model) -> None:
    path = model.save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="other data or another configuration"):
        ck.read_checkpoint(path, "0" * 64)


def test_steps_sort_as_numbers(tmp_path: Path, model: Model) -> None:
    for step in (9, 10, 100):
        model.save(tmp_path, step)
    assert [path.name for path in ck.list_checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]


def test_rotation_keeps_what_is_protected(tmp_path: Path, model: Model) -> None:
    for step in range(1, 7):
        model.save(tmp_path, step)
    ck.rotate(tmp_path, keep_steps=[2, 6], limit=3)
    assert [path.name for path in ck.list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-5", "checkpoint-2"]
    assert not list(tmp_path.glob(".trash-*"))


def test_pointers_are_relative_links_that_always_resolve(tmp_path: Path, model: Model) -> None:
    for step in (1, 2):
        model.save(tmp_path, step)
        ck.point(tmp_path, "latest", step)
        assert os.readlink(tmp_path / "latest") == f"checkpoint-{step}"
    assert json.loads((tmp_path / "latest" / "state.json").read_text())["step"] == 2


def test_a_save_that_fails_leaves_the_previous_one_and_no_litter(tmp_path: Path, model: Model) -> None:
    model.save(tmp_path, 1)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ck.save_checkpoint(tmp_path, ck.TrainState(step=2), full, FINGERPRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert ck.verify_checkpoint(tmp_path / "checkpoint-1") is None


def test_leftovers_of_killed_processes_are_cleaned(tmp_path: Path) -> None:
    for name in (".staging-checkpoint-3-1", ".trash-checkpoint-1-1", ".final_model.17.tmp", ".final_model.17.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / ".latest-17").symlink_to("checkpoint-3")
    (tmp_path / ".trained.json.17.tmp").write_text("{")
    kept = {".lock", ".gitignore", ".notes.tmp", "data"}
    for name in kept:
        (tmp_path / name).write_text("")
    ck.clean_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
