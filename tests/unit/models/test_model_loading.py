"""Loading: what a library would only have warned about is an error, and nothing reaches the terminal."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from halo_forge.errors import ModelNotFound
from halo_forge.models.load import load_model, load_tokenizer


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata={"format": "pt"})


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def failure(directory: Path) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        load_model(str(directory), dtype=torch.float32)
    assert "\n" not in caught.value.what
    return caught.value


NORM = "model.norm.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def test_weights_arrive_as_saved_in_the_type_asked_for(tiny_model_dir: Path, tiny_llama) -> None:
    saved = tiny_llama(seed=0).state_dict()
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(str(tiny_model_dir), dtype=dtype)
        assert not model.training
        assert model.config._attn_implementation == "eager"
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, saved[name].to(dtype)), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(model_dir: Path, value: float) -> None:
    weight = load_file(model_dir / "model.safetensors")[UP].clone()
    weight[3, 5] = value
    rewrite(model_dir, **{UP: weight})
    assert UP in failure(model_dir).what


def test_a_missing_weight_is_refused_and_not_made_up(model_dir: Path) -> None:
    rewrite(model_dir, **{NORM: None})
    assert f"1 weights are missing: {NORM}" in failure(model_dir).what


def test_a_weight_of_another_shape_is_refused(model_dir: Path) -> None:
    rewrite(model_dir, **{NORM: torch.ones(32)})
    assert NORM in failure(model_dir).what


def test_a_foreign_weight_is_noted(model_dir: Path) -> None:
    rewrite(model_dir, **{"model.extra.weight": torch.ones(2)})
    notes: list[str] = []
    load_model(str(model_dir), dtype=torch.float32, notify=lambda event, fields: notes.append(fields["text"]))
    assert len(notes) == 1
    assert "model.extra.weight" in notes[0]


def test_an_unknown_architecture_is_named(model_dir: Path) -> None:
    edit_config(model_dir, model_type="llama_of_the_future")
    assert "llama_of_the_future" in failure(model_dir).what


def test_a_model_that_does_not_continue_text_is_refused(model_dir: Path) -> None:
    edit_config(model_dir, model_type="whisper", architectures=["WhisperModel"])
    edit_config(model_dir, model_type="clip", architectures=["CLIPModel"])
    assert "`clip` is not a causal language model" in failure(model_dir).what


def test_a_tokenizer_larger_than_the_embedding_is_refused(model_dir: Path) -> None:
    edit_config(model_dir, vocab_size=511)
    with pytest.raises(ModelNotFound, match="ids up to 511, the model has embeddings for 511"):
        load_tokenizer(str(model_dir))
    edit_config(model_dir, vocab_size=512)
    load_tokenizer(str(model_dir))


def test_a_directory_without_a_tokenizer_says_so(model_dir: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model_dir / name).unlink()
    with pytest.raises(ModelNotFound, match="no tokenizer"):
        load_tokenizer(str(model_dir))


def test_a_tokenizer_in_its_own_folder_is_found(model_dir: Path, tiny_tokenizer) -> None:
    (model_dir / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model_dir / name).rename(model_dir / "tokenizer" / name)
    loaded = load_tokenizer(str(model_dir))
    assert loaded.get_vocab() == tiny_tokenizer.get_vocab()
    assert loaded.chat_template == tiny_tokenizer.chat_template


def test_a_damaged_tokenizer_is_an_error_in_words(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelNotFound, match="tokenizer cannot be read"):
        load_tokenizer(str(model_dir))


def test_loading_says_nothing_and_restores_every_setting(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
    hook = transformers_logging.set_tqdm_hook(None)
    state = torch.get_rng_state()
    load_tokenizer(str(tiny_model_dir))
    load_model(str(tiny_model_dir), dtype=torch.float32)
    assert [logger.level for logger in loggers] == [logging.INFO, logging.INFO]
    assert transformers_logging.set_tqdm_hook(hook) is None
    assert torch.equal(torch.get_rng_state(), state)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
