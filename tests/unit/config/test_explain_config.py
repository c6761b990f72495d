"""A configuration shown: YAML that loads back, JSON Schema, origins, differences; and an import without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from halo_forge.config import (
    Config,
    config_json_schema,
    config_to_yaml,
    diff_configs,
    explain_config,
    load_config,
)
from halo_forge.config.keys import KEYS, default_values
from halo_forge.config.strict_yaml import parse_value, parse_yaml
from halo_forge.errors import ConfigError

shares = st.floats(min_value=0, max_value=0.4)
names = st.text(min_size=1, max_size=12)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model.name": names,
    "model.revision": st.none() | names,
    "data.train_file": st.none() | st.lists(names, min_size=1, max_size=3),
    "data.validation_split": shares,
    "data.holdout_split": shares,
    "data.system_prompt": st.none() | st.text(),
    "training.method": st.sampled_from(["lora", "dora", "qlora", "adapter", "full"]),
    "training.learning_rate": st.none() | st.floats(min_value=1e-300, max_value=1),
    "training.num_train_epochs": st.floats(min_value=1e-3, max_value=1e6) | st.integers(min_value=1, max_value=99),
    "training.max_steps": st.none() | st.integers(min_value=1, max_value=2**63 - 1),
    "training.max_grad_norm": st.none() | st.floats(min_value=1e-9, max_value=1e9),
    "training.bf16": st.booleans() | st.just("auto"),
    "training.adam_epsilon": st.floats(min_value=1e-30, max_value=1e30),
    "training.early_stopping_patience": st.integers(min_value=1, max_value=50),
    "lora.target_modules": st.just("all-linear") | st.lists(names, min_size=1, max_size=4),
    "lora.rank_pattern": st.dictionaries(st.sampled_from(["q_proj", "layers.1.q_proj"]), st.integers(1, 64)),
    "lora.layers_to_transform": st.none() | st.lists(st.integers(0, 40), min_size=1, max_size=3),
    "adapter.bottleneck_size": st.none() | st.integers(min_value=1, max_value=999),
    "lora.alpha": st.floats(min_value=0.1, max_value=1e5) | st.integers(min_value=1, max_value=999),
    "output.final": st.sampled_from(["best_val", "latest"]),
    "gate.rules": st.lists(
        st.fixed_dictionaries({"metric": names, "min": st.floats(allow_nan=False, allow_infinity=False)}), max_size=3
    ),
    "evaluation.json_schema": st.none() | names,
}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_written_loads_back_to_the_same_configuration(tmp_path: Path, values: dict[str, Any]) -> None:
    try:
        resolved = load_config(flags={key: (value, "--x") for key, value in values.items()}, environment={})
    except ConfigError:
        assume(False)
    for origins in (None, resolved.origins):
        path = tmp_path / "config.yaml"
        path.write_text(config_to_yaml(resolved.config, origins), encoding="utf-8")
        again = load_config(path, environment={})
        assert again.config == resolved.config
        assert again.sha256 == resolved.sha256
        assert diff_configs(resolved.config.to_dict(), again.config.to_dict()) == []


def test_other_yaml_readers_find_the_same_values() -> None:
    config = load_config(
        overrides=["data.system_prompt='no: [x]\\n# y'", "lora.target_modules=[on, '1e3', '2024-01-01', '12:30:45']"],
        environment={},
    ).config
    read = yaml.safe_load(config_to_yaml(config))
    assert read["data"]["system_prompt"] == config.data.system_prompt
    assert read["lora"]["target_modules"] == config.lora.target_modules == ["on", "1e3", "2024-01-01", "12:30:45"]


def test_the_yaml_says_what_each_key_means_and_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  seed: 7\n")
    resolved = load_config(path, environment={})
    text = config_to_yaml(resolved.config, resolved.origins)
    assert f"  seed: 7  # {path}:2" in text
    assert "  learning_rate: null  # default for lora" in text
    assert "  # Rank of the adapters.\n  r: 16  # default" in text
    assert all(len(line) <= 120 for line in text.splitlines() if line.lstrip().startswith("#"))


def test_every_key_is_explained_once_in_order() -> None:
    resolved = load_config(overrides=["training.seed=7", "data.train_file=[a, b]"], environment={})
    rows = explain_config(resolved)
    assert [key for key, _, _ in rows] == list(KEYS)
    shown = {key: (value, origin) for key, value, origin in rows}
    assert shown["training.seed"] == ("7", "--set")
    assert shown["data.train_file"] == ("[a, b]", "--set")
    assert shown["training.learning_rate"] == ("0.0005", "default for lora up to 3B; model.name says 135M")
    for key, value, _ in rows:
        section, leaf = key.split(".")
        if key not in ("training.learning_rate", "gate.rules"):
            assert parse_value(value, key) == resolved.config.to_dict()[section][leaf]


def test_sources_and_policies_are_shown_as_they_were_meant(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    sources = "[{path: a.jsonl, share: 3, loss_weight: 1.0}, {dataset: b, replay: true}]"
    path.write_text(f"data:\n  sources: {sources}\n")
    resolved = load_config(path, overrides=["data.policies.pii_email=fix"], environment={})
    shown = {key: (value, origin) for key, value, origin in explain_config(resolved)}
    assert shown["data.sources"] == ("[{path: a.jsonl, share: 3.0}, {dataset: b, replay: true}]", f"{path}:2")
    assert shown["data.policies"] == ("{pii_email: fix}", "--set")
    path.write_text(config_to_yaml(resolved.config, resolved.origins))
    assert load_config(path, environment={}).config == resolved.config
    assert validator().is_valid({"data": {"sources": yaml.safe_load(sources), "policies": {"pii_email": "fix"}}})
    wrong = {"data": {"sources": [{"path": "a", "shre": 1}]}}
    assert not validator().is_valid(wrong)
    entry = config_json_schema()["$defs"]["SourceEntry"]["properties"]
    assert all(entry[key].get("description") for key in entry if key != "format")


def test_every_key_has_a_meaning() -> None:
    assert [key for key, spec in KEYS.items() if not spec.meaning] == []


# ------------------------------------------------------------------------------------------------ JSON Schema


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(config_json_schema())


def test_the_schema_is_one_of_draft_2020_12_with_a_description_for_every_key() -> None:
    schema = config_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    for section, reference in schema["properties"].items():
        assert reference["description"]
        definition = schema["$defs"][reference["$ref"].rsplit("/", 1)[1]]
        assert definition["additionalProperties"] is False
        assert {f"{section}.{leaf}" for leaf in definition["properties"]} == {
            key for key, spec in KEYS.items() if spec.section == section
        }
        assert all(entry["description"] for entry in definition["properties"].values())


def test_the_schema_accepts_defaults_and_refuses_what_loading_refuses() -> None:
    assert validator().is_valid(Config().to_dict())
    for text in ("training: {sed: 1}", "training: {seed: x}", "lora: {r: 0}", "gate: {rules: [{min: 1}]}", "x: 1"):
        document = parse_yaml(text, "config.yaml").to_plain()
        assert not validator().is_valid(document), text
        with pytest.raises(ConfigError):
            load_config(overrides=[text.replace(": {", ".", 1).replace(": ", "=", 1).rstrip("}")], environment={})


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(KEYS)), st.none() | st.booleans() | st.integers(-5, 300) | st.floats(-2, 2) | st.just("x")
)
def test_schema_and_loader_agree_on_every_key(key: str, value: Any) -> None:
    assume(not (isinstance(value, float) and value.is_integer()))  # JSON Schema counts 1.0 as an integer
    assume(key not in ("monitor.window_rows", "judge.endpoint", "judge.judge_model"))  # make sense beside others only
    assume(not (key.endswith("_split") and isinstance(value, float) and value > 0.75))  # the two shares together
    section, leaf = key.split(".")
    try:
        load_config(flags={key: (value, "--x")}, environment={})
    except ConfigError:
        loads = False
    else:
        loads = True
    assert loads == validator().is_valid({section: {leaf: value}})


# ------------------------------------------------------------------------------------------------ differences, import


def test_differences_are_told_key_by_key() -> None:
    old = load_config(environment={}, overrides=["training.learning_rate=2e-5"]).config.to_dict()
    new = load_config(
        environment={}, overrides=["training.learning_rate=1e-4", "lora.target_modules=[a]", "publish.name=m"]
    ).config.to_dict()
    assert diff_configs(old, old) == []
    assert diff_configs(old, new) == [
        "training.learning_rate: 2e-05 -> 0.0001",
        "lora.target_modules: all-linear -> [a]",
        "publish.name: null -> m",
    ]
    del old["lora"]["r"]
    assert diff_configs(old, new)[-1] == "lora.r: (not set) -> 16"


def test_defaults_are_json_values() -> None:
    assert set(default_values()) == set(KEYS)
    assert default_values()["gate.rules"][0]["metric"] == "perplexity"


def test_importing_and_loading_needs_no_torch() -> None:
    code = (
        "import sys; before = set(sys.modules); import halo_forge.config as c; c.load_config(environment={});"
        "found = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(*sorted(m for m in found if not m.startswith('_')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pydantic_and_its_own = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
    pyyaml = {"yaml", "cython_runtime"}
    assert set(answer.stdout.split()) <= {"halo_forge"} | pydantic_and_its_own | pyyaml
