"""Tool calls under every chat template that trl ships: read back as they were written, results never trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart, ToolCall, conversation_to_example
from halo_forge.chat.call_format import call_format_of, written_calls
from halo_forge.chat.tool_format import MARK, apply_tool_format
from halo_forge.errors import RowError, UsageError
from halo_forge.texts.calls.formats import read_calls
from halo_forge.texts.calls.record import Call, Said
from halo_forge.texts.calls.schemas import name_of, parameters_of
from parity.test_chat_templates import (  # noqa: F401 (fixtures)
    CALLS,
    REFUSED,
    TRAINED_BY_TRL,
    WITHOUT_VARIANT,
    pytestmark,
    small_base,
    with_template,
)

ONLY_PARTS = {"idefics3", "llava_next", "smolvlm"}
"""Templates that read content as a list of parts alone, before which nothing can be put."""
EVERY = sorted({*TRAINED_BY_TRL, *WITHOUT_VARIANT})
WITHOUT_CALLS = sorted(name for name, shapes in REFUSED.items() if shapes >= CALLS)
WITH_CALLS = sorted(set(EVERY) - set(WITHOUT_CALLS))
FORMATS = {
    "deepseekv3": "deepseek", "glm4moe": "arg_key tags", "gptoss": "harmony", "llama3_1": "bare JSON",
    "llama3_2": "bare JSON", "muse_glimmer": "invoke tags", "qwen2_5": "tool_call tags", "qwen3": "tool_call tags",
    "qwen3_5_think": "function tags", "gemma4": "gemma", "lfm2_v2": "pythonic", "nemotron_3_nano": "function tags",
}  # fmt: skip
UNESCAPED = dict.fromkeys(("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), ("quotes", "lines", "slashes"))
"""Templates that put a text between single quotes as it is: what holds one, nobody can read back."""
ONE_CALL = {"gptoss", "llama3_1", "llama3_2"}
"""Templates that take one call at a time."""
Build = Callable[[str], PreTrainedTokenizerBase]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}


TEXT, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TOOLS = (
    tool("look_up", word=TEXT, times=INTEGER, exact={"type": "boolean"}),
    tool("send.mail", to={"type": "array", "items": TEXT}, options={"type": "object"}, weight=NUMBER),
)
SCHEMAS = {name_of(tool): parameters_of(tool) for tool in TOOLS}
BATTERY = {
    "plain": Call("look_up", {"word": "tide", "times": 3, "exact": True}),
    "quotes": Call("look_up", {"word": 'He said "no", it\'s {a: [1]}.'}),
    "lines": Call("look_up", {"word": "one\n\n  two\tthree"}),
    "letters": Call("look_up", {"word": "ünï 你好 😀 <b>&amp;</b>"}),
    "digits in text": Call("look_up", {"word": "007"}),
    "slashes": Call("look_up", {"word": "C:\\new\\table"}),
    "nested": Call("send.mail", {"to": ["a@b.c", "ü"], "options": {"copy": {"to": [1, 2]}, "late": False}}),
    "numbers": Call("send.mail", {"weight": -2.5, "options": {"n": 10, "x": 0.125}}),
    "nothing": Call("look_up", {}),
}


@pytest.mark.parametrize("name", WITH_CALLS)
def test_what_a_template_writes_is_read_back(name: str, with_template: Build) -> None:  # noqa: F811
    tokenizer = with_template(name)
    found = call_format_of(tokenizer)
    assert found.read is not None
    assert found.name == FORMATS.get(name, found.name)
    check_read_back(tokenizer, unreadable=UNESCAPED.get(name, ()))


def check_read_back(tokenizer: PreTrainedTokenizerBase, unreadable: Sequence[str] = ()) -> None:
    read = call_format_of(tokenizer).read
    for case, call in BATTERY.items():
        if case in unreadable:
            continue
        text = written_calls(tokenizer, (call,), TOOLS)
        assert text is not None, case
        assert read_calls(text, SCHEMAS, read) == Said((call,)), (case, text)
    several = (BATTERY["plain"], BATTERY["nested"], BATTERY["letters"])
    text = written_calls(tokenizer, several, TOOLS)
    assert text is None or read_calls(text, SCHEMAS, read) == Said(several), text


def test_a_template_that_drops_the_second_call_refuses_the_row(with_template: Build) -> None:  # noqa: F811
    tokenizer = with_template("gptoss")
    assert written_calls(tokenizer, (BATTERY["plain"],), TOOLS) is not None
    with pytest.raises(RowError, match="leaves out one of the tool calls") as caught:
        conversation_to_example(asked(BATTERY["plain"], BATTERY["nested"]), tokenizer, max_seq_length=4096)
    assert caught.value.code == "template_refused"


@pytest.mark.parametrize("name", WITHOUT_CALLS)
def test_a_template_without_tools_gets_them_by_tags(name: str, with_template: Build) -> None:  # noqa: F811
    tokenizer = copy.deepcopy(with_template(name))
    before = tokenizer.chat_template
    if name in ONLY_PARTS:
        with pytest.raises(UsageError, match="tools cannot be written"):
            apply_tool_format(tokenizer, "auto")
        assert tokenizer.chat_template == before
        return
    plain = Conversation(
        id="", source=SourceRef(path="", line=1), messages=(said("user", "Hello?"), said("assistant", "Hi."))
    )
    ids = conversation_to_example(plain, tokenizer, max_seq_length=4096).example.input_ids
    assert apply_tool_format(tokenizer, "auto")
    assert tokenizer.chat_template.startswith(MARK)
    assert call_format_of(tokenizer).name == "tool_call tags"
    check_read_back(tokenizer)
    again = conversation_to_example(plain, tokenizer, max_seq_length=4096).example.input_ids
    np.testing.assert_array_equal(again, ids, err_msg="rows without tools are rendered as before")
    assert apply_tool_format(tokenizer, "auto"), "a template that has the tags is left as it is"
    assert tokenizer.chat_template.count(MARK) == 1
    check_results_are_not_trained(tokenizer)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gemma4", "gptoss", "qwen3_5_nothink"])
def test_a_template_with_tools_is_left_alone(name: str, with_template: Build) -> None:  # noqa: F811
    tokenizer = copy.deepcopy(with_template(name))
    before = tokenizer.chat_template
    assert not apply_tool_format(tokenizer, "auto")
    assert not apply_tool_format(tokenizer, "template")
    assert tokenizer.chat_template == before


def said(role: Any, text: str, **more: Any) -> Message:
    return Message(role=role, parts=(TextPart(text=text),), **more)


def asked(*calls: Call, again: bool = True) -> Conversation:
    """Calls with their results, the answer, and a second round."""
    ids = [f"abcdefgh{number}" for number in range(len(calls))]
    parts = tuple(
        ToolCall(name=call.name, arguments=call.arguments, call_id=id) for call, id in zip(calls, ids, strict=True)
    )
    results = [
        said("tool", f"RESULT{number} of the sea", name=call.name, call_id=id)
        for number, (call, id) in enumerate(zip(calls, ids, strict=True))
    ]
    rounds = (Message(role="assistant", parts=parts), *results, said("assistant", "The ANSWER is high water."))
    return Conversation(
        id="", source=SourceRef(path="", line=1), tools=TOOLS,
        messages=(said("user", "QUESTION one?"), *rounds, *((said("user", "QUESTION two?"), *rounds) if again else ())),
    )  # fmt: skip


def check_results_are_not_trained(
    tokenizer: PreTrainedTokenizerBase, *, again: bool = True, parallel: bool = True
) -> None:
    encoder = ChatEncoder(tokenizer, max_seq_length=8192)
    for calls in ((BATTERY["plain"],), (BATTERY["plain"], BATTERY["quotes"])):
        try:
            example = encoder.encode(asked(*calls, again=again)).example
        except RowError:
            if len(calls) == 1 or parallel:
                raise
            continue
        trained = tokenizer.decode(example.input_ids[example.loss_weights > 0])
        seen = tokenizer.decode(example.input_ids[example.loss_weights == 0])
        assert "RESULT" not in trained
        assert "QUESTION" not in trained
        assert seen.count("RESULT") == (1 + again) * len(calls)
        assert trained.count("ANSWER") == 1 + again
        assert trained.count("tide") == 1 + again, "every call is trained"


@pytest.mark.parametrize("name", sorted(set(WITH_CALLS) - {"diffusion_gemma", "glm4moe"}))
def test_results_of_tools_are_never_trained(name: str, with_template: Build) -> None:  # noqa: F811
    again = name != "deepseekv3"  # its template knows one round
    check_results_are_not_trained(with_template(name), again=again, parallel=name not in ONE_CALL)


def test_tags_on_the_embedded_model(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    with pytest.raises(RowError, match=r"model\.tool_format: auto"):
        conversation_to_example(asked(BATTERY["plain"]), tokenizer, max_seq_length=4096)
    assert apply_tool_format(tokenizer, "tool_call_tags")
    check_read_back(tokenizer)
    check_results_are_not_trained(tokenizer)
    encoded = conversation_to_example(asked(BATTERY["plain"]), tokenizer, max_seq_length=4096)
    assert encoded.notes == (), "the tools are in the text now"
    text = tokenizer.decode(encoded.example.input_ids)
    assert "<|im_start|>user\n<tool_response>RESULT0 of the sea</tool_response><|im_end|>" in text
