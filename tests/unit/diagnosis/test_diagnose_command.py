"""`halo-forge diagnose` as a user types it, the console's words, and the page that explains the findings."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from halo_forge.cli.console import Reporter
from halo_forge.cli.main import build
from halo_forge.diagnosis import curves_of, diagnose_run, run_facts
from synthetic_curves import Run, findings_of, healthy_run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A flat run of two epochs, 200 steps each, stopped at step 300 with a torn last line."""
    flat = healthy_run(400, mean=np.full(400, 2.0))
    lines = [
        line | {"epoch": line["step"] / 200} for line in flat.lines() if line["kind"] == "train" and line["step"] <= 300
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "train", "st')
    config = {"training": {"method": "lora", "num_train_epochs": 2.0, "max_steps": None, "learning_rate": None}}
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    return tmp_path


def test_a_run_that_is_still_training(run_directory: Path) -> None:
    answer = CliRunner().invoke(build(), ["diagnose", str(run_directory)])
    assert answer.exit_code == 0
    assert answer.stdout.startswith("step 300 of 400, not finished: 1 finding\n\nerror: The loss does not fall")
    assert "next: raise training.learning_rate (now 0.0002)" in answer.stdout


def test_as_json(run_directory: Path) -> None:
    (run_directory / "trained.json").write_text("{}")
    answer = CliRunner().invoke(build(), ["diagnose", str(run_directory), "--json"])
    told = json.loads(answer.stdout)
    assert (told["last_step"], told["num_steps"], told["is_finished"]) == (300, 400, True)
    assert [finding["code"] for finding in told["findings"]] == ["loss_flat"]
    assert told["findings"][0]["first_step"] == 1


def test_a_directory_without_a_training(tmp_path: Path) -> None:
    answer = CliRunner().invoke(build(), ["diagnose", str(tmp_path)])
    assert answer.exit_code == 2
    assert answer.stdout == ""


def test_text_of_a_file_does_not_drive_the_terminal(run_directory: Path) -> None:
    told = {
        "kind": "finding", "step": 9, "code": "x", "severity": "note", "title": "\x1b[31mred", "evidence": "e",
        "next_action": "n", "first_step": 1, "last_step": 2,
    }  # fmt: skip
    metrics = run_directory / "metrics.jsonl"
    metrics.write_text(json.dumps(told) + "\n" + metrics.read_text())
    answer = CliRunner().invoke(build(), ["diagnose", str(run_directory)])
    assert "red" in answer.stdout
    assert "\x1b" not in answer.stdout


def test_the_command_needs_no_torch(run_directory: Path) -> None:
    code = (
        "import sys; from halo_forge.cli.main import build; sys.argv = ['halo-forge', 'diagnose', sys.argv[1]]\n"
        "try: build()()\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(run_directory)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.endswith("set()\n")


def test_facts_of_a_damaged_run_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"config": [1]}')
    (tmp_path / "metrics.jsonl").write_text("")
    assert run_facts(tmp_path, []).num_steps is None
    assert diagnose_run(tmp_path).findings == ()


def console_text(event: str, fields: dict[str, Any]) -> str:
    stream = io.StringIO()
    Reporter(Console(file=stream, width=200, color_system=None, soft_wrap=True))(event, fields)
    return stream.getvalue()


def test_the_console_tells_a_finding_with_its_numbers_and_what_to_do() -> None:
    (finding,) = findings_of(healthy_run(300, mean=np.full(300, 2.0)), is_finished=False)
    text = console_text("train.finding", {"kind": "finding", "step": 300, **finding.to_dict()})
    assert text.splitlines()[0] == "  step 300: error: The loss does not fall"
    assert finding.evidence in text
    assert f"next: {finding.next_action}" in text


def test_the_console_tables_the_sources_at_a_validation() -> None:
    by_source = {
        "mine": {"loss": 1.25, "num_supervised_tokens": 4000},
        "\x1bout": {"loss": 2.0, "num_supervised_tokens": 7},
    }
    text = console_text("train.validation", {"step": 5, "loss": 1.5, "is_best": True, "by_source": by_source})
    assert re.search(r"mine +1\.2500 +4,000", text)
    assert "\x1b" not in text
    assert "mine" not in console_text("train.validation", {"step": 5, "loss": 1.5, "is_best": True})


def test_the_page_explains_every_finding() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "src" / "halo_forge" / "diagnosis").glob("*_rules.py"))
    codes = set(re.findall(r'code="(\w+)"', rules))
    table = (ROOT / "docs" / "diagnosis.md").read_text()
    assert len(codes) == 15
    assert codes == set(re.findall(r"^\| `(\w+)` \| (?:error|warning|note)", table, re.M))


def test_curves_keep_only_applied_steps() -> None:
    run: Run = healthy_run(50)
    run.loss[10] = np.nan
    curves = curves_of(run.lines())
    assert curves.nonfinite_steps == (11,)
    assert len(curves.loss) == 49
    assert len(curves.learning_rate) == 50
