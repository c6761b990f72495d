"""Calls read from text: every known format, what is no call, and texts written to hurt."""

from __future__ import annotations

import time

import pytest

from halo_forge.texts.calls.formats import KNOWN_FORMATS, derived_format, format_of_samples, read_calls
from halo_forge.texts.calls.record import Call, Said

CITY = Call("weather", {"city": "Rome", "days": 2})
NOW = Call("now", {})
TOOLS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {},
    "send": {"type": "object", "properties": {"code": {"type": "string"}}},
}
ARGS = '{"city": "Rome", "days": 2}'
JSON = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
WRITTEN = {
    "tool_call tags": f"<tool_call>\n{JSON}\n</tool_call>",
    "function tags": "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
    "arg_key tags": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
    "invoke tags": '<atem:function_calls>\n<atem:invoke name="weather">\n<atem:parameter name="city">Rome'
    '</atem:parameter>\n<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
    "TOOL_CALLS list": f"[TOOL_CALLS] [{JSON}]",
    "TOOL_CALLS names": f"[TOOL_CALLS]weather[ARGS]{ARGS}",
    "START_ACTION": '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "weather", "parameters": '
    f"{ARGS}}}\n]<|END_ACTION|>",
    "bar tags": f"<|tool_call|>[{JSON}]<|/tool_call|>",
    "functools": f"functools[{JSON}]",
    "deepseek": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{ARGS}\n```"
    "<｜tool▁call▁end｜>",
    "deepseek short": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜>",
    "harmony": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGS}",
    "kimi": f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{ARGS}<|tool_call_end|>",
    "function tag with JSON": f"<function=weather>{ARGS}</function>",
    "gemma": '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:2}<tool_call|>',
    "pythonic": '[weather(city="Rome", days=2)]',
    "bare JSON": '{"name": "weather", "parameters": {"city": "Rome", "days": 2}}',
}


def test_every_known_format_has_a_sample() -> None:
    assert list(WRITTEN) == list(KNOWN_FORMATS)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_reads_its_own_writing(name: str) -> None:
    assert KNOWN_FORMATS[name](WRITTEN[name], TOOLS) == Said((CITY,))
    assert KNOWN_FORMATS[name]("The weather in Rome is fine, 21 degrees.", TOOLS) == Said()


@pytest.mark.parametrize("name", WRITTEN)
def test_an_unknown_model_is_read_by_the_first_format_that_fits(name: str) -> None:
    assert read_calls(WRITTEN[name], TOOLS) == Said((CITY,))


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("START_ACTION", "bare JSON", "pythonic")])
def test_text_may_stand_before_a_marked_call_and_thoughts_are_not_read(name: str) -> None:
    read = KNOWN_FORMATS[name]
    assert read_calls(f"I look it up.\n{WRITTEN[name]}", TOOLS, read).calls == (CITY,)
    thought = f"<think>\nmaybe {WRITTEN['tool_call tags']}\n</think>\n\nIt is sunny."
    assert not read_calls(thought, TOOLS, read).attempts


SEVERAL = {
    "tool_call tags": f'<tool_call>{JSON}</tool_call>\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>',
    "TOOL_CALLS list": f'[TOOL_CALLS][{JSON}, {{"name": "now", "arguments": {{}}}}]',
    "pythonic": "[weather(city='Rome', days=2), now()]",
    "bare JSON": f'{JSON}; {{"name": "now"}}',
    "arg_key tags": f"{WRITTEN['arg_key tags']}\n<tool_call>now\n</tool_call>",
    "function tags": f"{WRITTEN['function tags']}\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "gemma": f"{WRITTEN['gemma']}<|tool_call>call:now{{}}<tool_call|>",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_parallel_calls(name: str) -> None:
    assert read_calls(SEVERAL[name], TOOLS, KNOWN_FORMATS[name]) == Said((CITY, NOW))


BROKEN = {
    "cut off": ("tool_call tags", '<tool_call>{"name": "weather", "arguments": {"city": "Ro'),
    "a brace too many": ("tool_call tags", f"<tool_call>{JSON}}}</tool_call>"),
    "no name": ("tool_call tags", '<tool_call>{"arguments": {}}</tool_call>'),
    "arguments are a list": ("tool_call tags", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    "NaN": ("tool_call tags", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    "single quotes": ("tool_call tags", "<tool_call>{'name': 'f'}</tool_call>"),
    "not closed": ("function tags", "<function=f>\n<parameter=a>\n1"),
    "positional": ("pythonic", "[weather('Rome')]"),
    "code": ("pythonic", "[weather(city=open('x').read())]"),
    "an expression": ("pythonic", "[f(a=1 + 1)]"),
    "half of JSON": ("bare JSON", '{"name": "f", "parameters": {'),
    "no value": ("gemma", "<|tool_call>call:f{a:}<tool_call|>"),
    "no end": ("gemma", '<|tool_call>call:f{a:<|"|>x'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_call_is_an_attempt_and_no_call(case: str) -> None:
    name, text = BROKEN[case]
    said = KNOWN_FORMATS[name](text, TOOLS)
    assert said.attempts
    assert said.problem
    assert not said.calls


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"city": "Rome"}', "[1, 2]", "import functools", "I would call weather(city='Rome').",
     "a <tool> call", '["name"]', "[link](https://example.org)"],
)  # fmt: skip
def test_text_that_is_no_call(text: str) -> None:
    assert read_calls(text, TOOLS) == Said()


def test_text_where_the_schema_wants_text_stays_text() -> None:
    text = "<function=send>\n<parameter=code>\n007\n</parameter>\n</function>"
    assert read_calls(text, TOOLS, KNOWN_FORMATS["function tags"]).calls == (Call("send", {"code": "007"}),)


def test_a_loop_of_calls_is_cut() -> None:
    said = read_calls(f"<tool_call>{JSON}</tool_call>\n" * 1000, TOOLS, KNOWN_FORMATS["tool_call tags"])
    assert len(said.calls) == 128
    assert said.problem


HOSTILE = {
    "open tags": "<tool_call>" * 40_000,
    "open tags with JSON": '<tool_call>{"name": ' * 20_000,
    "brackets": "[" * 200_000,
    "braces in a tag": "<tool_call>" + '{"a":' * 60_000,
    "functions": "<function=a>" * 30_000,
    "parameters": "<function=a>" + "<parameter=b>" * 30_000 + "</function>",
    "gemma": "<|tool_call>call:f{a:" + "{b:" * 60_000,
    "minus signs": "[f(a=" + "-" * 15_000 + "1)]",
    "parentheses": "[f(a=" + "(" * 15_000,
    "names": "[TOOL_CALLS]" + "a" * 400_000,
    "marks": "[TOOL_CALLS]a " * 30_000,
    "digits": '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 200_000,
    "spaces": "<tool_call>" + " " * 400_000,
    "surrogates": "<tool_call>\ud800</tool_call>" * 1000,
    "thoughts": "</think>" * 50_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_answers_are_read_in_bounded_time(case: str) -> None:
    start = time.process_time()
    read_calls(HOSTILE[case], TOOLS)
    assert time.process_time() - start < 2.0


def test_a_format_is_derived_from_what_a_template_writes() -> None:
    def write(*calls: Call) -> str:
        import json

        return "CALLS\n" + "".join(f"=> {call.name} :: {json.dumps(call.arguments)} <=\n" for call in calls)

    samples = [(write(CITY), (CITY,)), (write(CITY, NOW), (CITY, NOW))]
    found = format_of_samples(samples, TOOLS)
    assert found is not None
    assert found[0].startswith("derived")
    assert read_calls(write(NOW, CITY), TOOLS, found[1]).calls == (NOW, CITY)
    assert not read_calls("Nothing to call.", TOOLS, found[1]).attempts
    assert derived_format(["weather in Rome"], [(CITY,)]) is None
