"""Rules that make no sense, told with their place and what was probably meant, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from halo_forge.config import load_config
from halo_forge.errors import ConfigError


def problems_of(tmp_path: Path, gate: str) -> list[str]:
    path = tmp_path / "gate.yaml"
    path.write_text(f"gate:\n{gate}")
    with pytest.raises(ConfigError) as raised:
        load_config(path, environment={})
    return [problem.render() for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("{metric: exact_match, slice: each source}", "a rule needs min, max, min_delta or max_regression"),
        ("{metric: exact_match, min: 0.5, against: released}", "says by how much in neither of its limits"),
        ("{metric: exact_match, min_delta: 0, max_regression: 0.1}", "both min_delta and max_regression"),
        ("{metric: exact_match, max_regression: -0.1}", "max_regression must be"),
        ("{metric: exact_match, min: 0.5, slice: source}", "try: slice: each source"),
        ("{metric: exact_match, min: 0.5, slice: each domian=x y}", "try: slice: each domain"),
        ("{metric: exact_match, min: 0.5, slice: domian}", "try: slice: each domain"),
        ("{metric: exact_match, min_delta: 0, against: relesed}", "did you mean released?"),
        ("{metric: exact_match, min_delta: 0, againt: released}", "did you mean against?"),
        ("{metric: exact_match, min: 0.5, required: perhaps}", "required must be true or false"),
        ("{metric: exact_match, min: 0.9, max: 0.5}", "min 0.9 is above max 0.5"),
    ],
)
def test_a_rule_that_makes_no_sense_is_told_at_its_place(tmp_path: Path, rule: str, told: str) -> None:
    (problem,) = problems_of(tmp_path, f"  rules:\n    - {rule}\n")
    assert told in problem
    assert "gate.yaml:3:" in problem


def test_two_rules_that_leave_nothing_between_them(tmp_path: Path) -> None:
    rules = "  rules:\n    - {metric: perplexity, max: 10}\n    - {metric: perplexity, min: 12}\n"
    (problem,) = problems_of(tmp_path, rules)
    assert "rules 1 and 2 of gate.rules can never both hold" in problem
    path = tmp_path / "gate.yaml"
    path.write_text("gate:\n" + rules.replace("min: 12", "min: 12, slice: source=a"))
    assert len(load_config(path, environment={}).config.gate.rules) == 2


def test_required_metrics_are_checked_too(tmp_path: Path) -> None:
    told = "\n".join(problems_of(tmp_path, "  required_metrics: [schema_valid, ifeval, ifeval]\n"))
    assert "asks for schema_valid, and evaluation.json_schema names no schema" in told
    assert "names ifeval 2 times" in told


def test_every_key_of_a_rule_loads(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(
        "gate:\n  required_metrics: [bench.mmlu]\n  rules:\n"
        "    - {metric: bench.mmlu, max_regression: 0.02, against: released, required: false}\n"
        "    - {metric: exact_match, min_delta: -0.05, slice: each source}\n"
        "    - {metric: exact_match, min: 0.5, slice: source=my file.jsonl}\n"
    )
    first, second, third = load_config(path, environment={}).config.gate.rules
    assert (first.against, first.max_regression, first.required) == ("released", 0.02, False)
    assert (second.slice, third.slice) == ("each source", "source=my file.jsonl")
