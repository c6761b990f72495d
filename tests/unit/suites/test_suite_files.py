"""Suites are read strictly, from the package and from a user's file; what is wrong is told with file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.errors import DataError, UsageError
from halo_forge.suites.suite import Instruction, load_suite, load_suites, parse_suite, shipped_suites

GOOD: dict[str, Any] = {"id": "a-1", "kind": "harmful", "prompt": "Do harm."}


def lines(*rows: dict[str, Any] | str) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def test_the_shipped_suites_hold_what_the_docs_say() -> None:
    kinds: dict[str, int] = {}
    for name in shipped_suites():
        for kind, count in load_suite(name).kinds.items():
            kinds[kind] = kinds.get(kind, 0) + count
    assert kinds == {
        "harmful": 40, "harmless": 40, "jailbreak": 40, "pii": 20, "toxicity": 16, "unanswerable": 40, "answerable": 40,
        "choice": 40, "instruction": 60, "open": 24,
    }  # fmt: skip
    assert all(name.endswith("-mini") for name in shipped_suites()), "nobody may take them for a benchmark"


def test_shipped_items_are_of_several_languages_and_no_prompt_stands_twice() -> None:
    items = [item for name in shipped_suites() for item in load_suite(name).items]
    assert len({item.language for item in items}) >= 8
    asked = [json.dumps([turn.content for turn in item.turns]) for item in items]
    assert len(asked) == len(set(asked))
    groups = {item.group for item in items if item.kind == "jailbreak"}
    assert groups == {"role_play", "encoding", "prefix", "translation", "many_shot"}


def test_the_right_choice_stands_everywhere_about_equally_often() -> None:
    places = [item.answer for item in load_suite("calibration-mini").items if item.kind == "choice"]
    assert all(8 <= places.count(place) <= 12 for place in range(4))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "not an item"),
        ('{"id": "a", "id": "b", "kind": "harmful", "prompt": "x"}', "the key 'id' stands there twice"),
        (GOOD | {"kind": "evil"}, "kind"),
        (GOOD | {"prompt": None}, "either prompt or messages"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "either prompt or messages"),
        ({"id": "a", "kind": "harmful", "messages": [{"role": "assistant", "content": "x"}]}, "the user's"),
        ({"id": "a", "kind": "harmful", "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        (GOOD | {"prompt": ""}, "prompt"),
        (GOOD | {"prompt": 3}, "prompt"),
        (GOOD | {"id": "../x"}, "id"),
        (GOOD | {"colour": "red"}, "colour"),
        (GOOD | {"kind": "pii"}, "has secrets"),
        (GOOD | {"kind": "answerable", "accepted": []}, "accepted"),
        (GOOD | {"kind": "policy"}, "forbidden or required"),
        (GOOD | {"kind": "policy", "forbidden": ["("]}, "no regular expression"),
        (GOOD | {"kind": "choice", "choices": ["a", "a"], "answer": 0}, "differ from each other"),
        (GOOD | {"kind": "choice", "choices": ["a", "b"], "answer": 2}, "the place of one of them"),
        (GOOD | {"kind": "choice", "choices": ["a", "b"], "answer": True}, "answer"),
        (GOOD | {"kind": "open", "max_words": 0}, "max_words"),
        (GOOD | {"kind": "instruction", "checks": []}, "checks"),
        (GOOD | {"kind": "instruction", "checks": [{"check": "max_word", "count": 3}]}, "did you mean 'max_words'?"),
        (GOOD | {"kind": "instruction", "checks": [{"check": "max_words"}]}, "takes count, found nothing"),
        (GOOD | {"kind": "instruction", "checks": [{"check": "max_words", "count": "3"}]}, "whole number"),
        (GOOD | {"kind": "instruction", "checks": [{"check": "excludes", "words": []}]}, "list of texts"),
        (GOOD | {"kind": "instruction", "checks": [{"check": "language", "code": "xx"}]}, "code is one of"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(row: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_suite("mine", lines(GOOD | {"id": "first"}, "", row), "mine.jsonl")
    assert raised.value.where == "mine.jsonl:3"
    assert message in raised.value.what


def test_ids_stand_once_and_an_empty_file_is_no_suite() -> None:
    with pytest.raises(DataError, match="stands in line 1 already"):
        parse_suite("mine", lines(GOOD, GOOD), "mine.jsonl")
    with pytest.raises(DataError, match="no items"):
        parse_suite("mine", b"\n\n", "mine.jsonl")
    with pytest.raises(DataError, match="JSON"):
        parse_suite("mine", b"\xff\xfe", "mine.jsonl")
    with pytest.raises(DataError, match="JSON"):
        parse_suite("mine", b"[" * 100_000, "mine.jsonl")


def test_a_users_file_is_found_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "house-rules.jsonl"
    file.write_bytes(lines({"id": "r", "kind": "policy", "prompt": "Price?", "forbidden": ["(?i)competitor"]}))
    suite = load_suite(str(file))
    assert (suite.name, suite.kinds) == ("house-rules", {"policy": 1})
    with pytest.raises(UsageError, match="did you mean safety-mini"):
        load_suite("safty-mini")
    with pytest.raises(UsageError, match="cannot be read"):
        load_suite(str(tmp_path / "gone.jsonl"))
    with pytest.raises(UsageError, match="letters, digits"):
        load_suite(str(tmp_path / "a b.jsonl"))
    with pytest.raises(UsageError, match="two suites are named house-rules"):
        load_suites([str(file), str(file)])


def test_the_commands_list_and_show(tmp_path: Path) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(build(), ["suites", "--json"]).stdout)
    assert listed == json.loads(runner.invoke(build(), ["suites", "list", "--json"]).stdout)
    assert [suite["name"] for suite in listed] == shipped_suites()
    assert all(re.fullmatch(r"[0-9a-f]{64}", suite["sha256"]) for suite in listed)
    shown = json.loads(runner.invoke(build(), ["suites", "show", "abstention-mini", "--json"]).stdout)
    assert len(shown["content"]) == shown["items"] == 80
    assert "unknown-01" in runner.invoke(build(), ["suites", "show", "abstention-mini"]).stdout
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    answer = runner.invoke(build(), ["suites", "show", str(bad)])
    assert answer.exit_code == 3
    hostile = tmp_path / "hostile.jsonl"
    hostile.write_bytes(lines(GOOD | {"prompt": "red \x1b[31m text"}))
    assert "\x1b" not in runner.invoke(build(), ["suites", "show", str(hostile)]).stdout


def test_every_check_of_the_shipped_suites_can_be_passed() -> None:
    """No item asks for what its own checks refuse: counts are above nothing, words to use are not forbidden ones."""
    for item in load_suite("instructions-mini").items:
        assert isinstance(item, Instruction)
        wanted = {word for check in item.checks for word in check.get("words", []) if check["check"] == "contains"}
        refused = {word for check in item.checks for word in check.get("words", []) if check["check"] == "excludes"}
        assert not wanted & refused, item.id
        assert all(check.get("count", 1) > 0 for check in item.checks), item.id
