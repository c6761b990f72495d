"""Tools for a chat template that knows none: `tool_call_tags`, a beginning that is put before the template.

    system      the user's own system message, then the tools, one JSON object a line, and how to call them
    assistant   <tool_call>{"name": ..., "arguments": {...}}</tool_call>, a line a call, after the text if there is any
    tool        a user's turn with <tool_response>...</tool_response>, one for all results that follow one answer

The beginning rewrites the messages and hands them to the model's template, which does the rest. It is part of the
template: what is trained, what is asked in evaluation and what is published with the model are one and the same text.
Where no tools, calls or results are given it changes nothing. It is put on only after it was proven on probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from halo_forge.chat.known import known_tokenizer
from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart, ToolCall
from halo_forge.errors import DataError, RowError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ToolFormat = Literal["template", "auto", "tool_call_tags"]
MARK = "{#- halo-forge: tool_call_tags -#}"
_TOOLS_TEXT = """\
{%- set halo.tools = "You can call these functions:" %}
{%- for tool in tools %}
    {%- set halo.tools = halo.tools ~ "\\n" ~ ((tool.function if tool.function is defined else tool) | tojson) %}
{%- endfor %}
{%- set halo.tools = halo.tools ~ "\\nWrite each call on a line of its own: <tool_call>{\\"name\\": the function, "
    ~ "\\"arguments\\": {the values by name}}</tool_call>\\nIf none of them fits, call none and answer in words." %}
"""
_INTO_SYSTEM = """\
    {%- if messages and messages[0].role == "system" %}
        {%- set halo.rows = [{"role": "system", "content": messages[0].content ~ "\\n\\n" ~ halo.tools}] %}
        {%- set halo.first = 1 %}
    {%- else %}
        {%- set halo.rows = [{"role": "system", "content": halo.tools}] %}
    {%- endif %}
"""
_INTO_USER = """\
    {%- set halo.lead = halo.tools ~ "\\n\\n" %}
"""
_BEGINNING = """\
{#- halo-forge: tool_call_tags -#}
{%- set halo = namespace(rows=[], first=0, tools="", lead="", results="", calls="") %}
{%- if tools %}
TOOLS_TEXT
PLACE
{%- endif %}
{%- for message in messages[halo.first:] %}
    {%- if message.role == "tool" %}
        {%- set halo.results = halo.results ~ ("\\n" if halo.results else "") ~ "<tool_response>" ~ message.content
            ~ "</tool_response>" %}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {%- set halo.rows = halo.rows + [{"role": "user", "content": halo.results}] %}
            {%- set halo.results = "" %}
        {%- endif %}
    {%- elif message.role == "assistant" and message.tool_calls %}
        {%- set halo.calls = message.content or "" %}
        {%- for item in message.tool_calls %}
            {%- set call = item.function if item.function is defined else item %}
            {%- set halo.calls = halo.calls ~ ("\\n" if halo.calls else "") ~ "<tool_call>{\\"name\\": "
                ~ (call.name | tojson) ~ ", \\"arguments\\": "
                ~ (call.arguments if call.arguments is string else (call.arguments | tojson)) ~ "}</tool_call>" %}
        {%- endfor %}
        {%- set halo.rows = halo.rows + [{"role": "assistant", "content": halo.calls,
            "reasoning_content": message.reasoning_content or ""}] %}
    {%- elif halo.lead and message.role == "user" %}
        {%- set halo.rows = halo.rows + [{"role": "user", "content": halo.lead ~ message.content}] %}
        {%- set halo.lead = "" %}
    {%- else %}
        {%- set halo.rows = halo.rows + [message] %}
    {%- endif %}
{%- endfor %}
{%- set messages = halo.rows %}
{%- set tools = none %}
"""
_NAME, _TEXT = "look_up", "halo"
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}


def apply_tool_format(tokenizer: PreTrainedTokenizerBase, wanted: ToolFormat) -> bool:
    """Put the beginning before the tokenizer's template where it is wanted; whether it stands there now.

    Raises UsageError where it is asked for and cannot be proven on this template."""
    template = tokenizer.chat_template
    if isinstance(template, str) and template.startswith(MARK):
        return True
    if wanted == "template" or (wanted == "auto" and (not template or renders_tools(tokenizer))):
        return False
    if not isinstance(template, str) or not template:
        raise _unusable("the tokenizer has no chat template, or several")
    plain = _rendered(tokenizer, tools=False)
    for place in (_INTO_SYSTEM, _INTO_USER):
        beginning = _BEGINNING.replace("TOOLS_TEXT\n", _TOOLS_TEXT).replace("PLACE\n", place)
        tokenizer.chat_template = beginning + template
        if renders_tools(tokenizer) and _rendered(tokenizer, tools=False) == plain:
            return True
    tokenizer.chat_template = template
    raise _unusable("the template does not render what is put before it")


def _unusable(reason: str) -> UsageError:
    return UsageError(
        f"tools cannot be written for this model: {reason}",
        where="model.tool_format",
        expected="a model with one chat template that renders a system message, a question and an answer",
        fix="take an instruction-tuned model with a chat template",
    )


def renders_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template shows the tools, a call, its result and the answer, and what is trained of them is sure."""
    rendered = _rendered(tokenizer, tools=True)
    return rendered is not None and "Look a word up." in rendered


def _rendered(tokenizer: PreTrainedTokenizerBase, *, tools: bool) -> str | None:
    messages = [_said("system", "Be brief."), _said("user", "Question?")]
    if tools:
        call = ToolCall(name=_NAME, arguments={"word": _TEXT}, call_id="abcdefghi")
        messages += [
            Message(role="assistant", parts=(call,)),
            Message(role="tool", parts=(TextPart(text="a ring of light"),), name=_NAME, call_id="abcdefghi"),
        ]
    messages.append(_said("assistant", "Answer."))
    offered = (_PROBE_TOOL,) if tools else ()
    for first in (0, 1):  # with and without a system message, which some templates refuse
        probe = Conversation(id="", messages=tuple(messages[first:]), source=SourceRef(path="", line=0), tools=offered)
        try:
            rendering = known_tokenizer(tokenizer).render(probe)
        except (RowError, DataError):
            continue
        if "tools_not_rendered" not in rendering.notes:
            return rendering.text
    return None


def _said(role: Literal["system", "user", "assistant"], text: str) -> Message:
    return Message(role=role, parts=(TextPart(text=text),))
