"""Every kind of LoRA against peft used directly (same weights: equal logits and gradients, bit for bit), and against
the formulas of the papers, computed on dense weights in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaForCausalLM

from halo_forge.evaluate.answer_cache import weights_fingerprint
from halo_forge.models.adapters import add_lora, base_model_view, load_trainable_state, trainable_state
from halo_forge.models.load import load_model
from halo_forge.models.lora_options import LoraOptions
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.save import load_trained, merge_adapter, save_final

IDS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
# name -> (our options, peft's arguments)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "dora": ({"use_dora": True}, {"use_dora": True}),
    "rslora": ({"use_rslora": True}, {"use_rslora": True}),
    "dora and rslora": ({"use_dora": True, "use_rslora": True}, {"use_dora": True, "use_rslora": True}),
    "patterns": (
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7}, "alpha_pattern": {"down_proj": 3.0}},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 7}, "alpha_pattern": {"down_proj": 3}},
    ),
    "layers": (
        {"layers_to_transform": [1], "exclude_modules": ["k_proj", "mlp.up_proj"]},
        {"layers_to_transform": [1], "exclude_modules": ["k_proj", "mlp.up_proj"]},
    ),
    "a norm, whole": ({"modules_to_save": ["model.norm"]}, {"modules_to_save": ["model.norm"]}),
    "tied embeddings, whole": (
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "new rows": ({"token_ids": [7, 510]}, {"trainable_token_indices": {"embed_tokens": [7, 510]}}),
}
TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def ours(base: LlamaForCausalLM, **options: Any) -> PeftModel:
    return add_lora(
        base, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=1, options=LoraOptions(**options)
    )


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Stand-in for training: every trainable weight moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_pefts(tiny_llama, variant: str) -> None:
    mine, theirs = VARIANTS[variant]
    model = ours(tiny_llama(seed=0), **mine)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM", **theirs)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        reference = get_peft_model(tiny_llama(seed=0), config)
    disturb(model)
    state = trainable_state(model)
    load_trainable_state(reference, state)  # refuses other names or shapes
    assert torch.equal(model(IDS).logits, reference(IDS).logits)
    found, expected = gradients(model), gradients(reference)
    assert set(found) == set(expected) == set(state)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_starts_as_the_base_and_shows_it_again(tiny_llama, variant: str) -> None:
    base = tiny_llama(seed=0)(IDS).logits
    model = ours(tiny_llama(seed=0), **VARIANTS[variant][0])
    start = model(IDS).logits
    # DoRA divides each row by its length and multiplies by it again
    torch.testing.assert_close(start, base, rtol=0, atol=0 if "dora" not in variant else 1e-5)
    disturb(model)
    assert (model(IDS).logits - base).abs().max() > 0.05
    with base_model_view(model):
        assert torch.equal(model(IDS).logits, base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_start_of_every_variant_is_the_seeds(tiny_llama, variant: str) -> None:
    """lora_A of a layer is the same in every variant that gives it the same rank; nothing else is random."""
    plain = trainable_state(ours(tiny_llama(seed=0)))
    torch.manual_seed(77)
    mine = trainable_state(ours(tiny_llama(seed=0), **VARIANTS[variant][0]))
    torch.manual_seed(78)
    again = trainable_state(ours(tiny_llama(seed=0), **VARIANTS[variant][0]))
    assert set(mine) == set(again)
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    same = [name for name in mine if name in plain and mine[name].shape == plain[name].shape]
    assert len(same) >= 8
    assert all(torch.equal(mine[name], plain[name]) for name in same)


def dense(model: PeftModel, base: LlamaForCausalLM, scale: float, *, dora: bool) -> LlamaForCausalLM:
    """The base in float64 with every adapted weight replaced by what the papers' formulas say."""
    result = copy.deepcopy(base).double()
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight.double()
            weight = weight + scale * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
            if dora:
                magnitude = layer.lora_magnitude_vector["default"].weight.double()
                weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
            result.get_submodule(name).weight.data = weight
    return result


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 2.0), ({"use_rslora": True}, 4.0), ({"use_dora": True}, 2.0), ({"use_dora": True, "use_rslora": True}, 4.0)],
    ids=str,
)
def test_the_formulas_of_the_papers(tiny_llama, options: dict[str, bool], scale: float) -> None:
    model = ours(tiny_llama(seed=0), **options)
    disturb(model)
    reference = dense(model, tiny_llama(seed=0), scale, dora=options.get("use_dora", False))
    with torch.no_grad():
        answer, expected = model(IDS).logits.double(), reference(IDS).logits
    assert (answer - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_is_float32_on_a_bfloat16_base(tiny_llama, variant: str) -> None:
    base = tiny_llama(seed=0).to(torch.bfloat16)
    expected = copy.deepcopy(base)(IDS).logits
    model = ours(base, **VARIANTS[variant][0])
    assert {tensor.dtype for tensor in trainable_state(model).values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = model(IDS).logits
    assert (start - expected).abs().max() <= 0.05 * expected.abs().max()
    disturb(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_the_magnitude_is_exact_on_a_bfloat16_base(tiny_llama) -> None:
    """Rounded to bfloat16 it would be off by up to 0.2 %, and the start would not be the base model."""
    model = ours(tiny_llama(seed=0).to(torch.bfloat16), use_dora=True)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            expected = layer.get_base_layer().weight.double().norm(dim=1)
            found = layer.lora_magnitude_vector["default"].weight.double()
            assert ((found - expected).abs() / expected).max() < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_loaded_and_merged(
    tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path, variant: str
) -> None:
    """What is written answers the same, with us and with peft alone; so does the merged model, saved again."""
    model = ours(tiny_llama(seed=0), **VARIANTS[variant][0]).eval()
    disturb(model)
    directory = save_final(model, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))
    with torch.no_grad():
        expected = model(IDS).logits
        assert torch.equal(load_trained(directory, dtype=torch.float32)(IDS).logits, expected)
        with quiet_transformers():
            base = LlamaForCausalLM.from_pretrained(tiny_model_dir, attn_implementation="eager")
            assert torch.equal(PeftModel.from_pretrained(base, directory).eval()(IDS).logits, expected)
        merged = merge_adapter(load_model(str(tiny_model_dir), dtype=torch.float32), directory)
        answer = merged(IDS).logits
        assert (answer - expected).abs().max() < 1e-4
        again = save_final(merged, tiny_tokenizer, tmp_path / "merged", str(tiny_model_dir))
        assert torch.equal(load_trained(again, dtype=torch.float32)(IDS).logits, answer)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_answers_of_the_base_are_told_from_those_of_the_tuned_model(tiny_llama, variant: str) -> None:
    """Evaluation keeps answers by a fingerprint of the weights that give them."""
    model = ours(tiny_llama(seed=0), **VARIANTS[variant][0]).eval()
    disturb(model)
    base = weights_fingerprint(tiny_llama(seed=0), adapters=True)
    assert weights_fingerprint(model, adapters=False) == base
    assert weights_fingerprint(model, adapters=True) != base
