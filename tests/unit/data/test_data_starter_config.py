"""`init`: a configuration from a look at the rows, valid as it stands, every line of it in effect."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.init_command import init_command
from halo_forge.config import ResolvedConfig, load_config
from halo_forge.config.keys import KEYS
from halo_forge.config.strict_yaml import read_yaml
from halo_forge.data.starter_config import Starter, look_at, starter_config
from halo_forge.errors import DataError, UsageError

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [
    *sorted((ROOT / "examples" / "formats").iterdir()),
    ROOT / "examples" / "messy.jsonl",
    ROOT / "examples" / "docstring_json.jsonl",
]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"


def made(path: Path | str, tmp_path: Path, **options: str) -> tuple[Starter, ResolvedConfig]:
    starter = starter_config(look_at(str(path)), **options)
    file = tmp_path / "made.yaml"
    file.write_text(starter.text)
    return starter, load_config(file, environment={})


def write_rows(path: Path, count: int, answer: str = "yes") -> Path:
    rows = [{"question": f"Is {at} even?", "answer": f"{answer} {at}"} for at in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_what_is_written_is_valid_and_every_line_of_it_is_read(path: Path, tmp_path: Path) -> None:
    starter, resolved = made(path, tmp_path)
    file = tmp_path / "made.yaml"
    assert resolved.notices == ()
    written = {
        f"{section}.{key}": entry.place.line
        for section, outer in read_yaml(file).entries().items()
        for key, entry in outer.node.value.items()
    }
    assert set(written) == {choice.key for choice in starter.choices} <= set(KEYS)
    for key, line in written.items():
        assert resolved.origins[key] == f"{file}:{line}"
    for line in file.read_text().splitlines():
        assert not line.strip() or line.lstrip().startswith(("#", "- {")) or line.endswith(":") or ": " in line
    assert resolved.config.data.train_file == str(path)
    assert yaml.safe_load(file.read_text())["model"]["name"] == "smollm2-135m-instruct"
    assert all(choice.why for choice in starter.choices)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_verdict_is_the_one_of_the_data_stage(path: Path, tmp_path: Path) -> None:
    from halo_forge.data.conversion.formats import detect
    from halo_forge.data.files.sources import read_rows

    values = [row.value for row in read_rows(path, lambda text: None) if row.value is not None]
    look = look_at(str(path))
    assert look.formats == (detect(path.name, values).format,)
    assert look.num_rows == sum(1 for _ in read_rows(path, lambda text: None))
    assert made(path, tmp_path)[1].config.data.format == look.formats[0]


@pytest.mark.parametrize(("count", "epochs", "holdout"), [(20, 8, 0.2), (120, 5, 0.2), (600, 3, 0.1), (12_000, 2, 0.1)])
def test_passes_and_shares_follow_the_number_of_rows(count: int, epochs: int, holdout: float, tmp_path: Path) -> None:
    config = made(write_rows(tmp_path / "rows.jsonl", count), tmp_path)[1].config
    assert config.training.num_train_epochs == epochs
    assert config.data.holdout_split == holdout
    examples = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    assert examples <= 64
    assert count * epochs / examples >= 25, "too few steps to learn from"


def test_lengths_come_from_the_rows(tmp_path: Path) -> None:
    short = made(write_rows(tmp_path / "short.jsonl", 60), tmp_path)[1].config
    assert (short.data.max_seq_length, short.evaluation.max_new_tokens) == (256, 32)
    long = made(write_rows(tmp_path / "long.jsonl", 60, "word " * 500), tmp_path)[1].config
    assert (long.data.max_seq_length, long.evaluation.max_new_tokens) == (1024, 512)
    huge, config = made(write_rows(tmp_path / "huge.jsonl", 60, "word " * 9000), tmp_path)
    assert config.config.data.max_seq_length == 4096
    assert "about 60 of 60 rows are longer than data.max_seq_length" in huge.warnings


def test_the_gate_asks_for_what_the_answers_are(tmp_path: Path) -> None:
    def metrics(path: Path) -> list[str]:
        return [rule.metric for rule in made(path, tmp_path)[1].config.gate.rules]

    assert metrics(ROOT / "examples" / "docstring_json.jsonl") == ["perplexity", "json_valid"]
    assert metrics(write_rows(tmp_path / "short.jsonl", 60)) == ["perplexity", "exact_match"]
    assert metrics(write_rows(tmp_path / "long.jsonl", 60, "word " * 50)) == ["perplexity"]
    assert metrics(ROOT / "examples" / "formats" / "text.txt") == ["perplexity"]


def test_what_will_go_wrong_is_said_beforehand(tmp_path: Path) -> None:
    starter, _ = made(ROOT / "examples" / "messy.jsonl", tmp_path)
    words = " ".join(starter.warnings)
    assert "rows cannot be used" in words
    assert "halo-forge data check" in words
    assert "INCONCLUSIVE" in words
    assert all(f"# Note: {warning}" in starter.text for warning in starter.warnings)
    if GSM8K.exists():
        assert made(GSM8K, tmp_path)[0].warnings == ()


def test_many_rows_are_counted_without_converting_them(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 120_000)
    start = time.process_time()
    look = look_at(str(path))
    assert time.process_time() - start < 10
    assert (look.num_rows, look.is_estimate, look.num_sampled) == (120_000, True, 2000)


def test_several_files_of_several_formats_stay_automatic(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 60)
    (tmp_path / "b.csv").write_text("instruction,output\nSay hi,hi\n")
    starter, resolved = made(tmp_path, tmp_path)
    assert resolved.config.data.format == "auto"
    assert "different formats" in " ".join(starter.warnings)
    assert look_at(str(tmp_path / "*.jsonl")).num_rows == 60


@pytest.mark.parametrize("name", ["my rows.jsonl", "a: b #c.jsonl", "{x}.jsonl", "'q\".jsonl", "ünï.jsonl", "no.jsonl"])
def test_any_file_name_survives(name: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / name, 30)
    assert made(path, tmp_path)[1].config.data.train_file == str(path)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"question": "a", "answer": ""}\n')
    with pytest.raises(DataError, match="no row of this file can be trained on: empty_content"):
        look_at(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        look_at(str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="a file that stays"):
        look_at("-")


# ------------------------------------------------------------------------------------------------ the command


def app() -> typer.Typer:
    commands = typer.Typer()
    commands.command("init")(init_command)
    commands.command("other")(lambda: None)
    return commands


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app(), ["init", *map(str, arguments)])


def test_the_command_writes_and_names_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    result = invoke("rows.jsonl", "--model", "org/model", "--output", "runs/x")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == ["wrote halo-forge.yaml", "next: halo-forge run halo-forge.yaml"]
    assert "question_answer rows" in result.stdout
    config = load_config("halo-forge.yaml", environment={}).config
    assert (config.model.name, config.output.dir, config.data.train_file) == ("org/model", "runs/x", "rows.jsonl")
    before = Path("halo-forge.yaml").read_bytes()
    again = invoke(rows)
    assert again.exit_code == 2
    assert "this file exists" in again.output
    assert Path("halo-forge.yaml").read_bytes() == before
    assert invoke(rows, "--force").exit_code == 0
    assert load_config("halo-forge.yaml", environment={}).config.data.train_file == str(rows)


def test_the_command_as_json(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    result = invoke(rows, tmp_path / "my config.yaml", "--json")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["next"] == f"halo-forge run '{tmp_path}/my config.yaml'"
    assert answer["rows"] == 60
    assert {choice["key"] for choice in answer["choices"]} >= {"model.name", "data.train_file", "gate.rules"}


def test_a_flag_that_makes_no_configuration_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    result = invoke(rows, tmp_path / "c.yaml", "--output", "runs/$USER")
    assert result.exit_code == 2
    assert "$USER is not replaced" in result.output
    assert not (tmp_path / "c.yaml").exists()
    (tmp_path / "c.yaml").write_text("mine: 1\n")
    assert invoke(rows, tmp_path / "c.yaml", "--output", "runs/$USER", "--force").exit_code == 2
    assert (tmp_path / "c.yaml").read_text() == "mine: 1\n"
    assert invoke(tmp_path / "none.jsonl", tmp_path / "d.yaml").exit_code == 3


SCRIPT = "import typer; from halo_forge.cli.init_command import init_command as c; typer.run(c)"


@pytest.mark.parametrize(("typed", "model"), [(b"\n\n", "smollm2-135m-instruct"), (b"org/other\n\n", "org/other")])
def test_on_a_terminal_it_asks_two_things(typed: bytes, model: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, str(rows), str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        os.write(ours, typed)
        output, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"next: halo-forge run" in output
    assert load_config(tmp_path / "c.yaml", environment={}).config.model.name == model


def test_it_asks_nothing_without_a_terminal_or_with_yes(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    assert invoke(rows, tmp_path / "a.yaml").exit_code == 0
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, str(rows), str(tmp_path / "b.yaml"), "--yes"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path) as process:
        os.close(theirs)
        process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert (tmp_path / "b.yaml").exists()
