"""examples/release_story: its page is what its script types, a stopped story goes on, and what goes wrong stops it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halo_forge.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "release-story.md"


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_story_run", ROOT / "examples" / "release_story" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_of_this_story(story: ModuleType) -> None:
    """Headings, words and commands in the script's order, each command with the exit code that the story needs."""
    page = PAGE.read_text()
    at = 0
    for step in story.STORY:
        if isinstance(step, story.Command):
            at = page.index(f"$ {story.broken(step.line)}\n", at)
            ended = page.index("\n[exit code ", at)
            assert page[ended + 1 :].startswith(f"[exit code {step.exit_code}, ")
            assert "\n$ " not in page[at:ended]
        elif not isinstance(step, story.Prepared):
            at = page.index(step if isinstance(step, str) else step.text, at)
    assert page.count("\n$ halo-forge ") == sum(isinstance(step, story.Command) for step in story.STORY)


def test_the_page_can_be_read_at_its_width(story: ModuleType) -> None:
    told = [line for block in PAGE.read_text().split("```")[1::2] for line in block.splitlines()]
    too_long = [line for line in told if len(line) > story.WIDTH_CHARS and " " in line.strip()]
    assert too_long == []


def test_the_configuration_loads_and_asks_for_the_released_version() -> None:
    resolved = load_config(ROOT / "examples" / "release_story" / "story.yaml")
    assert resolved.notices == ()
    assert "released" in {rule.against for rule in resolved.config.gate.rules}


def test_slipped_answers_are_all_there_and_none_is_right(story: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    right = story.rows()[: story.NUM_ALL]
    wrong = story.slipped(right)
    answers = [[row["messages"][-1]["content"] for row in found] for found in (right, wrong)]
    assert sorted(answers[0]) == sorted(answers[1])
    assert all(a != b for a, b in zip(*answers, strict=True))
    assert [row["messages"][:-1] for row in wrong] == [row["messages"][:-1] for row in right]
    days = story.NUM_ALL + 3 * story.NUM_A_DAY
    assert days + story.NUM_HELD_OUT <= len(story.rows())


def test_a_stopped_story_goes_on_where_it_stopped(
    story: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcript = tmp_path / "transcript.jsonl"
    ran: list[str] = []
    really_run = story.run

    def run(command: Any) -> Any:
        ran.append(command.line)
        return really_run(command)

    monkeypatch.setattr(story, "run", run)
    version, unknown = story.Command("halo-forge --version"), story.Command("halo-forge config shaw")
    monkeypatch.setattr(story, "STORY", ("Heading", version, unknown))
    with pytest.raises(SystemExit, match="exit code 2, the story needs 0"):
        list(story.tell(transcript))
    assert ran == [version.line, unknown.line]
    assert [json.loads(line)["command"] for line in transcript.read_text().splitlines()] == [version.line]

    listed = story.Command("halo-forge sft datasets")
    monkeypatch.setattr(story, "STORY", ("Heading", version, listed))
    first = [part for part in story.tell(transcript) if isinstance(part, dict)]
    assert ran[2:] == [listed.line]
    assert "codealpaca" in first[1]["stdout"]
    assert [part for part in story.tell(transcript) if isinstance(part, dict)] == first
    assert len(ran) == 3


def test_long_commands_are_parted_before_their_options(story: ModuleType) -> None:
    line = "halo-forge generate --run " + "r" * 60 + " --prompts " + "p" * 30 + " --samples 1"
    parts = story.broken(line).split(" \\\n    ")
    assert " ".join(parts) == line
    assert len(parts) == 2
    assert all(part.startswith("--") for part in parts[1:])
