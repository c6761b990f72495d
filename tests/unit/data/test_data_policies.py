"""data.policies: every code has a meaning, an action and what else it may be; and what is asked for is done."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halo_forge.artifacts import PreparedData
from halo_forge.chat import read_conversations
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import check, check_file, prepare
from halo_forge.data.reasons import REASONS, action_table
from halo_forge.errors import DataError, UsageError
from halo_forge.runs import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE = Path(__file__).resolve().parents[3] / "src"
ROWS: dict[str, dict[str, Any]] = {
    "fine": {"question": "How many apples has Ada?", "answer": "Ada has four apples."},
    "mail": {"question": "Who can help me?", "answer": "Write to ada.lovelace@example.org about it."},
    "decomposed": {"question": "What is a café?".replace("é", "e\u0301"), "answer": "A place where coffee is served."},
    "joined": {
        "messages": [
            {"role": "user", "content": "One more thing."},
            {"role": "user", "content": "What is two and two?"},
            {"role": "assistant", "content": "Two and two is four."},
        ]
    },
    "null": {"question": "And what is this?", "answer": None},
    "again": {"question": "How many apples has Ada?", "answer": "Ada has four apples."},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS.values()))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


def config(rows: Path, policies: dict[str, Any] | None = None, **data: Any) -> Config:
    section = DataSection(
        train_file=str(rows), policies=policies or {}, max_bad_fraction=1.0, validation_split=0, holdout_split=0, **data
    )
    return Config(data=section)


def ledger(run: RunDirectory) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in run.file("data/ledger.jsonl").read_text().splitlines()]
    return {name: lines[number] for number, name in enumerate(ROWS)}


def test_every_code_of_the_source_is_in_the_table() -> None:
    """First arguments of RowError, and codes that are added to fixes and flags."""
    found: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func
            is_code = getattr(called, "id", None) == "RowError" or (
                isinstance(called, ast.Attribute)
                and called.attr == "add"
                and getattr(called.value, "id", None) in ("fixes", "flags")
            )
            if is_code:
                parts = (part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant))
                found |= {value for value in parts if isinstance(value, str)}
    assert len(found) > 40
    assert found <= REASONS.keys()


def test_every_default_is_among_the_allowed_and_only_mends_may_fix() -> None:
    for reason in REASONS.values():
        assert reason.default is None or reason.default in reason.allowed, reason.code
        assert reason.meaning
        if reason.kind in ("damage", "policy"):
            assert not {"keep", "fix"} & set(reason.allowed), reason.code


def test_unknown_codes_and_impossible_actions_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="there is no reason code 'pii_mail'") as caught:
        action_table(DataSection(policies={"pii_mail": "skip"}))
    assert caught.value.fix == "did you mean pii_email?"
    with pytest.raises(UsageError, match="bad_json rows cannot be dealt with by 'keep'") as caught:
        action_table(DataSection(policies={"bad_json": "keep"}))
    assert caught.value.expected == "skip, quarantine, fail"
    assert action_table(DataSection(on_bad_row="fail"))["bad_json"] == "fail"
    assert action_table(DataSection(on_bad_row="fail", policies={"bad_json": "skip"}))["bad_json"] == "skip"


def test_the_defaults_leave_sound_rows_alone(rows: Path, run: RunDirectory, tiny_tokenizer: Any) -> None:
    prepared = prepare(config(rows), run, tiny_tokenizer)
    told = ledger(run)
    assert told["fine"]["action"] == "kept"
    assert (told["mail"]["action"], told["mail"]["code"]) == ("kept", "pii_email")
    assert (told["decomposed"]["action"], told["decomposed"]["code"]) == ("kept", "not_nfc")
    assert told["joined"]["action"] == "fixed"
    assert told["null"]["code"] == "null_content"
    assert told["again"]["code"] == "duplicate"
    texts = [c.messages[-1].text for c in read_conversations(run.file(prepared.splits["train"].conversations))]
    assert ROWS["mail"]["answer"] in texts, "what is kept is kept as it is"


def test_fix_mends_and_gives_the_row_its_new_identity(rows: Path, run: RunDirectory, tiny_tokenizer: Any) -> None:
    prepared = prepare(config(rows, {"pii_email": "fix", "not_nfc": "fix"}), run, tiny_tokenizer)
    told = ledger(run)
    assert (told["mail"]["action"], told["mail"]["code"]) == ("fixed", "pii_email")
    assert (told["decomposed"]["action"], told["decomposed"]["code"]) == ("fixed", "not_nfc")
    conversations = read_conversations(run.file(prepared.splits["train"].conversations))
    texts = "\n".join(message.text for conversation in conversations for message in conversation.messages)
    assert "ada.lovelace" not in texts
    assert "café" in texts
    assert not any("ada.lovelace" in file.read_text(errors="ignore") for file in run.file("data").iterdir())
    with RunDirectory.open(run.path.parent / "plain") as other:
        plain = prepare(config(rows), other, tiny_tokenizer)
        before = {c.id for c in read_conversations(other.file(plain.splits["train"].conversations))}
    assert len({conversation.id for conversation in conversations} - before) == 2


@pytest.mark.parametrize(
    ("code", "name"),
    [("pii_email", "mail"), ("not_nfc", "decomposed"), ("turns_joined", "joined"), ("null_content", "null"),
     ("duplicate", "again")],
)  # fmt: skip
@pytest.mark.parametrize("action", ["skip", "quarantine", "fail"])
def test_every_kind_of_finding_can_be_left_out_put_aside_or_refused(
    rows: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, code: str, name: str, action: str
) -> None:
    settings = config(rows, {code: action})
    if action == "fail":
        with pytest.raises(DataError, match=code) as caught:
            prepare(settings, run, tiny_tokenizer)
        assert f"{rows}:{list(ROWS).index(name) + 1}" in str(caught.value)
        return
    prepare(settings, run, tiny_tokenizer)
    assert (ledger(run)[name]["action"], ledger(run)[name]["code"]) == ("dropped", code)
    aside = [json.loads(line) for line in run.file("data/quarantine.jsonl").read_text().splitlines()]
    assert [row["code"] for row in aside] == ([code] if action == "quarantine" else [])
    if aside:
        assert set(aside[0]) == {"file", "line", "code", "reason", "row"}
        assert aside[0]["line"] == list(ROWS).index(name) + 1
        assert aside[0]["row"]


def test_findings_count_and_show_where(rows: Path, run: RunDirectory, tiny_tokenizer: Any) -> None:
    prepared: PreparedData = prepare(config(rows), run, tiny_tokenizer)
    found = {finding.code: finding for finding in prepared.findings}
    assert found["pii_email"].rows == 1
    assert found["pii_email"].examples[0].line == 2
    assert "ada.lovelace" not in found["pii_email"].examples[0].excerpt
    assert found["pii_email"].kind == "privacy"
    assert {"null_content", "duplicate", "turns_joined", "not_nfc"} <= found.keys()
    counted = Counter(line["code"] for line in ledger(run).values() if line["code"])
    assert all(found[code].rows >= count for code, count in counted.items() if "," not in code)
    assert check(config(rows)).findings == prepared.findings, "check says what prepare would do"


def test_an_inconsistent_style_is_told_with_places(tmp_path: Path) -> None:
    rows = [{"question": f"Give number {at} as JSON.", "answer": json.dumps({"number": at})} for at in range(80)]
    rows[40]["answer"] = "The number that you asked for is forty."
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [note for note in check_file(str(path)).notes if note.startswith("style: ")]
    assert any("79 of 80 answers are JSON" in note and "(line 41)" in note for note in told), told
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not rows[40]))
    assert not [note for note in check_file(str(path)).notes if note.startswith("style: ")]
