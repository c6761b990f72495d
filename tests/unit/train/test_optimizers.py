"""What changes weights beside the gradient: clipping in the optimizer's pass, the pull to the start; noise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from halo_forge.chat import Example
from halo_forge.config.schema import TrainingSection
from halo_forge.errors import UsageError
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import Objective
from halo_forge.train.neftune import with_noise
from halo_forge.train.optimizer import apply_clipped, make_moments, make_optimizer, moments, pull_to_start
from halo_forge.train.step import clip_factor


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (5,))]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_in_the_optimizer_is_torchs_clipping_before_it(name: str, scale: float) -> None:
    ours, theirs = weights(), weights()
    training = TrainingSection(optimizer=name)  # type: ignore[arg-type]
    one, two = make_optimizer(ours, training), make_optimizer(theirs, training)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator) * scale
            b.grad = a.grad.clone()
        for group in (*one.param_groups, *two.param_groups):
            group["lr"] = 0.1
        norm = torch.nn.utils.get_total_norm([p.grad for p in ours if p.grad is not None])
        apply_clipped(one, clip_factor(float(norm), 1.0))
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        two.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)
    assert getattr(one, "grad_scale", None) is None


def test_the_factor_is_one_without_a_limit_and_below_it() -> None:
    assert clip_factor(5.0, None) == clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == pytest.approx(0.25, rel=1e-6)


def test_adafactor_keeps_rows_and_columns_only() -> None:
    parameters = weights()
    optimizer = make_optimizer(parameters, TrainingSection(optimizer="adafactor"))
    parameters[0].grad = torch.ones(7, 5)
    optimizer.step()
    assert sum(tensor.numel() for tensor in moments(optimizer, parameters[0]).values()) <= 7 + 5 + 1


def test_moments_made_beforehand_change_no_step() -> None:
    early, late, unreached = weights(), weights(), torch.nn.Parameter(torch.ones(3))
    optimizers = [make_optimizer(parameters, TrainingSection()) for parameters in ([*early, unreached], late)]
    make_moments(optimizers[0])
    assert {name: float(value.sum()) for name, value in moments(optimizers[0], unreached).items()} == {
        "step": 0, "exp_avg": 0, "exp_avg_sq": 0,
    }  # fmt: skip
    for step in range(3):
        for one, other in zip(early, late, strict=True):
            one.grad = torch.full_like(one, 0.1 * step)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            optimizer.step()
        make_moments(optimizers[0])  # what is known stays
    for one, other in zip(early, late, strict=True):
        assert torch.equal(one, other)
        for name, value in moments(optimizers[1], other).items():
            assert torch.equal(moments(optimizers[0], one)[name], value), name
    assert torch.equal(unreached, torch.ones(3))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="bitsandbytes") as error:
        make_optimizer(weights(), TrainingSection(optimizer="adamw_8bit"))
    assert error.value.where == "training.optimizer"


def test_the_pull_to_the_start_is_weight_decay_around_it() -> None:
    moved, start = weights(1), [parameter.detach().clone() for parameter in weights(2)]
    before = [parameter.detach().clone() for parameter in moved]
    pull_to_start(moved, start, 0.1, 0.5)
    for now, then, origin in zip(moved, before, start, strict=True):
        assert torch.allclose(now, then + 0.05 * (origin - then))


def test_noise_is_as_high_as_the_paper_says_and_only_while_training() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    plain = copy.deepcopy(model.get_input_embeddings().weight)
    seen: list[torch.Tensor] = []

    def nll(batch: Batch, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(model.get_input_embeddings()(batch.input_ids)[0])
        return seen[-1].sum(), weights

    lengths = (40, 160)
    rows = [
        Example(
            input_ids=np.full(length, 7, np.int32),
            loss_weights=np.eye(length, dtype=np.float32)[1],
            conversation_id="x",
        )
        for length in lengths
    ]
    batch = examples_to_batch(rows)
    noisy = with_noise(Objective(nll), model, alpha=5.0)
    noisy.nll(batch, batch.weights)
    for part, length in zip(seen[-1].split(lengths), lengths, strict=True):
        noise: Any = (part - plain[7]).detach()
        height = 5.0 / (length * 32) ** 0.5
        assert 0.95 * height < noise.abs().max() <= height
        assert abs(noise.mean()) < 0.05 * height
    with torch.no_grad():
        noisy.nll(batch, batch.weights)
    assert torch.equal(seen[-1], plain[batch.input_ids[0]])
