"""Bottleneck adapters: the formula, the start, the switch, and files that read back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from halo_forge.errors import CheckpointError, UsageError
from halo_forge.evaluate.answer_cache import weights_fingerprint
from halo_forge.models.adapters import base_model_view, load_trainable_state, trainable_state
from halo_forge.models.bottleneck import BottleneckOptions, add_bottlenecks, bottleneck_state, bottlenecks
from halo_forge.models.load import load_model
from halo_forge.models.save import load_trained, merge_adapter, save_final
from halo_forge.models.weights import load_weights, save_weights

IDS = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(0))


def adapted(model, *, seed: int = 1, **options):
    return add_bottlenecks(model, BottleneckOptions(**{"size": 6, **options}), seed=seed)


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in bottlenecks(model).values():
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def families():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2)).eval()
        config = Qwen3Config(
            vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16,
        )  # fmt: skip
        yield Qwen3ForCausalLM(config).eval()


@pytest.mark.parametrize("after_attention", [False, True])
def test_it_starts_as_the_base_and_trains_only_the_adapters(tiny_llama, after_attention: bool) -> None:
    base = tiny_llama(seed=0)(IDS).logits
    names = [name for name, _ in tiny_llama(seed=0).named_parameters()]
    model = adapted(tiny_llama(seed=0), after_attention=after_attention)
    assert torch.equal(model(IDS).logits, base)
    state = trainable_state(model)
    assert len(state) == 2 * (1 + after_attention) * 4  # layers x places x (two weights and biases)
    assert all("bottleneck_adapter" in name for name in state)
    assert [name for name, _ in model.named_parameters() if name not in state] == names
    assert sum(tensor.numel() for tensor in state.values()) == 2 * (1 + after_attention) * (2 * 64 * 6 + 6 + 64)


@pytest.mark.parametrize("after_attention", [False, True])
def test_other_families_take_them_too(after_attention: bool) -> None:
    for model in families():
        base = model(IDS).logits
        adapted(model, after_attention=after_attention)
        assert torch.equal(model(IDS).logits, base)
        disturb(model)
        assert (model(IDS).logits - base).abs().max() > 1e-3
        with base_model_view(model):
            assert torch.equal(model(IDS).logits, base)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_the_formula(tiny_llama, activation: str) -> None:
    """A layer's MLP and adapter, against plain products in float64."""
    model = adapted(tiny_llama(seed=0), activation=activation)
    disturb(model)
    mlp = model.model.layers[1].mlp
    adapter = mlp.bottleneck_adapter
    hidden = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(3))
    function = {
        "relu": torch.relu, "tanh": torch.tanh, "silu": lambda x: x * torch.sigmoid(x),
        "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    }[activation]  # fmt: skip
    with base_model_view(model), torch.no_grad():
        plain = mlp(hidden).double()
    inner = function(plain @ adapter.down.weight.double().T + adapter.down.bias.double())
    expected = plain + inner @ adapter.up.weight.double().T + adapter.up.bias.double()
    with torch.no_grad():
        assert (mlp(hidden).double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_with_recomputed_activations_are_the_same(tiny_llama) -> None:
    found = []
    for recompute in (False, True):
        model = adapted(tiny_llama(seed=0), after_attention=True).train()
        disturb(model)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(trainable_state(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_start_depends_on_the_seed_and_on_nothing_else(tiny_llama) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = bottleneck_state(adapted(tiny_llama(seed=0)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = bottleneck_state(adapted(tiny_llama(seed=7), after_attention=True))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = bottleneck_state(adapted(tiny_llama(seed=0), seed=2))
    assert not torch.equal(*(state["model.layers.0.mlp.bottleneck_adapter.down.weight"] for state in (first, other)))


def test_kept_answers_of_the_base_are_told_from_those_of_the_tuned_model(tiny_llama) -> None:
    base = weights_fingerprint(tiny_llama(seed=0), adapters=True)
    model = adapted(tiny_llama(seed=0))
    disturb(model)
    assert weights_fingerprint(model, adapters=False) == base
    assert weights_fingerprint(model, adapters=True) != base


def test_the_base_view_ends_with_an_error_too(tiny_llama) -> None:
    model = adapted(tiny_llama(seed=0))
    with pytest.raises(ValueError, match="x"), base_model_view(model):
        raise ValueError("x")
    assert all(adapter.enabled for adapter in bottlenecks(model).values())


def test_a_checkpoint_of_it_reads_back(tiny_llama, tmp_path: Path) -> None:
    model, other = adapted(tiny_llama(seed=0)), adapted(tiny_llama(seed=0), seed=2)
    disturb(model)
    save_weights(model, tmp_path)
    load_weights(other, tmp_path)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    third = adapted(tiny_llama(seed=0), seed=3)
    load_trainable_state(third, trainable_state(model))
    assert torch.equal(third(IDS).logits, model(IDS).logits)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(adapted(tiny_llama(seed=0), after_attention=True), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(adapted(tiny_llama(seed=0), size=7), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_final_model_holds_the_adapter_alone(tiny_tokenizer, tiny_model_dir, tmp_path, dtype) -> None:
    model = adapted(load_model(str(tiny_model_dir), dtype=dtype), after_attention=True, activation="gelu")
    disturb(model)
    directory = save_final(model, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))
    assert {path.name for path in directory.glob("*.safetensors")} == {"bottleneck.safetensors"}
    config = json.loads((directory / "bottleneck_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model_dir.resolve())
    assert (config["size"], config["activation"], config["after_attention"]) == (6, "gelu", True)
    loaded = load_trained(directory, dtype=dtype)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert not trainable_state(loaded)
    with pytest.raises(UsageError, match="cannot be merged"):
        merge_adapter(load_model(str(tiny_model_dir), dtype=torch.float32), directory)


def test_damaged_files_are_refused(tiny_llama, tiny_tokenizer, tiny_model_dir, tmp_path: Path) -> None:
    directory = save_final(adapted(tiny_llama(seed=0)), tiny_tokenizer, tmp_path / "final", str(tiny_model_dir))
    path = directory / "bottleneck_config.json"
    good = json.loads(path.read_text())
    for changes, words in (
        ({"activation": "swiglu"}, "not the settings"),
        ({"size": 0}, "not the settings"),
        ({"size": 7}, "does not fit"),
    ):
        path.write_text(json.dumps(good | changes))
        with pytest.raises(CheckpointError, match=words):
            load_trained(directory, dtype=torch.float32)
    path.write_text(json.dumps(good))
    (directory / "bottleneck.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_trained(directory, dtype=torch.float32)


def test_a_model_without_known_modules_is_refused(tiny_llama) -> None:
    model = tiny_llama(seed=0)
    model.model.layers[1].other = model.model.layers[1].mlp
    del model.model.layers[1].mlp
    with pytest.raises(UsageError, match="layer 1 of this model has no module known as its MLP"):
        adapted(model)
