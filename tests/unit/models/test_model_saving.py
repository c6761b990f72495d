"""final_model/: complete, the same when read back, and replaced in one step or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halo_forge.errors import CheckpointError, ModelNotFound, TrainingError
from halo_forge.models import save
from halo_forge.models.adapters import add_lora, trainable_state
from halo_forge.models.load import load_tokenizer
from halo_forge.models.save import load_trained, merge_adapter, save_final, weights_sha256

IDS = torch.arange(3, 27).reshape(2, 12)
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def adapted(model, seed: int = 1):
    model = add_lora(model, r=4, alpha=8, dropout=0.1, target_modules="all-linear", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def final_model(tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path) -> Path:
    return save_final(adapted(tiny_llama(seed=0)), tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))


def test_an_adapter_is_saved_with_all_that_is_needed_to_use_it(
    final_model: Path, tiny_model_dir: Path, tiny_llama, tiny_tokenizer
) -> None:
    assert names(final_model) == TOKENIZER_FILES | {
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "tokenizer",
    }  # fmt: skip
    assert names(final_model / "tokenizer") == TOKENIZER_FILES
    config = json.loads((final_model / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model_dir)
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    assert config["target_modules"] == sorted(config["target_modules"])
    assert len(load_file(final_model / "adapter_model.safetensors")) == len(
        trainable_state(adapted(tiny_llama(seed=0)))
    )
    expected = adapted(tiny_llama(seed=0))
    loaded = load_trained(final_model, dtype=torch.float32)
    assert torch.equal(loaded(IDS).logits, expected(IDS).logits)
    assert not trainable_state(loaded)
    assert load_tokenizer(str(final_model)).chat_template == tiny_tokenizer.chat_template


def test_equal_models_are_saved_as_equal_bytes(
    final_model: Path, tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    tiny_tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)  # leaves its mark in a tokenizer
    again = save_final(adapted(tiny_llama(seed=0)), tiny_tokenizer, tmp_path / "again", str(tiny_model_dir))
    for path in final_model.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(final_model)).read_bytes(), path.name
    assert weights_sha256(final_model) == weights_sha256(again)
    other = save_final(adapted(tiny_llama(seed=0), seed=2), tiny_tokenizer, tmp_path / "other", str(tiny_model_dir))
    assert weights_sha256(other) != weights_sha256(final_model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_full_model_is_saved_in_the_type_of_its_base_unless_told(
    tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    model = tiny_llama(seed=5)
    model.config.use_cache = False  # as training has it
    directory = save_final(model, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir), dtype=dtype)
    assert names(directory) == TOKENIZER_FILES | {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer",
    }  # fmt: skip
    stored = load_file(directory / "model.safetensors")
    wanted = dtype or torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {wanted}
    assert "lm_head.weight" not in stored  # tied: kept once
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == str(wanted).removeprefix("torch.")
    assert "attn_implementation" not in json.dumps(config)
    assert config["use_cache"] is True
    loaded = load_trained(directory, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(wanted).float()), name
    assert model.dtype == torch.float32  # the one in memory is left alone


def test_a_bfloat16_base_gives_a_bfloat16_full_model(
    tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = save_final(tiny_llama(seed=0), tiny_tokenizer, tmp_path / "base", str(tiny_model_dir), dtype=torch.bfloat16)
    assert save.stored_dtype(base) == torch.bfloat16
    tuned = save_final(tiny_llama(seed=5), tiny_tokenizer, tmp_path / "tuned", str(base))
    assert save.stored_dtype(tuned) == torch.bfloat16


def test_generation_stops_where_base_tokenizer_and_run_say(
    tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model_dir, tmp_path / "base"))
    settings = {"eos_token_id": [7, 2], "temperature": 0.6, "do_sample": True, "_from_model_config": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    directory = save_final(
        adapted(tiny_llama(seed=0)), tiny_tokenizer, tmp_path / "final_model", str(base), stop_token_ids=(1,)
    )
    written = json.loads((directory / "generation_config.json").read_text())
    assert written == {"eos_token_id": [1, 2, 7], "temperature": 0.6, "do_sample": True, "pad_token_id": 0}
    (base / "generation_config.json").unlink()
    plain = save_final(adapted(tiny_llama(seed=0)), tiny_tokenizer, tmp_path / "plain", str(base))
    assert json.loads((plain / "generation_config.json").read_text()) == {"eos_token_id": 2, "pad_token_id": 0}


def test_a_hub_model_is_kept_as_its_id_and_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(save.constants, "HF_HUB_CACHE", str(tmp_path))
    assert save.base_reference(snapshot) == ("org/tiny", "abc123")
    assert save.base_reference(tmp_path / "elsewhere") == (str(tmp_path / "elsewhere"), None)


def test_a_directory_is_replaced_whole(final_model: Path, tiny_llama, tiny_tokenizer, tiny_model_dir: Path) -> None:
    (final_model / "left-over").write_text("of an earlier run")
    before = weights_sha256(final_model)
    save_final(adapted(tiny_llama(seed=0), seed=9), tiny_tokenizer, final_model, str(tiny_model_dir))
    assert weights_sha256(final_model) != before
    assert not (final_model / "left-over").exists()
    assert names(final_model.parent) == {"final_model"}


def test_what_does_not_read_back_is_never_put_in_place(
    final_model: Path, tiny_llama, tiny_tokenizer, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in final_model.iterdir() if path.is_file()}

    def lose_all(tensors, path, metadata):
        save_file({}, path, metadata=metadata)  # the 40-byte adapter of transformers #41416

    def lose_one(tensors, path, metadata):
        save_file(dict(list(tensors.items())[1:]), path, metadata=metadata)

    def round_off(tensors, path, metadata):
        save_file({name: t.to(torch.bfloat16).float() for name, t in tensors.items()}, path, metadata=metadata)

    for damage in (lose_all, lose_one, round_off):
        monkeypatch.setattr(save, "save_file", damage)
        with pytest.raises(TrainingError, match="not saved faithfully"):
            save_final(adapted(tiny_llama(seed=0), seed=9), tiny_tokenizer, final_model, str(tiny_model_dir))
        assert {path.name: path.read_bytes() for path in final_model.iterdir() if path.is_file()} == before
        assert names(final_model.parent) == {"final_model"}


def test_a_tokenizer_that_changes_on_disk_is_caught(
    tiny_llama, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(tiny_model_dir))
    tokenizer.chat_template += "{# changed #}"
    write = tokenizer.save_pretrained

    def forget_template(directory, **options):
        write(directory, **options)
        (Path(directory) / "chat_template.jinja").write_text("{{ messages }}")

    monkeypatch.setattr(tokenizer, "save_pretrained", forget_template)
    with pytest.raises(TrainingError, match="tokenizer does not read back"):
        save_final(adapted(tiny_llama(seed=0)), tokenizer, tmp_path / "final_model", str(tiny_model_dir))


def test_a_damaged_adapter_is_refused(final_model: Path) -> None:
    path = final_model / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    for damage, words in (
        ({name: tensor for name, tensor in tensors.items() if name != first}, "holds 27 of the 28"),
        ({}, "holds 0 of the 28"),
        (tensors | {first: torch.zeros(3, 3)}, "does not fit"),
    ):
        save_file(damage, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            load_trained(final_model, dtype=torch.float32)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_trained(final_model, dtype=torch.float32)


def test_an_adapter_whose_base_is_gone_says_which(final_model: Path) -> None:
    path = final_model / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ModelNotFound, match="/gone/base"):
        load_trained(final_model, dtype=torch.float32)
    path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelNotFound, match="does not say which model"):
        load_trained(final_model, dtype=torch.float32)


def test_merging_wants_a_float32_base(final_model: Path, tiny_llama) -> None:
    with pytest.raises(ValueError, match="float32"):
        merge_adapter(tiny_llama(seed=0).to(torch.bfloat16), final_model)
