"""The shapes of rows that other tools write, and what each becomes: preference, evals, trees, tools, media, mixes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from halo_forge.chat.records import MediaPart, ToolCall
from halo_forge.config.schema import RowFormat
from halo_forge.data import check_file
from halo_forge.data.conversion.formats import FORMATS, Converted, convert, detect, format_of
from halo_forge.data.conversion.identity import COMPACT, content_sha256, conversation_id, prompt_key
from halo_forge.data.conversion.turns import message_content
from halo_forge.data.files.rows import Row
from halo_forge.data.files.sources import read_rows
from halo_forge.data.reasons import REASONS
from halo_forge.errors import DataError, RowError
from timing import times_as_long

GSM8K = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k_train.jsonl"
CHAT = [("user", "Q"), ("assistant", "A")]


def converted(value: dict[str, Any], format: RowFormat | None = None, **options: Any) -> Converted:
    found = format or format_of(value)
    assert found is not None
    return convert(Row(path="rows.jsonl", line=7, value=value), found, **options)


def turns(value: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in converted(value, **options).conversation.messages]


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


Q, A = said("user", "Q"), said("assistant", "A")
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "Q", "role": "prompter",
        "replies": [
            {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
            {"text": "A", "role": "assistant", "rank": 0, "replies": [
                {"text": "Q2", "role": "prompter", "rank": None, "replies": [
                    {"text": "gone", "role": "assistant", "rank": 0, "deleted": True, "replies": []},
                    {"text": "spam", "role": "assistant", "rank": 1, "review_result": False, "replies": []},
                    {"text": "A2", "role": "assistant", "rank": 2, "replies": [
                        {"text": "unanswered", "role": "prompter", "rank": 0, "replies": []}]}]}]},
        ],
    },
}  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], str, list[tuple[str, str]]]] = {
    "trl conversational pair": ({"prompt": [said("system", "S"), Q], "completion": [A]}, "prompt_completion",
                                [("system", "S"), *CHAT]),
    "trl prompt list, text": ({"prompt": [Q], "completion": "A"}, "prompt_completion", CHAT),
    "trl template arguments": ({"messages": [Q, A], "chat_template_kwargs": {"enable_thinking": False}}, "messages",
        CHAT),
    "preference": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference", CHAT),
    "preference lists": ({"prompt": [Q], "chosen": [A], "rejected": [said("assistant", "B")]}, "preference", CHAT),
    "preference whole": ({"chosen": [Q, A], "rejected": [Q, said("assistant", "B")]}, "preference", CHAT),
    "preference whole, prompt beside": ({"prompt": "Q", "chosen": [Q, A], "rejected": [Q]}, "preference", CHAT),
    "preference dialogue": ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
                            "preference", CHAT),
    "unpaired preference": ({"prompt": "Q", "completion": "A", "label": True}, "prompt_completion", CHAT),
    "evals": ({"input": "Q", "ideal": "A"}, "openai_evals", CHAT),
    "evals messages": ({"input": [said("system", "S"), Q], "ideal": ["A"]}, "openai_evals", [("system", "S"), *CHAT]),
    "dolly": ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, "dolly",
              [("user", "Q\n\nC"), ("assistant", "A")]),
    "dolly without context": ({"instruction": "Q", "context": "", "response": "A"}, "dolly", CHAT),
    "question about a context": ({"question": "Q", "context": "C", "answer": "A"}, "question_answer",
                                 [("user", "C\n\nQ"), ("assistant", "A")]),
    "question beside a table": ({"question": "Q", "context": {"title": ["x"]}, "answer": "A"}, "question_answer", CHAT),
    "tree": (TREE, "oasst", [*CHAT, ("user", "Q2"), ("assistant", "A2")]),
    "segments, all trained": ({"segments": [{"label": True, "text": "One "}, {"label": True, "text": "two."}]},
        "segments",
                              [("document", "One two.")]),
    "sharegpt items": ({"items": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sharegpt", CHAT),
    "sharegpt conversation": ({"conversation": [{"from": "user", "value": "Q"}, {"from": "bing", "value": "A"}]},
        "sharegpt",
                              CHAT),
    "sharegpt bard": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "bard", "value": "A"}]},
        "sharegpt", CHAT),
    "speaker and text": ({"messages": [{"speaker": "user", "text": "Q"}, {"speaker": "assistant", "text": "A"}]},
        "messages",
                         CHAT),
    "system column": ({"system": "S", "messages": [Q, A]}, "messages", [("system", "S"), *CHAT]),
    "system column said again": ({"system": "S", "messages": [said("system", "S"), Q, A]}, "messages",
                                 [("system", "S"), *CHAT]),
    "xlam": ({"query": "Q", "answers": '[{"name": "f", "arguments": {"a": "1"}}]', "tools": '[{"name": "f"}]'}, "xlam",
             [("user", "Q"), ("assistant", "")]),
    "bfcl": ({"question": [[{"role": "user", "content": "Q"}]], "function": [{"name": "f", "parameters": {}}],
              "ground_truth": [{"f": {}}]}, "bfcl", [("user", "Q"), ("assistant", "")]),
    "glaive": ({"system": "SYSTEM: You are a helpful assistant.", "chat": "USER: Q\n\n\nASSISTANT: A <|endoftext|>"},
        "glaive",
               [("system", "You are a helpful assistant."), *CHAT]),
}  # fmt: skip


@pytest.mark.parametrize(("value", "format", "expected"), SHAPES.values(), ids=SHAPES)
def test_each_shape(value: dict[str, Any], format: str, expected: list[tuple[str, str]]) -> None:
    assert format_of(value) == format
    result = converted(value)
    assert turns(value) == expected
    assert (result.format, result.fixes, result.flags) == (format, (), ())


def test_every_format_of_the_configuration_is_known_and_shown() -> None:
    from typing import get_args

    assert {"auto", *FORMATS} == set(get_args(RowFormat))
    plain = {"messages", "instruction", "query_response", "text"}
    # In test_prepared_rows.py (only a run writes it), test_speech_rows.py and test_data_calls.py.
    elsewhere = {"prepared", "speech", "bfcl"}
    assert plain | elsewhere | {shape[1] for shape in SHAPES.values()} == set(FORMATS)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "segments, partly trained": ({"segments": [{"label": False, "text": "a"}, {"label": True, "text": "b"}]},
                                 "segments_unsupported"),
    "segment without text": ({"segments": [{"label": True}]}, "bad_content_type"),
    "segment label a word": ({"segments": [{"label": "yes", "text": "a"}]}, "bad_weight"),
    "an answer labelled bad": ({"prompt": "Q", "completion": "A", "label": False}, "rejected_answer"),
    "preference without prompt": ({"chosen": "A", "rejected": "B"}, "no_prompt"),
    "evals without an answer": ({"input": "Q", "ideal": []}, "empty_content"),
    "tree without answer": ({"message_tree_id": "t", "prompt": {"text": "Q", "role": "prompter", "replies": []}},
                            "no_assistant_turn"),
    "tree without text": ({"message_tree_id": "t", "prompt": {"role": "prompter"}}, "bad_messages"),
    "tree of bots": ({"message_tree_id": "t", "prompt": {"role": "bot", "text": "Q"}}, "bad_role"),
    "tokens": ({"messages": [Q, A], "input_ids": [1]}, "reserved_columns"),
    "images beside the messages": ({"messages": [said("user", "<image> Q"), A], "images": ["a.png"]},
        "media_unsupported"),
    "image of llava": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
        "image": "a.jpg"},
                       "media_unsupported"),
    "video": ({"messages": [said("user", [{"type": "video", "video": "a.mp4"}]), A]}, "media_unsupported"),
    "unknown part": ({"messages": [said("user", [{"type": "hologram"}]), A]}, "bad_content_type"),
    "user calls a tool": ({"messages": [said("user", [{"type": "tool_use", "name": "f", "input": {}}]), A]},
                          "bad_tool_call"),
    "xlam not json": ({"query": "Q", "answers": "[{", "tools": "[]"}, "bad_json"),
    "dates in tools": ({"messages": [Q, A], "tools": [{"since": Path("x")}]}, "bad_tools"),
    "infinite tool argument": ({"messages": [Q, {"role": "assistant", "tool_calls": [
        {"name": "f", "arguments": {"a": float("inf")}}]}]}, "bad_tools"),
    "half a character": ({"messages": [said("user", "\ud83d"), A]}, "lone_surrogate"),
    "huge weight": ({"messages": [Q, A], "weight": 10**400}, "bad_weight"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "code"), BAD.values(), ids=BAD)
def test_rows_without_an_honest_conversation_are_refused(value: dict[str, Any], code: str) -> None:
    with pytest.raises(RowError) as caught:
        converted(value)
    assert caught.value.code == code
    assert code in REASONS


def test_codes_of_this_room_are_in_the_table_or_on_their_way() -> None:
    flags = set(converted({"input": "Q", "ideal": ["A", "B"]}).flags)
    flags |= set(converted({"input": "Q", "ideal": "A"}, "messages", mixed=True).flags)
    assert flags == {"several_answers", "other_format"}
    assert flags <= REASONS.keys()


# ------------------------------------------------------------------------------------------- tools


def test_anthropic_blocks_become_turns_of_their_own() -> None:
    value = {
        "system": "S",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I must look."}, {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome", "days": [1, None]}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "17 C"}]},
                {"type": "text", "text": "And?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Mild."}]},
        ],
        "tools": [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}],
    }  # fmt: skip
    conversation = converted(value).conversation
    assert [message.role for message in conversation.messages] == [
        "system", "user", "assistant", "tool", "user", "assistant",
    ]  # fmt: skip
    asking = conversation.messages[2]
    assert (asking.reasoning, asking.text) == ("I must look.", "Let me see.")
    assert asking.tool_calls == (ToolCall(name="weather", arguments={"city": "Rome", "days": [1, None]}, call_id="c1"),)
    assert (conversation.messages[3].text, conversation.messages[3].call_id) == ("17 C", "c1")
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert conversation.tools == ({"type": "function", "function": function},)


def test_functions_as_openai_named_them_before() -> None:
    value = {
        "messages": [
            Q, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "f", "content": "2"}, A,
        ],
        "functions": [{"name": "f", "parameters": {}}],
    }  # fmt: skip
    result = converted(value)
    assert result.conversation.messages[1].tool_calls == (ToolCall(name="f", arguments={"a": 1}),)
    assert (result.conversation.messages[2].role, result.conversation.messages[2].name) == ("tool", "f")
    assert result.conversation.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    assert result.fixes == ("role_normalised",)


def test_names_and_weights_of_turns() -> None:
    value = {"messages": [{**Q, "name": "Ada"}, {**A, "weight": 0}, Q, {**A, "weight": 1}]}
    messages = converted(value).conversation.messages
    assert [message.weight for message in messages] == [None, 0.0, None, 1.0]
    assert messages[0].name == "Ada"


def test_sharegpt_roles_under_role_and_content_are_mended() -> None:
    result = converted({"messages": [said("human", "Q"), said("gpt", "A")]})
    assert result.fixes == ("role_normalised",)
    assert [message.role for message in result.conversation.messages] == ["user", "assistant"]


# ------------------------------------------------------------------------------------------- media


def test_media_is_named_where_it_is_wanted_and_refused_where_not() -> None:
    parts = [
        "Look:", {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, {"type": "text", "text": "and "},
        "hear", {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "image", "path": "b.png"},
    ]  # fmt: skip
    value = {"messages": [{"role": "user", "content": parts}, A]}
    held = converted(value, media=True).conversation.messages[0]
    assert held.parts[1] == MediaPart(kind="image", path="https://x.org/a.png")
    assert [part.kind for part in held.parts if isinstance(part, MediaPart)] == ["image", "audio", "image"]
    assert held.text == "Look:and hear"
    with pytest.raises(RowError, match=r"message 1 holds an image \(https://x.org/a.png\)"):
        converted(value)


# ------------------------------------------------------------------------------------------- trees in rows


def flat(message_id: str, parent_id: str | None, text: str, **more: Any) -> str:
    role = "prompter" if parent_id is None or parent_id.startswith("a") else "assistant"
    return json.dumps({"message_id": message_id, "parent_id": parent_id, "message_tree_id": "t", "text": text,
                       "role": role, "rank": None, **more})  # fmt: skip


FLAT = [
    flat("p1", None, "What is a fjord?"), flat("a1", "p1", "A lake.", rank=1), flat("x", "gone", "Lost."),
    flat("p2", None, "Name a planet that has rings."), flat("a2", "p1", "A drowned valley.", rank=0),
    flat("a3", "p2", "Saturn has them."), flat("q4", "a2", "Where are they?"), flat("a5", "q4", "In Norway."),
    flat("p1", None, "What is a fjord?"), flat("loop", "loop", "Round."),
]  # fmt: skip


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_messages_in_rows_are_gathered_to_trees(tmp_path: Path, name: str) -> None:
    """Every row is told once: the tree at its prompt, the rest as parts of it, whatever hangs nowhere as such."""
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(line) for line in FLAT]), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(FLAT) if name == "rows.jsonl" else f"[{','.join(FLAT)}]")
    rows = list(read_rows(tmp_path / name, lambda text: None))
    assert [row.line for row in rows] == list(range(1, 11))
    codes = [row.problem.code if row.problem else "" for row in rows]
    part, orphan = "part_of_tree", "orphan_message"
    assert codes == ["", part, orphan, "", part, part, part, part, "duplicate", orphan]
    first = convert(rows[0], "oasst").conversation
    assert [message.text for message in first.messages] == [
        "What is a fjord?", "A drowned valley.", "Where are they?", "In Norway.",
    ]  # fmt: skip
    assert convert(rows[3], "oasst").conversation.messages[1].text == "Saturn has them."


def test_a_deep_chain_of_messages_ends(tmp_path: Path) -> None:
    chain = [flat("p0", None, "Start")] + [flat(f"p{n}", f"p{n - 1}", f"turn {n}") for n in range(1, 3000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(chain))
    rows = list(read_rows(tmp_path / "rows.jsonl", lambda text: None))
    with pytest.raises(RowError):
        convert(rows[0], "oasst")
    assert sum(row.problem is not None for row in rows) == 2999


# ------------------------------------------------------------------------------------------- verdicts and mixtures


def test_the_verdict_says_what_it_stands_on() -> None:
    rows = [{"question": "Q", "answer": "A", "id": 1}] * 3 + [{"text": "x"}] + [{"odd": 1}]
    verdict = detect("rows.jsonl", rows)
    assert verdict.votes == (("question_answer", 3), ("text", 1), ("", 1))
    text = verdict.render("rows.jsonl")
    assert "3 of the first 5 rows; 1 text, 1 of no format" in text
    assert "not used: id, odd, text" in text
    assert "all of the first 2 rows" in detect("f", rows[:2]).render("f")
    assert "as data.format says" in detect("f", rows, "text").render("f")
    preference = detect("f", [{"prompt": "Q", "chosen": "A", "rejected": "B", "score": 1}])
    assert (
        "the chosen answers are trained, the rejected ones are not used; not used: rejected, score"
        in preference.render("f")
    )
    arguments = detect("f", [{"messages": [Q, A], "chat_template_kwargs": {}}])
    assert arguments.unused == ("chat_template_kwargs",)
    assert detect("f", rows, also_read=("odd", None)).unused == ("id", "text")


def test_rows_of_another_format_are_read_as_their_own_where_that_is_wanted() -> None:
    other = {"question": "Q", "answer": "A"}
    with pytest.raises(RowError, match="need the columns"):
        converted(other, "messages")
    result = converted(other, "messages", mixed=True)
    assert (result.format, result.flags) == ("question_answer", ("other_format",))
    assert turns(other, format="messages", mixed=True) == CHAT
    own = {"messages": [Q, A], "text": "all"}
    assert converted(own, "messages", mixed=True).flags == ()
    assert converted(own, "text", mixed=True).format == "messages", "a rendered text beside the messages is not the row"
    assert converted({"text": "x"}, "text", mixed=True).flags == ()
    with pytest.raises(RowError) as caught:
        converted({"odd": 1}, "messages", mixed=True)
    assert caught.value.code == "missing_columns"


def test_rows_of_token_numbers_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [1, 2], "labels": [1, 2]}\n' * 3)
    report = check_file(str(tmp_path / "rows.jsonl"))
    assert {row["code"] for row in report.rows} == {"reserved_columns"}
    assert (report.kept, report.dropped) == (0, 3)
    assert any("token numbers" in note for note in report.notes)
    with pytest.raises(DataError, match="no format fits"):
        detect("f", [{"odd": 1}, {"input_ids": [1]}])


# ------------------------------------------------------------------------------------------- identity

GOLDEN = {
    1: ("cc7450e743bdd2c17a0c3b589f8446bdc6fece6374f0843fe95902c8b6ee3aae",
        "154a1066db9da3e306d44f5a26e16944046bb0bf6c57203935261501be4f1a7a"),
    101: ("b5cef6ad904fdbee83c8e84b5f0dcf038dc9322a9bc4f062b1905b7251012441",
          "ba796c24823f581a038472550a04a7d273768cf17179d835ac2a9fe103e5122d"),
    7473: ("2aac3e540e0e3fa39eb3e807a42d765da0fb6ad3c72915a46353acfdc5caa260",
           "301281ca7d61366acf5400d961d5313d71332cc3b92b1b05ceb49e720c6081e3"),
}  # fmt: skip
ALL_IDS_SHA256 = "6fb52e637317b895293376b1abf1584886636772143fc403a5b2f1bc99636e29"


def test_ids_and_prompt_keys_of_gsm8k_stay_what_they_were() -> None:
    if not GSM8K.exists():
        pytest.skip("the shared GSM8K rows are not here")
    rows = [convert(row, "question_answer") for row in read_rows(GSM8K, lambda text: None)]
    for line, expected in GOLDEN.items():
        assert (rows[line - 1].conversation.id, rows[line - 1].prompt_key) == expected
    everything = "".join(row.conversation.id + row.prompt_key for row in rows)
    assert hashlib.sha256(everything.encode()).hexdigest() == ALL_IDS_SHA256
    assert all("\n#### " in row.conversation.messages[1].text for row in rows), "the final answer stays in the text"


@pytest.mark.parametrize("value", [shape[0] for shape in SHAPES.values()], ids=SHAPES)
def test_the_quick_hash_is_that_of_the_whole_json(value: dict[str, Any]) -> None:
    conversation = converted(value).conversation
    said_in_full = {
        "messages": [message_content(turn) for turn in conversation.messages],
        "tools": list(conversation.tools),
    }
    plain = json.dumps(said_in_full, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert conversation.id == hashlib.sha256(plain.encode()).hexdigest() == conversation_id(conversation)


def test_everything_that_a_turn_says_beside_its_text_is_in_the_id() -> None:
    """The quick hash writes a role and a text; a turn with more must not take that way."""
    turns_of_a = ({}, {"weight": 0}, {"weight": 0.5}, {"reasoning": "because"}, {"name": "Ada"}, {"tool_call_id": "1"})
    rows = [converted({"messages": [Q, {**A, **more}]}).conversation for more in turns_of_a]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        in_full = COMPACT.encode({"messages": [message_content(turn) for turn in row.messages], "tools": []})
        assert row.id == hashlib.sha256(in_full.encode()).hexdigest()


def test_quotes_and_controls_in_the_quick_hash() -> None:
    text = 'a"\\\b\f\n\r\t\x01\x7f\u2028é👍'
    messages = converted({"question": text, "answer": "A"}).conversation.messages
    whole = COMPACT.encode({"messages": [message_content(turn) for turn in messages], "tools": []})
    assert content_sha256(messages, ()) == hashlib.sha256(whole.encode()).hexdigest()
    key = COMPACT.encode([["user", " ".join(text.casefold().split())]])
    assert prompt_key(messages) == hashlib.sha256(key.encode()).hexdigest()


def test_a_row_is_converted_within_its_budget() -> None:
    if not GSM8K.exists():
        pytest.skip("the shared GSM8K rows are not here")
    rows = list(read_rows(GSM8K, lambda text: None))[:3000]
    ratio = times_as_long(
        lambda: [convert(row, "question_answer") for row in rows],
        lambda: [json.loads(json.dumps(row.value)) for row in rows],
    )
    assert ratio < 10, "3.5 where it was measured, 25 us a row"
