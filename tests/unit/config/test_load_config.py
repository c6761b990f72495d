"""load_config: where values come from, which source wins, and what one key means for another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halo_forge.config import ResolvedConfig, load_config
from halo_forge.config.keys import KEYS
from halo_forge.config.schema import Config, DataSection, TrainingSection
from halo_forge.runs import sha256_json

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write_file


def load(path: Path | None = None, **options: Any) -> ResolvedConfig:
    return load_config(path, **{"environment": {}, **options})


# ------------------------------------------------------------------------------------------------ precedence


def test_without_any_source_everything_is_default() -> None:
    resolved = load()
    assert resolved.config == Config()
    assert set(resolved.origins) == set(KEYS)
    assert set(resolved.origins.values()) == {"default", "default for lora up to 3B; model.name says 135M"}
    assert resolved.notices == ()
    assert resolved.sha256 == sha256_json(resolved.config.to_dict())


def test_each_source_overrules_the_one_before(write: Write) -> None:
    key = "training.seed"
    file = write("training:\n  seed: 2\n")
    sources: list[dict[str, Any]] = [
        {"preset": {key: 1}, "preset_name": "reasoning"},
        {"path": file},
        {"environment": {"HALO_FORGE__TRAINING__SEED": "3"}},
        {"overrides": ["training.seed=4"]},
        {"flags": {key: (5, "--seed")}},
    ]
    origins = ["preset reasoning", f"{file}:2", "environment HALO_FORGE__TRAINING__SEED", "--set", "--seed"]
    for lowest in range(len(sources)):
        options: dict[str, Any] = {}
        for number in range(lowest, len(sources)):
            options |= sources[number]
            resolved = load(**options)
            assert (resolved.config.training.seed, resolved.origins[key]) == (number + 1, origins[number])


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_FORGE__LORA__R", "5")
    assert load_config().config.lora.r == 5
    assert load_config(environment={}).config.lora.r == 16


def test_settings_are_scalars_lists_and_rules() -> None:
    config = load(
        overrides=[
            "training.learning_rate=1e-4",
            "lora.target_modules=[q_proj, v_proj]",
            "gate.rules=[{metric: perplexity, max: 9}, {metric: exact_match, min: 0.5, min_delta: 0.1}]",
            "data.system_prompt=Answer: yes or no # briefly",
            "training.packing=false",
            "data.max_samples=",
            "publish.name=007",
            "model.revision=1234567",
        ]
    ).config
    assert config.training.learning_rate == 1e-4
    assert config.lora.target_modules == ["q_proj", "v_proj"]
    assert [(rule.metric, rule.min, rule.max, rule.min_delta) for rule in config.gate.rules] == [
        ("perplexity", None, 9, None),
        ("exact_match", 0.5, None, 0.1),
    ]
    assert config.data.system_prompt == "Answer: yes or no # briefly"
    assert config.training.packing is False
    assert config.data.max_samples is None
    assert (config.publish.name, config.model.revision) == ("007", "1234567")


def test_a_setting_given_twice_is_told_and_the_last_counts() -> None:
    resolved = load(overrides=["training.seed=1", "training.seed=2"])
    assert resolved.config.training.seed == 2
    assert resolved.notices == ("training.seed is set twice by --set: 2 counts",)


def test_the_environment_takes_other_tools_names_too() -> None:
    resolved = load(environment={"HALO_FORGE__MAX_LENGTH": "512", "HALO_FORGE_DEBUG": "1", "OTHER": "x"})
    assert resolved.config.data.max_seq_length == 512
    assert resolved.origins["data.max_seq_length"] == "environment HALO_FORGE__MAX_LENGTH"


def test_epochs_on_the_command_line_put_aside_a_number_of_steps_in_the_file(write: Write) -> None:
    file = write("training:\n  max_steps: 5000\n  warmup_steps: 500\n")
    resolved = load(file, flags={"training.num_train_epochs": (1.0, "--epochs"), "training.warmup_ratio": (0.1, "-w")})
    assert (resolved.config.training.max_steps, resolved.config.training.num_train_epochs) == (None, 1)
    assert (resolved.config.training.warmup_steps, resolved.config.training.warmup_ratio) == (None, 0.1)
    assert f"--epochs replaces training.max_steps ({file}:2)" in resolved.notices
    assert resolved.origins["training.max_steps"] == "default"
    both = {"training.max_steps": (700, "--max-steps"), "training.num_train_epochs": (1.0, "--epochs")}
    assert load(file, flags=both).config.training.max_steps == 700


def test_steps_and_epochs_in_one_file_are_both_told(write: Write) -> None:
    resolved = load(write("training:\n  max_steps: 10\n  num_train_epochs: 1\n"))
    assert resolved.notices == ("training.max_steps (line 2) overrules training.num_train_epochs (line 3)",)


def test_a_file_on_the_command_line_puts_aside_the_data_set_of_file_and_preset(write: Write) -> None:
    file = write("data:\n  dataset: metamath\n")
    flags = {"data.train_file": ("rows.jsonl", "--data")}
    resolved = load(file, flags=flags)
    assert (resolved.config.data.train_file, resolved.config.data.dataset) == ("rows.jsonl", None)
    assert resolved.notices == (f"--data replaces data.dataset ({file}:2)",)
    quiet = load(flags=flags, preset={"data.dataset": "metamath"})
    assert (quiet.config.data.dataset, quiet.notices) == (None, ())


def test_patience_turns_early_stopping_on_unless_it_is_set(write: Write) -> None:
    resolved = load(write("training:\n  early_stopping_patience: 5\n"))
    assert resolved.config.training.early_stopping is True
    assert resolved.notices == ("training.early_stopping_patience (line 2) turns training.early_stopping on",)
    off = load(write("training:\n  early_stopping: false\n  early_stopping_patience: 5\n"))
    assert off.config.training.early_stopping is False
    assert off.notices == (
        "training.early_stopping_patience (line 3): not used, because training.early_stopping is false",
    )


def test_values_without_effect_are_told(write: Write) -> None:
    resolved = load(write("training: {method: full}\nlora:\n  r: 64\n  dropout: 0.05\n"))
    assert resolved.notices == ("lora.r (line 3): not used, because training.method is full",)


def test_without_validation_rows_the_latest_weights_are_final() -> None:
    resolved = load(overrides=["data.validation_split=0"])
    assert resolved.config.output.final == "latest"
    assert resolved.origins["output.final"] == "default without validation rows"
    kept = load(overrides=["data.validation_split=0", "data.validation_file=v.jsonl"])
    assert kept.config.output.final == "best_val"
    told = load(overrides=["data.validation_split=0", "output.final=best_val"])
    assert "final_model/ holds the latest weights" in told.notices[0]


@pytest.mark.parametrize(
    ("name", "full_rate", "why"),
    [
        ("smollm2-135m-instruct", 5e-5, "up to 3B; model.name says 135M"),
        ("meta-llama/Llama-3.2-3B-Instruct", 5e-5, "up to 3B; model.name says 3B"),
        ("Qwen/Qwen2.5-Coder-7B", 2e-5, "up to 14B; model.name says 7B"),
        ("models/Qwen_Qwen3-30B-A3B/", 1e-5, "above 14B; model.name says 30B"),
        ("mistralai/Mixtral-8x7B-v0.1", 1e-5, "above 14B; model.name says 56B"),
        ("my/model-4bit-v2", 2e-5, "as for 7B; model.name tells no size"),
    ],
)
def test_the_default_rate_follows_method_and_size(name: str, full_rate: float, why: str) -> None:
    for method, factor in (("lora", 10), ("dora", 10), ("qlora", 10), ("adapter", 10), ("full", 1)):
        resolved = load(overrides=[f"training.method={method}", f"model.name={name}"])
        assert resolved.config.learning_rate == pytest.approx(full_rate * factor, rel=1e-12)
        assert resolved.origins["training.learning_rate"] == f"default for {method} {why}"
    assert load(overrides=["training.learning_rate=1e-3"]).origins["training.learning_rate"] == "--set"


def test_paths_stay_relative_and_the_home_directory_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(write("data:\n  train_file: [rows.jsonl, ~/more.jsonl]\noutput:\n  dir: ~/runs/x\n")).config
    assert config.data.train_file == ["rows.jsonl", "/home/someone/more.jsonl"]
    assert config.output.dir == "/home/someone/runs/x"


def test_an_empty_file_and_empty_sections_are_defaults(write: Write) -> None:
    assert load(write("model:\ntraining: {}\n")).config == Config()
    resolved = load(write("# nothing yet\n"))
    assert resolved.config == Config()
    assert "is empty: every value is its default" in resolved.notices[0]


def test_json_files_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n\t"training": {"learning_rate": 2e-5, "packing": false}\n}')
    assert load(path).config.training.learning_rate == 2e-5


def test_a_configuration_built_in_python_can_be_shown() -> None:
    resolved = ResolvedConfig.of(Config(data=DataSection(max_samples=3), training=TrainingSection(method="full")))
    assert resolved.origins["data.max_samples"] == "set in code"
    assert resolved.origins["training.learning_rate"] == "default for full up to 3B; model.name says 135M"
    assert resolved.origins["training.seed"] == "default"
    assert resolved.sha256 == sha256_json(resolved.config.to_dict())


def test_the_hash_does_not_depend_on_how_a_value_was_written(write: Write) -> None:
    written = load(write("training:\n  num_train_epochs: 3\nlora: {alpha: 32}\n"))
    assert written.sha256 == load().sha256
    assert load(overrides=["lora.alpha=33"]).sha256 != load().sha256


def test_environment_of_this_process_is_untouched() -> None:
    before = dict(os.environ)
    load_config()
    assert dict(os.environ) == before


def test_a_part_of_a_mapping_is_set_alone(write: Write) -> None:
    file = write("data:\n  policies: {a: fix, b: skip}\n")
    resolved = load(
        file,
        overrides=["data.policies.b=keep", "data.policies.c=fail", "data.policies.c=skip"],
        environment={"HALO_FORGE__DATA__POLICIES__D": "quarantine", "HALO_FORGE__DATA__POLICIES__E": "keep"},
    )
    assert resolved.config.data.policies == {"a": "fix", "b": "keep", "c": "skip", "d": "quarantine", "e": "keep"}
    assert resolved.origins["data.policies"] == (
        f"{file}:2, environment HALO_FORGE__DATA__POLICIES__D, environment HALO_FORGE__DATA__POLICIES__E, --set"
    )
    assert resolved.notices == ("data.policies.c is set twice by --set: skip counts",)
    whole = load(file, overrides=["data.policies={z: fix}"])
    assert whole.config.data.policies == {"z": "fix"}


@pytest.mark.parametrize(("flag", "value"), [("data.train_file", "rows.jsonl"), ("data.dataset", "metamath")])
def test_rows_on_the_command_line_put_aside_the_sources_of_the_file(write: Write, flag: str, value: str) -> None:
    file = write("data:\n  sources: [{path: a.jsonl}, {path: b.jsonl}]\n")
    resolved = load(file, flags={flag: (value, "--rows")})
    assert (resolved.config.data.sources, resolved.config.to_dict()["data"][flag.partition(".")[2]]) == (None, value)
    assert resolved.notices == (f"--rows replaces data.sources ({file}:2)",)
    back = load(write(f"data:\n  {flag.partition('.')[2]}: {value}\n"), overrides=["data.sources=[{path: a.jsonl}]"])
    assert back.config.data.sources is not None
    assert back.notices == (f"data.sources replaces {flag} ({file}:2)",)


def test_keys_of_mixing_and_splitting_without_effect_are_told(write: Write) -> None:
    resolved = load(
        write(
            "data:\n  mix_temperature: 2\n  split_by: user\n  validation_split: 0\n  holdout_file: h.jsonl\n"
            "  sources: [{path: a.jsonl, share: 2}, {path: b.jsonl}]\n"
        )
    )
    assert resolved.notices == (
        "data.mix_temperature (line 2): not used, because fewer than two entries of data.sources have a share",
        "data.split_by (line 3): not used, because no rows are split",
    )
    assert load(write("data: {mix_temperature: 2, sources: [{path: a, share: 2}, {path: b, share: 1}]}")).notices == ()


def test_the_home_directory_is_expanded_in_sources(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    sources = load(write("data: {sources: [{path: ~/a.jsonl}, {dataset: b}]}")).config.data.sources
    assert sources is not None
    assert [source.path for source in sources] == ["/home/someone/a.jsonl", None]
