"""The files in configs/: the three that the tool was asked for with, key by key, and that all of them load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from halo_forge.config import ResolvedConfig, config_json_schema, load_config
from halo_forge.config.keys import KEYS
from halo_forge.config.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SEEDS = ROOT.parent / "shared" / "seeds"
ALIAS_FILES = {"baseline", "axolotl"}

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# key of the file -> our key -> the value that it must have
EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "model.name": {"model.name": "Qwen/Qwen2.5-Coder-7B"},
        "data.train_file": {"data.train_file": "data/train.jsonl"},
        "data.max_seq_length": {"data.max_seq_length": 2048},
        "training.num_train_epochs": {"training.num_train_epochs": 3},
        "training.per_device_train_batch_size": {"training.per_device_train_batch_size": 2},
        "training.gradient_accumulation_steps": {"training.gradient_accumulation_steps": 16},
        "training.learning_rate": {"training.learning_rate": 2e-5},
        "training.warmup_ratio": {"training.warmup_ratio": 0.03},
        "training.bf16": {"training.bf16": True},
        "training.gradient_checkpointing": {"training.gradient_checkpointing": True},
        "training.dataloader_num_workers": {"training.dataloader_num_workers": 0},
        "training.dataloader_pin_memory": {"training.dataloader_pin_memory": False},
        "lora.r": {"lora.r": 64},
        "lora.alpha": {"lora.alpha": 128},
        "lora.dropout": {"lora.dropout": 0.05},
        "lora.target_modules": {"lora.target_modules": ALL_LINEAR},
        "output.dir": {"output.dir": "models/sft"},
        "output.save_steps": {"output.save_steps": 500},
        "output.logging_steps": {"output.logging_steps": 10},
    },
    "baseline": {
        "learning_rate": {"training.learning_rate": 2e-5},
        "batch_size": {"training.per_device_train_batch_size": 8},
        "gradient_accumulation_steps": {"training.gradient_accumulation_steps": 4},
        "max_steps": {"training.max_steps": 5000},
        "warmup_steps": {"training.warmup_steps": 500},
        "lr_scheduler": {"training.lr_scheduler": "cosine"},
        "weight_decay": {"training.weight_decay": 0.01},
        "max_length": {"data.max_seq_length": 2048},
    },
    "axolotl": {
        "base_model": {"model.name": "meta-llama/Llama-3.1-8B"},
        "datasets": {"data.train_file": "sft_train.jsonl", "data.format": "messages"},
        "sequence_len": {"data.max_seq_length": 4096},
        "adapter": {"training.method": "lora"},
        "lora_r": {"lora.r": 16},
        "lora_alpha": {"lora.alpha": 32},
        "lora_target_modules": {"lora.target_modules": ["q_proj", "v_proj"]},
        "bf16": {"training.bf16": True},
        "num_epochs": {"training.num_train_epochs": 2},
        "micro_batch_size": {"training.per_device_train_batch_size": 2},
        "gradient_accumulation_steps": {"training.gradient_accumulation_steps": 8},
        "output_dir": {"output.dir": "./axolotl-sft-out"},
    },
}


def load(name: str) -> ResolvedConfig:
    return load_config(ROOT / "configs" / f"{name}.yaml", environment={})


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_of_the_seeds_files_has_its_effect(name: str) -> None:
    document = read_yaml(ROOT / "configs" / f"{name}.yaml")
    written = {
        f"{key}.{inner}" if isinstance(entry.node.value, dict) else key
        for key, entry in document.entries().items()
        for inner in (entry.node.value if isinstance(entry.node.value, dict) else [None])
    }
    assert written == set(EXPECTED[name]), "a key of the file is not checked here"
    resolved = load(name)
    values = resolved.config.to_dict()
    for key, meant in EXPECTED[name].items():
        line = document.entries()[key.partition(".")[0]]
        line = line.node.value[key.partition(".")[2]] if key not in document.entries() else line
        for dotted, value in meant.items():
            section, leaf = dotted.split(".")
            assert values[section][leaf] == value
            assert resolved.origins[dotted].endswith(f"{name}.yaml:{line.place.line}")


def test_only_the_keys_of_the_file_differ_from_the_defaults() -> None:
    for name, expected in EXPECTED.items():
        from_file = {dotted for dotted, origin in load(name).origins.items() if not origin.startswith("default")}
        assert from_file == {dotted for meant in expected.values() for dotted in meant}


@pytest.mark.parametrize("name", sorted(ALIAS_FILES))
def test_every_other_name_is_told_exactly_once(name: str) -> None:
    notices = load(name).notices
    for key in EXPECTED[name]:
        assert len([notice for notice in notices if notice.startswith(f"{key} (line")]) == 1
    assert len(notices) == len(EXPECTED[name])


def test_the_seeds_own_file_needs_no_translation() -> None:
    assert load("sft").notices == ()


@pytest.mark.parametrize(
    ("seed", "name", "start", "mend"),
    [
        ("000", "sft", r"```yaml\n(# configs/sft.yaml\n.*?)```", ("", "")),
        ("002", "baseline", r"```yaml\n(learning_rate:.*?)```", ("", "")),
        ("003", "axolotl", r"(# axolotl_config.yml\n.*?output_dir: \S+\n)", ("- pat\nh: ", "- path: ")),
    ],
)
def test_the_files_are_the_documents_own(seed: str, name: str, start: str, mend: tuple[str, str]) -> None:
    documents = sorted(SEEDS.glob(f"{seed}_*.txt"))
    if not documents:
        pytest.skip("the documents that the tool was asked for with are not beside this checkout")
    block = re.search(start, documents[0].read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert (ROOT / "configs" / f"{name}.yaml").read_text() == block.group(1).replace(*mend)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_loads_and_no_value_is_idle(path: Path) -> None:
    resolved = load_config(path, environment={})
    assert not [notice for notice in resolved.notices if "not used" in notice]


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem not in ALIAS_FILES], ids=lambda path: path.stem)
def test_every_file_in_our_own_names_satisfies_the_json_schema(path: Path) -> None:
    jsonschema.Draft202012Validator(config_json_schema()).validate(read_yaml(path).to_plain())
    assert load_config(path, environment={}).notices == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_examples_that_a_file_names_exist(path: Path) -> None:
    config = load_config(path, environment={}).config
    for name in (config.data.train_file, config.evaluation.json_schema):
        if isinstance(name, str) and name.startswith("examples/"):
            assert (ROOT / name).is_file()
            if name.endswith(".json"):
                json.loads((ROOT / name).read_text())


def test_the_number_of_keys_stays_within_its_budget() -> None:
    assert len(KEYS) <= 145
