"""The base in 4 bits: as transformers loads it, as its unpacked weights answer, and unchanged by validation."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from halo_forge.errors import UsageError
from halo_forge.models import quantised
from halo_forge.models.adapters import add_lora, base_model_view
from halo_forge.models.load import load_model
from halo_forge.models.quiet import quiet_bitsandbytes, quiet_transformers
from halo_forge.models.save import load_trained, merge_adapter, save_final

IDS = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(0))
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the extra `quantised`)"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def lora(model: torch.nn.Module):
    model = add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def unpacked(model: torch.nn.Module, dense: torch.nn.Module) -> torch.nn.Module:
    """`dense` with the values that the 4-bit weights stand for."""
    import bitsandbytes.functional

    for name, module in model.named_modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            dense.get_submodule(name).weight.data = weight.to(dense.dtype)
    return dense


@needs_bitsandbytes
@DTYPES
def test_it_is_what_transformers_loads(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    with quiet_bitsandbytes(), quiet_transformers():
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        reference = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir, quantization_config=config, dtype=dtype, attn_implementation="eager"
        )
    model = load_model(str(tiny_model_dir), dtype=dtype, in_4_bits=True)
    packed = quantised.quantised_layers(model)
    assert len(packed) == 14  # seven in each of two blocks; embeddings and output layer stay as they are
    for name, parameter in reference.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    reference.train()  # in eval mode it would repack its weights, see below
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(IDS).logits)
    assert quantised.num_parameters(model) == load_model(str(tiny_model_dir), dtype=dtype).num_parameters()


@needs_bitsandbytes
@DTYPES
def test_it_answers_as_its_unpacked_weights(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    model = load_model(str(tiny_model_dir), dtype=dtype, in_4_bits=True)
    plain = load_model(str(tiny_model_dir), dtype=dtype)
    dense = unpacked(model, copy.deepcopy(plain))
    with torch.no_grad():
        answer, expected, full = model(IDS).logits, dense(IDS).logits, plain(IDS).logits
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert (answer - expected).abs().max() <= tolerance * expected.abs().max()
    assert (answer - full).abs().max() > 0.05  # it is quantised indeed


@needs_bitsandbytes
@DTYPES
def test_gradients_of_the_adapter_are_those_over_the_unpacked_weights(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    model = load_model(str(tiny_model_dir), dtype=dtype, in_4_bits=True)
    dense = unpacked(model, load_model(str(tiny_model_dir), dtype=dtype))
    found = []
    for base in (model, dense):
        adapted = lora(base).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            adapted(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for name, expected in found[1].items():
        assert found[0][name].dtype == torch.float32
        assert (found[0][name] - expected).norm() <= tolerance * expected.norm(), name


@needs_bitsandbytes
@DTYPES
def test_validation_does_not_change_the_weights(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    """bitsandbytes repacks them in eval mode on some CPUs, with scales rounded to bfloat16."""
    model = load_model(str(tiny_model_dir), dtype=dtype, in_4_bits=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    scales = [layer.weight.quant_state.absmax.clone() for layer in quantised.quantised_layers(model)]
    with torch.no_grad():
        first = model.eval()(IDS).logits
        model.train()(IDS)
        assert torch.equal(model.eval()(IDS).logits, first)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    now = [layer.weight.quant_state.absmax for layer in quantised.quantised_layers(model)]
    assert all(torch.equal(one, two) for one, two in zip(scales, now, strict=True))


@needs_bitsandbytes
def test_the_adapter_is_saved_alone_and_folds_into_the_unquantised_base(
    tiny_model_dir: Path, tiny_tokenizer, tmp_path: Path
) -> None:
    model = lora(load_model(str(tiny_model_dir), dtype=torch.float32, in_4_bits=True)).eval()
    with torch.no_grad(), base_model_view(model):
        base = model(IDS).logits
    with torch.no_grad():
        assert (model(IDS).logits - base).abs().max() > 0.1
    directory = save_final(model, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))
    assert {path.name for path in directory.glob("*.safetensors")} == {"adapter_model.safetensors"}
    loaded = load_trained(directory, dtype=torch.float32)
    assert not quantised.quantised_layers(loaded)
    merged = merge_adapter(load_model(str(tiny_model_dir), dtype=torch.float32), directory)
    with torch.no_grad():
        assert (merged(IDS).logits - loaded(IDS).logits).abs().max() < 1e-4


def test_without_bitsandbytes_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError) as caught:
        load_model(str(tiny_model_dir), dtype=torch.float32, in_4_bits=True)
    assert 'pip install "halo-forge[quantised]"' in str(caught.value.fix)
