"""Mistakes in a configuration: each in plain words with its place, all of them at once, and never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_forge.config import ResolvedConfig, load_config
from halo_forge.config.keys import KEYS
from halo_forge.config.yaml_text import yaml_value
from halo_forge.errors import ConfigError, ConfigProblem, ExitCode

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


def problems_of(path: Path | None = None, **options: Any) -> list[ConfigProblem]:
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value.problems


def refusal(path: Path | None = None, **options: Any) -> ConfigError | None:
    """The one exception that loading may raise; every other one fails the test."""
    try:
        load(path, **options)
    except ConfigError as error:
        return error
    return None


def only_problem(path: Path | None = None, **options: Any) -> ConfigProblem:
    (problem,) = problems_of(path, **options)
    return problem


# ------------------------------------------------------------------------------------------------ mistakes in names


def test_a_missing_file_is_named_with_its_neighbours(write: Write, tmp_path: Path) -> None:
    file = write("")
    problem = only_problem(tmp_path / "confg.yaml")
    assert (problem.where, problem.suggestion) == (str(tmp_path / "confg.yaml"), str(file))
    assert "does not exist" in str(only_problem(tmp_path / "none" / "x.yaml").suggestion)


def test_an_unknown_key_has_place_caret_and_suggestion(write: Write) -> None:
    file = write("training:\n  learning_rte: 2e-5\n")
    problem = only_problem(file)
    assert problem.message == "training.learning_rte is not a key of this configuration"
    assert problem.where == f"{file}:2:3"
    assert problem.snippet == "2 |   learning_rte: 2e-5\n  |   ^^^^^^^^^^^^"
    assert problem.suggestion == "did you mean learning_rate?"


@pytest.mark.parametrize(
    ("text", "message", "suggestion"),
    [
        ("trainng: {seed: 1}", "trainng is not a key", "did you mean training?"),
        ("training: {max_seq_length: 64}", "max_seq_length belongs under data", "data: {max_seq_length: ...}"),
        ("training: {output_dir: x}", "output_dir belongs under output", "output: {dir: ...}"),
        ("model: {learning_rate: 1e-4}", "learning_rate belongs under training", "training: {learning_rate: ...}"),
        ("data: {micro_batch_size: 1}", "belongs under training", "training: {per_device_train_batch_size: ...}"),
        ("lora: {learnin_rate: 1}", "lora.learnin_rate is not a key", "did you mean training.learning_rate?"),
        ("name: x", "stands in more than one section", "model.name or publish.name"),
        ("training.seed: 1", "is not a key", "training: {seed: ...}"),
        ("training: 5", "training is a section of keys; found 5", "training: {method: ...}"),
        ("max_lenght: 5", "max_lenght is not a key", "did you mean max_length?"),
        ("gate: {rules: [{metrik: a, min: 1, metric: b}]}", "metrik is not a key of a rule", "did you mean metric?"),
        ("schema_version: 2", "schema_version is not a key", None),
    ],
)
def test_misplaced_and_misspelt_keys(write: Write, text: str, message: str, suggestion: str | None) -> None:
    problem = only_problem(write(text))
    assert message in problem.message
    assert suggestion is None or suggestion in str(problem.suggestion)


@pytest.mark.parametrize(
    ("options", "message", "where"),
    [
        ({"overrides": ["training.sed=1"]}, "training.sed is not a key", "--set training.sed"),
        ({"overrides": ["training"]}, "sets nothing", "--set"),
        ({"overrides": ["training=1"]}, "training is a section", "--set training"),
        ({"overrides": ["gate.rules.0.max=1"]}, "is a part of gate.rules", "--set gate.rules.0.max"),
        ({"overrides": ["lora.target_modules=[a"]}, "not valid YAML", "--set:1:3"),
        (
            {"environment": {"HALO_FORGE__TRAINING__SED": "1"}},
            "training.sed is",
            "environment HALO_FORGE__TRAINING__SED",
        ),
        ({"environment": {"HALO_FORGE__": "1"}}, "is not a key", "environment HALO_FORGE__"),
        ({"flags": {"training.seed": (-1, "--seed")}}, "whole number of at least 0; found -1", "--seed"),
        ({"preset": {"training.seed": "x"}, "preset_name": "p"}, "found the text x", "preset p"),
    ],
)
def test_mistakes_outside_files_name_their_source(options: dict[str, Any], message: str, where: str) -> None:
    problem = only_problem(**options)
    assert message in problem.message
    assert problem.where == where


def test_a_wrong_key_from_our_own_code_is_our_mistake() -> None:
    for options in ({"flags": {"training.sed": (1, "--sed")}}, {"preset": {"training.sed": 1}}):
        with pytest.raises(KeyError):
            load(**options)


def test_all_problems_of_all_sources_are_told_together_in_the_order_of_the_file(write: Write) -> None:
    file = write(
        "training:\n  seed: x\n  foo_bar: 1\ndata:\n  train_file: a\n  dataset: b\nlora: {r: 0}\n"
        "gate:\n  rules: [{metric: m}, {min: 1}]\noptim: lion\n"
    )
    problems = problems_of(file, overrides=["output.dirr=x"], environment={"HALO_FORGE__MONITOR__MAX_PSI": "-1"})
    lines = [problem.where.split(":")[-2] for problem in problems if problem.where.startswith(str(file))]
    assert lines == ["2", "3", "6", "7", "9", "9", "10"]
    assert {problem.where for problem in problems[7:]} == {
        "--set output.dirr",
        "environment HALO_FORGE__MONITOR__MAX_PSI",
    }


def test_hundreds_of_mistakes_are_counted_not_listed(write: Write) -> None:
    problems = problems_of(write("\n".join(f"kee_{number}: 1" for number in range(3000))))
    assert len(problems) == 51
    assert problems[-1].message == "and 2950 more"


# ------------------------------------------------------------------------------------------------ mistakes in values


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("training.learning_rate", "-1e-4", "found -0.0001"),
        ("training.learning_rate", ".nan", "found .nan"),
        ("training.learning_rate", ".inf", "found .inf"),
        ("training.learning_rate", "2", "above 0 and at most 1, or null; found 2"),
        ("training.num_train_epochs", "0", "a number above 0; found 0"),
        ("training.per_device_train_batch_size", "0", "a whole number of at least 1; found 0"),
        ("training.seed", "-1", "found -1"),
        ("training.seed", "1e30", "found 1e+30"),
        ("training.seed", "9" * 40, "beyond 64 bits"),
        ("training.weight_decay", "9" * 4300, "beyond 64 bits"),
        ("training.bf16", "maybe", "true, false, or auto; found the text maybe"),
        ("training.packing", "1", "true or false; found 1"),
        ("training.packing", "2024-01-01", "found the text"),
        ("training.lr_scheduler", "12:30:45", "one of cosine, linear, constant"),
        ("output.save_steps", "0", "found 0"),
        ("output.dir", "7", "text; found 7"),
        ("output.dir", "", "text; found nothing (null)"),
        ("output.dir", "''", "empty text"),
        ("lora.r", "0", "found 0"),
        ("lora.r", "8.5", "found 8.5"),
        ("lora.dropout", "1.5", "at least 0 and below 1; found 1.5"),
        ("lora.target_modules", "[]", "no layer would get an adapter"),
        ("lora.target_modules", "[1]", "a list of texts, or all-linear; found the list [1]"),
        ("data.max_seq_length", "0", "at least 8; found 0"),
        ("data.train_file", "[a, 1]", "text, a list of texts, or null"),
        ("data.train_file", "[]", "an empty list"),
        ("model.trust_remote_code", "true", "never run"),
        ("gate.rules", "5", "a list of rules"),
        ("gate.rules", "[5]", "rule 1 of gate.rules must be a mapping"),
        ("gate.rules", "[{metric: a}]", "a rule needs min, max, min_delta or max_regression"),
        ("gate.rules", "[{min: 1}]", "names no metric"),
        ("gate.rules", "[{metric: 1, min: 1}]", "metric must be text; found 1"),
        ("gate.rules", "[{metric: a, min: .inf}]", "min must be a number, or null; found .inf"),
        ("evaluation.confidence", "1", "at least 0.5 and below 1; found 1"),
        ("publish.name", "../x", "letters, digits"),
        ("data.train_file", "${DATA}/x.jsonl", "${DATA} is not replaced"),
        ("output.dir", "runs/$USER", "$USER is not replaced"),
        ("output.dir", '"a\\nb"', "does not belong into a path"),
    ],
)
def test_wrong_values_are_told_in_words(write: Write, key: str, value: str, found: str) -> None:
    section, leaf = key.split(".")
    file = write(f"{section}:\n  {leaf}: {value}\n")
    problem = only_problem(file)
    assert found in problem.message
    assert problem.where.startswith(f"{file}:2:")
    assert "^" in str(problem.snippet)
    for word in ("Input should", "pydantic", "type="):
        assert word not in str(problem.render())


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("training: {seed: '5'}", "seed: 5"),
        ("training: {num_train_epochs: 1_000}", "num_train_epochs: 1000"),
        ("training: {gradient_accumulation_steps: 1e3}", "gradient_accumulation_steps: 1000"),
        ("training: {lr_scheduler: cosin}", "did you mean cosine?"),
        ("publish: {name: 7}", 'name: "7"'),
        ("training: {learning_rate: 0}", "learning_rate: null"),
    ],
)
def test_wrong_values_come_with_the_right_one(write: Write, text: str, suggestion: str) -> None:
    assert only_problem(write(text)).suggestion == suggestion


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("training:\n  max_steps: 10\n  warmup_steps: 20\n", "warmup_steps (20) is more than max_steps (10)", 3),
        ("data:\n  validation_split: 0.5\n  holdout_split: 0.4\n", "validation_split + holdout_split", 2),
        ("data:\n  train_file: a\n  dataset: b\n", "both given", 3),
        ("training:\n  early_stopping: true\ndata: {validation_split: 0}\n", "needs rows to validate on", 2),
        ("model:\n  name: ./m\noutput:\n  dir: m/\n", "directory of the model", 4),
        ("output:\n  dir: models/registry/x\n", "inside publish.registry", 2),
        ("data:\n  train_file: d/rows.jsonl\noutput:\n  dir: d\n", "training rows lie in", 4),
        ("gate:\n  rules: [{metric: a, min: 2, max: 1}]\n", "can never hold", 2),
        ("gate:\n  rules: [{metric: schema_valid, min: 1}]\n", "evaluation.json_schema names no schema", 2),
    ],
)
def test_contradictions(write: Write, text: str, words: str, line: int) -> None:
    file = write(text)
    problem = only_problem(file)
    assert words in problem.message
    assert problem.where.startswith(f"{file}:{line}:")


def test_a_contradiction_is_told_although_another_key_of_its_section_is_wrong(write: Write) -> None:
    problems = problems_of(write("training:\n  max_steps: 10\n  warmup_steps: 20\n  seed: x\n"))
    assert len(problems) == 2


def test_a_contradiction_with_a_wrong_value_is_not_invented(write: Write) -> None:
    problems = problems_of(write("training:\n  early_stopping: true\ndata:\n  validation_split: x\n"))
    assert len(problems) == 1


@pytest.mark.parametrize("word", ["yes", "On", "y", "no", "off", "N"])
def test_switches_take_the_words_of_yaml_1_1(write: Write, word: str) -> None:
    resolved = load(write(f"training:\n  packing: {word}\ndata:\n  system_prompt: {word}\n"))
    assert resolved.config.training.packing is (word.lower() in ("yes", "on", "y"))
    assert resolved.config.data.system_prompt == word
    assert len(resolved.notices) == 1


# ------------------------------------------------------------------------------------------------ entries and parts

SOURCES = """\
data:
  sources:
    - path: a.jsonl
      shre: 1
    - {path: a, dataset: b}
    - name: x
    - {path: c, share: 0, max_rows: 1.5}
    - foo.jsonl
    - {path: d, weight: 3}
    - {path: e, format: segmnts}
"""


@pytest.mark.parametrize(
    ("message", "place", "suggestion"),
    [
        ("source 1 of data.sources: shre is not a key of a source", "4:7", "did you mean share?"),
        ("source 2 of data.sources: a source has either a path or a dataset", "5:7", "keep one of the two"),
        ("source 3 of data.sources: a source has either a path or a dataset", "6:7", "path: FILE, or dataset: NAME"),
        ("source 4 of data.sources: share must be a number above 0, or null; found 0", "7:24", None),
        ("source 4 of data.sources: max_rows must be a whole number of at least 1, or null; found 1.5", "7:37", None),
        ("source 5 of data.sources must be a mapping with path, dataset", "8:7",
         "{path: foo.jsonl}, or {dataset: foo.jsonl}"),
        ("source 6 of data.sources: weight is not a key of a source", "9:17",
         "share (rows in the mix), or loss_weight (the lambda of an objective)"),
        ("source 7 of data.sources: format must be one of auto, messages", "10:25", "did you mean segments?"),
    ],
)  # fmt: skip
def test_every_wrong_source_has_its_own_place(write: Write, message: str, place: str, suggestion: str | None) -> None:
    file = write(SOURCES)
    problems = problems_of(file)
    assert len(problems) == 8
    (problem,) = [problem for problem in problems if problem.message.startswith(message)]
    assert problem.where == f"{file}:{place}"
    assert problem.suggestion == suggestion
    assert "^" in str(problem.snippet)


@pytest.mark.parametrize(
    ("text", "words", "place"),
    [
        ("sources: []", "data.sources is an empty list", "2:12"),
        ("sources: [{path: a, replay: true}, {dataset: b, replay: true}]", "every source is replay", "2:31"),
        ("sources: [{path: a/b}, {path: a/./b}]", "source 2 of data.sources: a/./b is source 1 already", "2:33"),
        ("sources: [{dataset: b}, {dataset: b}]", "b is source 1 already", "2:37"),
        ("sources: [{dataset: b, name: x}, {dataset: c, name: x}]", "x is source 1 already", "2:55"),
        ("sources: [{path: $HOME/a}]", "$HOME is not replaced by the environment's value", "2:20"),
        ("sources: [{path: ''}]", "source 1 of data.sources: path is an empty text", "2:20"),
        ("sources: [{path: models/sft/a.jsonl}]", "output.dir is the directory that these rows lie in", "2:20"),
        ("sources: [{path: a}]\n  train_file: b", "sources replaces train_file and dataset", "2:12"),
        ("sources: 5", "data.sources must be a list of sources (mappings with path, dataset, name", "2:12"),
        ("policies: {pii_email: fixx}", "data.policies.pii_email must be one of keep, fix", "2:25"),
        ("policies: [a]", "data.policies must be a mapping of names to one of keep, fix", "2:13"),
        ("languages: [english]", "the text english is no language code", "2:14"),
        ("languages: []", "no row could be kept", "2:14"),
        ("split_by: ''", "data.split_by is an empty text", "2:13"),
        ("mix_temperature: 0", "a number above 0; found 0", "2:20"),
    ],
)
def test_mistakes_of_the_data_section(write: Write, text: str, words: str, place: str) -> None:
    file = write(f"data:\n  {text}\n")
    problem = only_problem(file)
    assert words in problem.message
    assert problem.where == f"{file}:{place}"


def test_a_wrong_part_of_a_mapping_is_told_where_it_was_typed(write: Write) -> None:
    file = write("data:\n  policies:\n    a: keepp\n    b: skip\n")
    problems = problems_of(
        file,
        overrides=["data.policies.c=7", "data.policies.b=keep"],
        environment={"HALO_FORGE__DATA__POLICIES__D": "drop"},
    )
    assert [(problem.where, problem.suggestion) for problem in problems] == [
        (f"{file}:3:8", "did you mean keep?"),
        ("environment HALO_FORGE__DATA__POLICIES__D", None),
        ("--set data.policies.c", None),
    ]


# ------------------------------------------------------------------------------------------------ secrets

SECRETS = [
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "sk-" + "proj-a1b2c3d4e5f6g7h8i9j0",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8",
    "github_pat_" + "11ABCDEFG0a1B2c3D4e5F6_g7H8i9J0",
    "glpat-" + "a1b2c3d4e5f6g7h8i9j0",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text", ["model: {{name: {}}}", "data:\n  train_file: [a, {}]", "token: {}", "foo: [{{x: {}}}]"]
)
def test_secrets_are_refused_and_never_repeated(write: Write, secret: str, text: str) -> None:
    problem = only_problem(write(text.format(secret)))
    assert "secret" in problem.message
    assert "environment" in str(problem.suggestion)
    assert secret not in problem.render()


def test_secrets_outside_files_are_refused_and_never_repeated() -> None:
    secret = SECRETS[0]
    for options in (
        {"overrides": [f"model.name={secret}"]},
        {"overrides": [secret]},
        {"environment": {"HALO_FORGE__MODEL__NAME": secret}},
        {"flags": {"model.name": (secret, "--model")}},
    ):
        assert secret not in only_problem(**options).render()


def test_a_line_shown_for_another_reason_hides_its_secret(write: Write) -> None:
    problems = problems_of(write(f"modell: x # {SECRETS[0]}\npassword: hunter2\n"))
    assert len(problems) == 2
    assert not any(word in problem.render() for problem in problems for word in (SECRETS[0], "hunter2"))


@pytest.mark.parametrize("name", ["sk-learn-contrib", "meta-llama/hf_transfer", "task-recognition-model-large"])
def test_ordinary_names_are_no_secrets(name: str) -> None:
    assert load(overrides=[f"model.name={name}"]).config.model.name == name


# ------------------------------------------------------------------------------------------------ nothing crashes

documents = st.dictionaries(
    st.sampled_from([*KEYS, "training", "model", "gate", "datasets", "adapter", "max_length", "bias", "x"]).map(
        lambda key: key.rpartition(".")[2]
    )
    | st.text(max_size=6),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([key.rpartition(".")[2] for key in KEYS]) | st.text(max_size=4), inner)
        ),
        max_leaves=8,
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents)
def test_no_document_does_anything_but_load_or_be_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml_value(document))
    error = refusal(path)
    assert error is None or error.problems


def _spoilt(text: str, position: int, character: str, how: str) -> str:
    position %= len(text)
    tail = text[position + 1 :] if how != "insert" else text[position:]
    return text[:position] + ("" if how == "delete" else character) + tail


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["sft", "baseline", "axolotl", "json_extraction"]),
    st.integers(min_value=0, max_value=2000),
    st.sampled_from("abz019_-:,.[]{}#'\"&*! \n\t%"),
    st.sampled_from(["insert", "delete", "replace"]),
)
def test_a_typo_never_crashes(tmp_path: Path, name: str, position: int, character: str, how: str) -> None:
    source = Path(__file__).resolve().parents[3] / "configs" / f"{name}.yaml"
    path = tmp_path / "config.yaml"
    path.write_text(_spoilt(source.read_text(), position, character, how))
    error = refusal(path)
    assert error is None or all(problem.where.startswith((str(path), "default of")) for problem in error.problems)


def test_a_number_that_would_be_rounded_is_refused() -> None:
    assert load(overrides=[f"lora.alpha={2**53}"]).config.lora.alpha == 2**53
    assert refusal(flags={"lora.alpha": (2**53 + 1, "--flag")})


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(KEYS)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
)
def test_a_value_of_any_type_loads_as_itself_or_is_refused(key: str, value: Any) -> None:
    flags = {key: (value, "--flag")}
    if error := refusal(flags=flags):
        assert "--flag" in {problem.where for problem in error.problems}
        return
    section, leaf = key.split(".")
    kept = load(flags=flags).config.to_dict()[section][leaf]
    if not (isinstance(value, str) and value.startswith("~/")):
        assert kept == value
    assert isinstance(kept, bool) == isinstance(value, bool)
