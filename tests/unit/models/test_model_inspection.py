"""Hostile and broken model directories are refused, by name and with the reason, before anything of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from halo_forge.errors import ExitCode, ModelNotFound
from halo_forge.models import inspection
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.resolve import resolve_model


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    change(value)
    path.write_text(json.dumps(value))


def refusal(directory: Path) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(str(directory))
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.where is not None
    return caught.value


def test_a_sound_directory_passes(model_dir: Path) -> None:
    assert resolve_model(str(model_dir)) == model_dir.resolve()


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "auto_map"),
        ("config.json", {"_attn_implementation_internal": "evil/kernels"}, "_attn_implementation_internal"),
        ("config.json", {"trust_remote_code": True}, "trust_remote_code"),
        ("config.json", {"text_config": {"deep": [{"auto_map": {}}]}}, "auto_map"),
        ("config.json", {"attn_implementation": "evil/kernels:run"}, "attn_implementation"),
        ("config.json", {"_attn_implementation": {"text": "evil/kernels"}}, "_attn_implementation"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.Evil", None]}}, "auto_map"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, "auto_map"),
        ("generation_config.json", {"trust_remote_code": True}, "trust_remote_code"),
    ],
)
def test_a_configuration_that_asks_for_code_is_refused(
    model_dir: Path, name: str, change: dict[str, Any], key: str
) -> None:
    (model_dir / name).parent.mkdir(exist_ok=True)
    edit_json(model_dir / name, lambda value: value.update(change))
    error = refusal(model_dir)
    assert f"{key}`" in error.what
    assert name in str(error.where)
    with pytest.raises(ModelNotFound):
        load_tokenizer(str(model_dir))


def test_ordinary_attention_names_are_not_mistaken_for_kernels(model_dir: Path) -> None:
    edit_json(model_dir / "config.json", lambda value: value.update(_attn_implementation="sdpa"))
    edit_json(model_dir / "config.json", lambda value: value.update(_attn_implementation_autoset=True))
    resolve_model(str(model_dir))


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def test_pickled_weights_are_refused_and_never_opened(model_dir: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (model_dir / "model.safetensors").unlink()
    (model_dir / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    assert "pytorch_model.bin" in refusal(model_dir).what
    with pytest.raises(ModelNotFound):
        load_model(str(model_dir), dtype=torch.float32)
    assert not canary.exists()


def test_a_directory_without_weights_says_so(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    assert refusal(model_dir).what == "no weights in this directory"
    assert load_tokenizer(str(model_dir)) is not None  # nothing but a tokenizer was asked for


def shard(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_missing_shard_is_named(model_dir: Path) -> None:
    shard(model_dir, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    error = refusal(model_dir)
    assert "1 of 2 weight files are missing: model-00002-of-00002.safetensors" in error.what


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_an_index_cannot_point_outside_its_directory(model_dir: Path, outside: str) -> None:
    shard(model_dir, {"a": outside})
    assert "outside its directory" in refusal(model_dir).what


@pytest.mark.parametrize("weight_map", [None, {}, [1], "x"])
def test_an_index_without_weights_is_refused(model_dir: Path, weight_map: Any) -> None:
    shard(model_dir, weight_map)
    assert "lists no weights" in refusal(model_dir).what


def test_a_truncated_weight_file_is_damage(model_dir: Path) -> None:
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged weights" in refusal(model_dir).what


def test_a_git_lfs_pointer_is_recognised(model_dir: Path) -> None:
    (model_dir / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(model_dir).what


def test_a_weight_file_without_tensors_is_refused(model_dir: Path) -> None:
    save_file({}, model_dir / "model.safetensors")
    assert "holds no tensors" in refusal(model_dir).what


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "a JSON list"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("x" * (inspection.MAX_CONFIG_BYTES + 1), "larger than"),
    ],
)
def test_a_config_that_is_no_object_is_refused(model_dir: Path, content: str | bytes, words: str) -> None:
    data = content.encode() if isinstance(content, str) else content
    (model_dir / "config.json").write_bytes(data)
    assert words in refusal(model_dir).what


def test_an_adapter_given_as_a_model_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/the-base"}))
    error = refusal(tmp_path)
    assert "an adapter, not a model" in error.what
    assert "org/the-base" in str(error.fix)


def test_a_run_directory_given_as_a_model_points_to_the_model_in_it(model_dir: Path) -> None:
    error = refusal(model_dir.parent)
    assert "no config.json" in error.what
    assert str(model_dir) in str(error.fix)
