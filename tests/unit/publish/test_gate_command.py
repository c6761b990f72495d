"""`halo-forge gate RUN` for CI: 0, 4 and 5, as JSON, by other rules without touching the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.runs import sha256_tree


def gate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), ["gate", *map(str, arguments)])


@pytest.fixture
def built(builder: ModuleType, tmp_path: Path) -> Any:
    return builder.build_run(tmp_path / "run")


def rules_file(tmp_path: Path, *rules: str) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text("gate:\n  rules:\n" + "".join(f"    - {{{rule}}}\n" for rule in rules))
    return path


@pytest.mark.parametrize(
    ("rule", "code", "verdict"),
    [
        ("metric: json_valid, min: 0.7", 0, "PASS"),
        ("metric: json_valid, min: 0.99", 4, "FAIL"),
        ("metric: json_valid, min: 0.9", 5, "INCONCLUSIVE"),
        ("metric: perplexity, max_regression: 0.1", 0, "PASS"),
        ("metric: bench.mmlu, min: 0.3", 5, "INCONCLUSIVE"),
        ("metric: exact_match, min: 0.7, slice: each source", 5, "INCONCLUSIVE"),
    ],
)
def test_other_rules_judge_without_touching_the_run(
    built: Any, tmp_path: Path, rule: str, code: int, verdict: str
) -> None:
    before = sha256_tree(built.run.path)
    done = gate(built.run.path, "--rules", rules_file(tmp_path, rule), "--json")
    assert done.exit_code == code, done.output
    answer = json.loads(done.stdout)
    assert answer["verdict"] == verdict
    assert sha256_tree(built.run.path) == before
    for found in answer["rules"]:
        assert (found["command"] is None) == (found["verdict"] == "PASS")
        if found["cause"] in ("below", "no_slice"):
            assert str(built.run.path) in found["command"]


def test_the_runs_own_rules_are_recorded(built: Any) -> None:
    built.run.file("gate.json").unlink()
    done = gate(built.run.path)
    assert done.exit_code == 0, done.output
    assert "Margin +0.07." in done.stdout
    assert "It would have failed with the whole interval below 0.7" in done.stdout
    assert json.loads(built.run.file("gate.json").read_bytes())["verdict"] == "PASS"


def test_a_refusal_says_what_to_type(built: Any, tmp_path: Path) -> None:
    done = gate(built.run.path, "--rules", rules_file(tmp_path, "metric: json_valid, min: 0.99"))
    assert done.exit_code == 4
    assert "next: answers break their format" in done.stdout
    assert f"try:  halo-forge data show --config {built.run.path}" in done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gate:\n  rules:\n    - {metric: json_vaild, min: 1}\n", "did you mean 'json_valid'?"),
        ("gate:\n  ruels: []\n", "did you mean"),
        ("gate: {required_metrics: [perplexty]}\n", "did you mean 'perplexity'?"),
    ],
)
def test_wrong_rules_are_errors_not_verdicts(built: Any, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    done = gate(built.run.path, "--rules", path)
    assert done.exit_code == 2, done.output
    assert told in done.stderr


def test_a_missing_report_is_an_error(built: Any) -> None:
    built.run.file("eval/report.json").unlink()
    done = gate(built.run.path)
    assert done.exit_code == 3
    assert "no EvalReport here" in done.stderr


def test_judging_loads_no_torch(built: Any) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom halo_forge.cli.main import build\n"
        f"done = CliRunner().invoke(build(), ['gate', {str(built.run.path)!r}])\n"
        "assert done.exit_code == 0, done.output\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_on_a_terminal_every_line_fits_and_sentences_end(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = "gate.rules=[{metric: json_valid, min: 0.7}, {metric: json_valid, min_delta: 0.1, against: released}]"
    whole = gate(built.run.path, "--set", rules).stdout
    assert "none to compare with. This rule holds nothing back." in whole
    monkeypatch.setenv("COLUMNS", "100")
    narrow = gate(built.run.path, "--set", rules).stdout
    assert narrow.split() == whole.split()
    assert max(map(len, whole.splitlines())) > 100 >= max(map(len, narrow.splitlines()))
