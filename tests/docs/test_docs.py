"""The documents say what the tool does: commands and flags exist, marked blocks run, links resolve, tables agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.config import load_config
from halo_forge.config.keys import KEYS, SECTIONS
from halo_forge.data import check_file
from halo_forge.data.conversion.formats import FORMATS
from halo_forge.errors import ExitCode
from halo_forge.evaluate import METRICS
from halo_forge.metrics import SUITE_METRICS
from training_runs import write_rows

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^(<!-- runs -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)
TEXT = {page: page.read_text() for page in PAGES if page.is_file()}


def blocks(language: str) -> Iterator[tuple[Path, bool, str]]:
    """(page, marked to be run, text) of every fenced block in a language."""
    for page, text in TEXT.items():
        for mark, found, body in BLOCK.findall(text):
            if found == language:
                yield page, bool(mark), body


def commands_of(body: str) -> list[list[str]]:
    """Command lines of a shell block, continuations joined, comments and foreign commands left out."""
    lines = body.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] in ("halo-forge", "make")]


COMMANDS = [(page.name, line) for page, _, body in blocks("bash") for line in commands_of(body)]
RUN_BLOCKS = [(page.name, commands_of(body)) for page, marked, body in blocks("bash") if marked]


def test_the_pages_hold_commands_to_check() -> None:
    assert len(COMMANDS) > 20
    assert len(RUN_BLOCKS) >= 6
    assert {page.name for page, _, _ in blocks("python")} >= {"python-api.md"}


def command_named(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that leading words name, and what is left of them."""
    command: click.Command = typer.main.get_command(build())
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]  # type: ignore[attr-defined]
        words = words[1:]
    return command, words


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {' '.join(line)}" for page, line in COMMANDS])
def test_every_command_exists_with_its_flags(page: str, line: list[str]) -> None:
    if line[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(line[1:]) <= set(targets), line
        return
    command, rest = command_named(line[1:])
    assert not getattr(command, "commands", None), f"{' '.join(line)}: names a group, not a command"
    context = command.make_context("halo-forge", list(rest), resilient_parsing=False)
    assert context.args == [], f"{' '.join(line)}: what are {context.args}?"
    for word, following in pairwise(rest):
        if word == "--set":
            load_config(overrides=[following])


@pytest.fixture
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the repository's examples and configurations, and the tiny model as `model`."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "model").symlink_to(tiny_model_dir)
    return tmp_path


@pytest.mark.parametrize(("page", "lines"), RUN_BLOCKS, ids=[f"{page}: {lines[0][1:3]}" for page, lines in RUN_BLOCKS])
def test_marked_blocks_run(page: str, lines: list[list[str]], place: Path) -> None:
    """With the tiny model in place of the real one, and short answers."""
    for line in lines:
        words = ["model" if word == "smollm2-135m-instruct" else word for word in line[1:]]
        if words[:2] == ["sft", "train"]:
            words += ["--max-samples", "80", "--set", "evaluation.max_new_tokens=4"]
        answer = CliRunner().invoke(build(), words)
        allowed = {0, 1} if words[0] == "doctor" else {0}
        assert answer.exit_code in allowed, f"{' '.join(line)}\n{answer.output}"
        assert answer.stdout.strip()


def test_python_examples_run(place: Path) -> None:
    """All blocks of the page one after the other, in a process of their own, as a reader would paste them."""
    write_rows(place / "rows.jsonl", 60)
    (place / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": "model"},
                "data": {"train_file": "rows.jsonl", "holdout_split": 0.3, "max_seq_length": 256},
                "training": {"max_steps": 2, "learning_rate": 5e-3, "bf16": False},
                "output": {"dir": "out"},
                "evaluation": {"max_new_tokens": 4, "bootstrap_samples": 100},
                "publish": {"registry": "registry"},
            }
        )
    )
    code = "\n".join(body for page, _, body in blocks("python") if page.name == "python-api.md")
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert (place / "stages/release.json").is_file()


def test_every_relative_link_resolves() -> None:
    for page, text in TEXT.items():
        prose = BLOCK.sub("", text)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}"


def test_the_configuration_table_is_current() -> None:
    answer = subprocess.run([sys.executable, DOCS / "make_config_table.py", "--check"], check=False)
    assert answer.returncode == 0, "python docs/make_config_table.py"


def test_yaml_blocks_load(place: Path) -> None:
    found = [(page, body) for page, _, body in blocks("yaml")]
    assert found
    for page, body in found:
        file = place / "block.yaml"
        file.write_text(body)
        assert load_config(file).notices == (), page.name


def test_config_keys_in_prose_exist() -> None:
    for page, text in TEXT.items():
        for section, key in re.findall(r"`(\w+)\.(\w+)(?=[`:])", text):
            if section in SECTIONS and key not in ("json", "jsonl", "yaml"):
                assert f"{section}.{key}" in KEYS, f"{page.name}: {section}.{key}"


def test_the_picture_of_the_golden_curves_is_current() -> None:
    answer = subprocess.run([sys.executable, DOCS / "draw_loss_curves.py", "--check"], check=False)
    assert answer.returncode == 0, "python docs/draw_loss_curves.py"


def test_the_reason_table_is_current() -> None:
    """tests/unit/data/test_data_policies.py holds the table itself against the source."""
    answer = subprocess.run([sys.executable, DOCS / "make_reason_table.py", "--check"], check=False)
    assert answer.returncode == 0, "python docs/make_reason_table.py"


def test_the_formats_and_their_examples_are_read_as_said(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| `(\{.+\})` \|$", TEXT[DOCS / "data.md"], re.M)
    assert {name for name, _ in rows} == set(FORMATS)
    for name, example in rows:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(example + "\n")
        report = check_file(str(file))
        assert (report.sources[0]["format"], report.kept, report.dropped) == (name, 1, 0), name


def test_the_metrics_and_their_directions_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (higher|lower|none) \|", TEXT[DOCS / "evaluation-and-gate.md"], re.M)
    assert dict(rows) == {name: metric.direction for name, metric in (*METRICS.items(), *SUITE_METRICS.items())}


def test_the_exit_codes_are_those_of_the_code() -> None:
    section = TEXT[DOCS / "troubleshooting.md"].partition("## Exit codes")[2].partition("## Messages")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.M)} == set(ExitCode)


def test_messages_in_the_troubleshooting_page_are_said_by_the_code() -> None:
    """Between the variable parts each quoted message stands in the source."""
    source = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    section = TEXT[DOCS / "troubleshooting.md"].partition("## Messages")[2]
    quoted = re.findall(r"^\| `([^`]+)`", section, re.M)
    assert len(quoted) > 8
    for message in quoted:
        for part in re.split(r"\.\.\.|\b[NM]\b", message):
            assert part.strip() in source, message
