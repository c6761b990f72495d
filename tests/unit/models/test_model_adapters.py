"""LoRA: what is trained, where it starts, and that its weights travel bit for bit."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from halo_forge.errors import CheckpointError, UsageError
from halo_forge.models.adapters import (
    add_lora,
    base_model_view,
    linear_module_names,
    load_trainable_state,
    trainable_state,
)

IDS = torch.arange(24).reshape(2, 12)
ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def lora(model, *, seed: int = 1, targets="all-linear", r: int = 4) -> PeftModel:
    return add_lora(model, r=r, alpha=8, dropout=0.0, target_modules=targets, seed=seed)


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Stand-in for training: every trainable weight moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_it_starts_as_the_base_model_and_trains_only_the_adapter(tiny_llama) -> None:
    base = tiny_llama(seed=0)(IDS).logits
    model = lora(tiny_llama(seed=0))
    assert torch.equal(model(IDS).logits, base)
    state = trainable_state(model)
    assert len(state) == 2 * len(ALL_LINEAR) * 2  # A and B, seven layers, two blocks
    assert all(".lora_" in name for name in state)
    assert not any("lm_head" in name for name in state)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(t.numel() for t in state.values())


def test_the_start_depends_on_the_seed_and_on_nothing_else(tiny_llama) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = trainable_state(lora(tiny_llama(seed=0)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = trainable_state(lora(tiny_llama(seed=7)))
    assert equal(first, again)
    assert not equal(first, trainable_state(lora(tiny_llama(seed=0), seed=2)))
    some = trainable_state(lora(tiny_llama(seed=0), targets=["q_proj", "down_proj"]))
    assert equal(some, {name: first[name] for name in some})
    assert len(some) == 8


def test_lora_a_is_spread_as_kaiming_uniform_and_lora_b_is_zero(tiny_llama) -> None:
    state = trainable_state(lora(tiny_llama(seed=0), r=64))
    for name, tensor in state.items():
        if "lora_B" in name:
            assert not tensor.any()
            continue
        bound = tensor.shape[1] ** -0.5
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    drawn = [tensor for name, tensor in state.items() if "lora_A" in name and tensor.shape[1] == 64]
    assert len({tensor.sum().item() for tensor in drawn}) == len(drawn)  # no two layers share a draw


def test_the_adapter_is_float32_on_a_bfloat16_base(tiny_llama) -> None:
    model = lora(tiny_llama(seed=0).to(torch.bfloat16))
    assert {tensor.dtype for tensor in trainable_state(model).values()} == {torch.float32}
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16


def test_named_targets_must_all_exist(tiny_llama) -> None:
    with pytest.raises(UsageError) as caught:
        lora(tiny_llama(seed=0), targets=["q_proj", "c_attn", "qproj"])
    assert "c_attn, qproj" in caught.value.what
    assert caught.value.where == "lora.target_modules"
    assert all(name in str(caught.value.expected) for name in ALL_LINEAR)
    with pytest.raises(UsageError) as caught:
        lora(tiny_llama(seed=0), targets=["qproj"])
    assert "q_proj" in str(caught.value.fix)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "norm", "proj", "model"])
def test_only_inner_linear_layers_take_an_adapter(tiny_llama, target: str) -> None:
    with pytest.raises(UsageError, match="no linear layer"):
        lora(tiny_llama(seed=0), targets=[target])
    assert target not in linear_module_names(tiny_llama(seed=0))


def test_an_empty_list_of_targets_is_refused(tiny_llama) -> None:
    with pytest.raises(UsageError, match="no layer is named"):
        lora(tiny_llama(seed=0), targets=[])


def test_the_base_view_answers_as_the_base_and_leaves_no_trace(tiny_llama) -> None:
    base = tiny_llama(seed=0)(IDS).logits
    model = lora(tiny_llama(seed=0))
    disturb(model)
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    model.train()
    tuned, trained = model(IDS).logits, set(trainable_state(model))
    with base_model_view(model) as view:
        assert torch.equal(view(IDS).logits, base)
    assert torch.equal(model(IDS).logits, tuned)
    assert not torch.equal(tuned, base)
    assert set(trainable_state(model)) == trained
    assert model.training
    with pytest.raises(ValueError, match="inside"), base_model_view(model):
        raise ValueError("inside")
    assert torch.equal(model(IDS).logits, tuned)
    assert set(trainable_state(model)) == trained


def test_a_full_model_has_no_base_view(tiny_llama) -> None:
    with pytest.raises(TypeError, match="load the base separately"), base_model_view(tiny_llama(seed=0)):
        pass


@pytest.mark.parametrize("full", [True, False])
def test_trainable_weights_travel_bit_for_bit(tiny_llama, full: bool) -> None:
    def build():
        return tiny_llama(seed=0) if full else lora(tiny_llama(seed=0))

    source, target = build(), build()
    disturb(source)
    state = trainable_state(source)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    load_trainable_state(target, state)
    assert torch.equal(target(IDS).logits, source(IDS).logits)
    disturb(source, seed=1)
    disturb(target, seed=2)
    assert equal(state, kept)  # a copy: later training does not reach it
    if full:
        assert "lm_head.weight" not in state  # tied to the embedding, so it is one weight
        assert target.lm_head.weight is target.model.embed_tokens.weight


def test_a_state_that_does_not_fit_changes_nothing_and_is_told(tiny_llama) -> None:
    model = lora(tiny_llama(seed=0))
    before, state = trainable_state(model), trainable_state(model)
    disturb(model)
    moved = trainable_state(model)
    names = list(state)
    del state[names[0]]
    state["somewhere.else"] = torch.zeros(2)
    state[names[1]] = state[names[1]][:, :1]
    state[names[2]] = state[names[2]].double()
    with pytest.raises(CheckpointError) as caught:
        load_trainable_state(model, state)
    assert f"1 missing: {names[0]}" in caught.value.what
    assert "1 unexpected: somewhere.else" in caught.value.what
    assert f"2 different: {names[1]}" in caught.value.what
    assert names[2] in caught.value.what
    assert equal(trainable_state(model), moved)
    load_trainable_state(model, before)
    assert equal(trainable_state(model), before)
