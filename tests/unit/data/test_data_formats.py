"""Every row format becomes the conversation it says; detection, forcing, weights, tools, identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halo_forge.chat.records import Conversation, ToolCall
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import check_file, conversation_of_row
from halo_forge.data.conversion.formats import Converted, convert, detect, format_of
from halo_forge.data.files.rows import Row
from halo_forge.errors import DataError, RowError

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "formats"


def converted(value: dict[str, Any], format: str | None = None, **options: Any) -> Converted:
    found = format or format_of(value)
    assert found is not None
    return convert(Row(path="rows.jsonl", line=7, value=value), found, **options)  # type: ignore[arg-type]


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in conversation.messages]


CHAT = [("user", "Q"), ("assistant", "A")]
SHAPES: dict[str, tuple[dict[str, Any], str, list[tuple[str, str]]]] = {
    "messages": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        "messages",
        CHAT,
    ),
    "text parts": (
        {
            "messages": [
                {"role": "user", "content": ["Q"]},
                {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
            ]
        },
        "messages",
        CHAT,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
        "sharegpt",
        [("system", "S"), *CHAT],
    ),
    "from/value under messages": (
        {"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        "sharegpt",
        CHAT,
    ),
    "role/content under conversations": (
        {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        "messages",
        CHAT,
    ),
    "alpaca": (
        {"instruction": "I", "input": "X", "output": "A"},
        "instruction",
        [("user", "I\n\nX"), ("assistant", "A")],
    ),
    "alpaca without input": ({"instruction": "Q", "input": "", "output": "A", "text": "all"}, "instruction", CHAT),
    "instruction and response": ({"instruction": "Q", "response": "A"}, "instruction", CHAT),
    "history": (
        {"instruction": "Q", "output": "A", "history": [["q", "a"]]},
        "instruction",
        [("user", "q"), ("assistant", "a"), *CHAT],
    ),
    "prompt and completion": ({"prompt": "Q", "completion": "A"}, "prompt_completion", CHAT),
    "prompt and completion as messages": (
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
        "prompt_completion",
        CHAT,
    ),
    "question and answer": ({"question": "Q", "answer": "A"}, "question_answer", CHAT),
    "query and response": ({"query": "Q", "response": "A", "type": "x"}, "query_response", CHAT),
    "text": ({"text": "a document"}, "text", [("document", "a document")]),
}


@pytest.mark.parametrize(("value", "format", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_each_shape_is_told_and_converted(value: dict[str, Any], format: str, expected: list[tuple[str, str]]) -> None:
    assert format_of(value) == format
    result = converted(value)
    assert turns(result.conversation) == expected
    assert (result.conversation.source.path, result.conversation.source.line) == ("rows.jsonl", 7)
    assert result.fixes == ()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "empty instruction": ({"instruction": "", "input": "", "output": "A"}, "instruction", "empty_content"),
    "output list": ({"instruction": "Q", "output": ["A"]}, "instruction", "bad_content_type"),
    "answer null": ({"question": "Q", "answer": None}, "question_answer", "null_content"),
    "answer number": ({"question": "Q", "answer": 4}, "question_answer", "bad_content_type"),
    "text null": ({"text": None}, "text", "null_content"),
    "text blank": ({"text": "  "}, "text", "empty_content"),
    "other format": ({"question": "Q", "answer": "A"}, "messages", "missing_columns"),
    "slices": ({"question": "Q", "answer": "A", "slices": ["x"]}, "question_answer", "bad_slices"),
    "weight": ({"question": "Q", "answer": "A", "weight": "much"}, "question_answer", "bad_weight"),
    "tools": ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "tools": ["x"]},
              "messages", "bad_tools"),
    "history": ({"instruction": "Q", "output": "A", "history": [["q"]]}, "instruction", "bad_content_type"),
    "message weight": ({"messages": [{"role": "user", "content": "Q"},
                                     {"role": "assistant", "content": "A", "weight": -1}]}, "messages", "bad_weight"),
    "train": ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "train": "no"}]},
              "messages", "bad_weight"),
    "function call text": ({"conversations": [{"from": "human", "value": "Q"},
                                              {"from": "function_call", "value": "f()"}]}, "sharegpt", "bad_tool_call"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "format", "code"), BAD.values(), ids=BAD.keys())
def test_rows_that_cannot_be_converted(value: dict[str, Any], format: str, code: str) -> None:
    with pytest.raises(RowError) as caught:
        converted(value, format)
    assert caught.value.code == code


def test_missing_columns_name_what_is_there_and_what_fits() -> None:
    with pytest.raises(RowError, match=r"question, answer; nearest is question_answer"):
        converted({"question": "Q", "answer": "A"}, "messages")


def test_detection_goes_by_most_rows_and_forcing_wins() -> None:
    rows = [{"question": "Q", "answer": "A", "id": 1}] * 3 + [{"text": "x"}]
    verdict = detect("f", rows)
    assert (verdict.format, verdict.unused) == ("question_answer", ("id", "text"))
    assert detect("f", rows, "text").format == "text"
    with pytest.raises(DataError, match="no format fits"):
        detect("f", [{"foo": 1}])


def test_tool_calls_in_every_spelling() -> None:
    openai = {
        "messages": [
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "A"},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
    }
    result = converted(openai).conversation
    assert result.messages[1].tool_calls == (ToolCall(name="f", arguments={"a": 1}, call_id="1"),)
    assert result.tools[0]["function"]["name"] == "f"
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "A"},
        ]
    }
    shared = converted(sharegpt).conversation
    assert shared.messages[1].tool_calls == (ToolCall(name="f", arguments={"a": 1}),)
    assert [message.role for message in shared.messages] == ["user", "assistant", "tool", "assistant"]


def test_weights_reasoning_and_slices() -> None:
    value = {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "no", "train": False},
            {"role": "user", "content": "Q2"},
            {"role": "assistant", "content": "A", "weight": 0.5, "reasoning_content": "because"},
        ],
        "weight": 2,
        "slices": {"language": "de", "source": None},
    }
    conversation = converted(value).conversation
    assert [message.weight for message in conversation.messages] == [None, 0.0, None, 0.5]
    assert conversation.messages[3].reasoning == "because"
    assert (conversation.weight, conversation.slices) == (2.0, {"language": "de"})


def test_equal_content_has_equal_id_whatever_the_format() -> None:
    ids = {converted(value).conversation.id for value, _, expected in SHAPES.values() if expected == CHAT}
    assert len(ids) == 1
    assert converted({"question": "Q", "answer": "B"}).conversation.id not in ids


def test_system_prompt_goes_where_there_is_none_and_leaves_the_prompt_key() -> None:
    plain = {"question": "Q", "answer": "A"}
    own = {"question": "Q", "answer": "A", "system": "own"}
    added = converted(plain, system_prompt="S")
    assert turns(added.conversation) == [("system", "S"), *CHAT]
    assert turns(converted(own, system_prompt="S").conversation)[0] == ("system", "own")
    assert turns(converted({"text": "x"}, system_prompt="S").conversation) == [("document", "x")]
    assert added.prompt_key == converted(plain).prompt_key
    assert added.conversation.id != converted(plain).conversation.id


def test_prompt_key_is_blind_to_trivial_differences_only() -> None:
    key = converted({"question": "Wie  heißt\ndas Café?", "answer": "A"}).prompt_key
    assert converted({"question": " wie heißt das CAFE\u0301? ", "answer": "B"}).prompt_key == key
    assert converted({"question": "Wie heißt das Cafe?", "answer": "A"}).prompt_key != key
    more = {"messages": [
        {"role": "user", "content": "wie heißt das café?"}, {"role": "assistant", "content": "A"},
        {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"},
    ]}  # fmt: skip
    assert converted(more).prompt_key == key, "an opening that goes on is the same opening"


EXAMPLE_FORMATS = {
    "messages.jsonl": "messages",
    "tool_calls.jsonl": "messages",
    "sharegpt.jsonl": "sharegpt",
    "instruction.jsonl": "instruction",
    "instruction_response.jsonl": "instruction",
    "prompt_completion.jsonl": "prompt_completion",
    "query_response.jsonl": "query_response",
    "question_answer.csv": "question_answer",
    "text.txt": "text",
}


def test_every_example_file_is_listed_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == set(EXAMPLE_FORMATS)


@pytest.mark.parametrize(("name", "format"), EXAMPLE_FORMATS.items())
def test_example_files(name: str, format: str) -> None:
    report = check_file(str(EXAMPLES / name))
    assert report.sources[0]["format"] == format
    assert report.kept == report.read >= 5
    assert (report.fixed, report.dropped) == (0, 0)
    assert report.usable


def test_one_row_by_its_number() -> None:
    config = Config(data=DataSection(train_file=str(EXAMPLES / "instruction.jsonl"), holdout_file=None))
    assert turns(conversation_of_row(config, 2)) == [
        ("user", "Give the plural of this word.\n\nmouse"),
        ("assistant", "mice"),
    ]
    with pytest.raises(DataError, match="1 to 6"):
        conversation_of_row(config, 7)


def test_text_files_become_passages(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    paragraphs = [f"Paragraph {number}. " + "word " * 60 for number in range(40)]
    path.write_text("\n\n".join(paragraphs) + "\n---\nThe second document.\n")
    config = Config(data=DataSection(train_file=str(path), max_seq_length=512))
    texts: list[str] = []
    while True:
        try:
            texts.append(conversation_of_row(config, len(texts) + 1).messages[0].text)
        except DataError:
            break
    assert texts[-1] == "The second document."
    assert all(len(text.encode()) <= 3 * 512 for text in texts)
    assert len(texts) < 15, "paragraphs are gathered"
    assert " ".join(" ".join(texts[:-1]).split()) == " ".join(" ".join(paragraphs).split()), "nothing is lost"


def test_a_text_without_breaks_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "one_line.txt"
    text = "".join(chr(0x4E00 + number) for number in range(10_000))
    path.write_text(text)
    config = Config(data=DataSection(train_file=str(path), max_seq_length=100))
    rows = check_file(str(path)).read
    assert rows > 1
    first, second = (conversation_of_row(config, row).messages[0].text for row in (1, 2))
    assert text.startswith(first + second)
    assert len(first) == 100


def test_markdown_keeps_its_rules(tmp_path: Path) -> None:
    for name, num_rows in (("a.md", 1), ("a.txt", 2)):
        (tmp_path / name).write_text("# Title\n\nSome text.\n\n---\n\nMore text.\n")
        assert check_file(str(tmp_path / name)).read == num_rows
    (tmp_path / "b.md").write_text("one\n<|endoftext|>\ntwo\n")
    assert check_file(str(tmp_path / "b.md")).read == 2
