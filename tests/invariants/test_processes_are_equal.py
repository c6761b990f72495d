"""Two processes, with a copy each or a part each, take the steps of one, and a run goes on with more or fewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import Interrupted
from halo_forge.models.compute import known_compute
from training_runs import TwoProcesses, final_weights, losses, prepared_run, train_now

# Two AdamW runs whose gradients agree to 1e-6 drift by single roundings; weights move by 1e-1 here in all. A gradient
# that is all rounding would be blown up to a whole step by the usual epsilon of 1e-8, on one kind of processor and not
# on another (seen: one weight of 6e-5 on a Xeon, none on an EPYC).
EPSILON = 1e-6
LOSS = 2e-6
WEIGHTS = 2e-5
FILES = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}
WHOLE: dict[str, Any] = {}
GATHERED = {"shard": True}
PARTS = {"shard": True, "sharded_checkpoints": True}
COPIES_OF_PARTS = {"shard": True, "shard_size": 1}

Outcome = tuple[list[float], dict[str, torch.Tensor]]


def settings_of(method: str, num_processes: int, **more: Any) -> dict[str, Any]:
    accumulation = {"gradient_accumulation_steps": 2 // num_processes}
    return {"method": method, "lora.dropout": 0.0, "adam_epsilon": EPSILON, **accumulation, **more}


def outcome(output: Path, method: str) -> Outcome:
    return losses(output), load_file(output / "final_model" / FILES[method])


@pytest.fixture(scope="module")
def of_one_process(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    found = {}
    for method in FILES:
        output = tmp_path_factory.mktemp("one") / "run"
        train_now(prepared_run(tiny_tokenizer, tiny_model_dir, output, **settings_of(method, 1)))
        found[method] = outcome(output, method)
    return found


@pytest.fixture(scope="module")
def two_processes() -> Iterator[TwoProcesses]:
    pair = TwoProcesses()
    yield pair
    pair.close()


def assert_same(one: Outcome, two: Outcome) -> None:
    assert one[0] == pytest.approx(two[0], rel=LOSS)
    assert one[1].keys() == two[1].keys()
    for name, tensor in one[1].items():
        assert (tensor - two[1][name]).abs().max() <= WEIGHTS, name


@pytest.mark.parametrize(
    "compute", [WHOLE, GATHERED, PARTS, COPIES_OF_PARTS], ids=["whole", "gathered", "parts", "copies"]
)
@pytest.mark.parametrize("method", FILES)
def test_one_process_equals_two(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    two_processes: TwoProcesses, of_one_process: dict[str, Outcome], method: str, compute: dict[str, Any],
) -> None:  # fmt: skip
    """Also where small micro-batches leave one process with fewer of them than the other."""
    training = settings_of(method, 2, micro_batch_tokens=64)
    prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", **training).run.close()
    two_processes.train(tiny_model_dir, tmp_path / "run", training=training, **compute)
    assert_same(outcome(tmp_path / "run", method), of_one_process[method])


@pytest.mark.parametrize(
    ("method", "compute"), [("full", PARTS), ("lora", PARTS), ("full", GATHERED), ("lora", WHOLE)], ids=str
)
def test_two_processes_stop_and_one_goes_on(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    two_processes: TwoProcesses, of_one_process: dict[str, Outcome], method: str, compute: dict[str, Any],
) -> None:  # fmt: skip
    """One of them is told to stop; both do, at the same step, and what they saved fits one process."""
    training = settings_of(method, 2)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", **training)
    prepared.run.close()
    two_processes.train(tiny_model_dir, tmp_path / "run", training=training, stop_after=5, **compute)
    assert (tmp_path / "run" / "checkpoint-5").is_dir()
    assert len(losses(tmp_path / "run")) == 5
    train_now(prepared, compute=known_compute(tmp_path / "run"))
    assert_same(outcome(tmp_path / "run", method), of_one_process[method])


@pytest.mark.parametrize(("method", "compute"), [("full", PARTS), ("lora", GATHERED)], ids=str)
def test_one_process_stops_and_two_go_on(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    two_processes: TwoProcesses, of_one_process: dict[str, Outcome], method: str, compute: dict[str, Any],
) -> None:  # fmt: skip
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", **settings_of(method, 1))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Interrupted("told to stop")

    with pytest.raises(Interrupted):
        train_now(prepared, check=check)
    prepared.run.close()
    two_processes.train(tiny_model_dir, tmp_path / "run", training=settings_of(method, 2), **compute)
    assert_same(outcome(tmp_path / "run", method), of_one_process[method])


def test_sharded_in_bfloat16_is_as_close_to_float32_as_one_process_is(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    two_processes: TwoProcesses, of_one_process: dict[str, Outcome],
) -> None:  # fmt: skip
    training = settings_of("full", 2)
    prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", **training).run.close()
    two_processes.train(tiny_model_dir, tmp_path / "run", training=training, bf16=True, shard=True)
    assert outcome(tmp_path / "run", "full")[0] == pytest.approx(of_one_process["full"][0], rel=2e-3)


@pytest.mark.parametrize(("value", "compute"), [("overfit", WHOLE), (True, GATHERED)], ids=str)
def test_two_processes_try_the_step_together(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path,
    two_processes: TwoProcesses, value: bool | str, compute: dict[str, Any],
) -> None:  # fmt: skip
    """Both must take part in every exchange of the trial, or one waits for ever."""
    found = []
    for name, preflight in (("without", False), ("with", value)):
        training = settings_of("lora", 2, max_steps=2, preflight=preflight)
        output = tmp_path / name / "run"
        prepared_run(tiny_tokenizer, tiny_model_dir, output, **training).run.close()
        two_processes.train(tiny_model_dir, output, training=training, **compute)
        assert (output / "preflight.json").exists() == bool(preflight)
        found.append((losses(output), final_weights(output)))
    assert found[0] == found[1]
