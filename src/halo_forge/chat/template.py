"""What is learnt about a chat template once, from small probe conversations: where an answer begins, what ends it.

A probe's content is one word of private-use characters per message, so its place in the rendering is beyond doubt and
what stands between two words is the template's own literal text.

    [user U, assistant A]               ...U<|im_end|>\\n<|im_start|>assistant\\nA<|im_end|>\\n
    [user U] + generation prompt        ...U<|im_end|>\\n<|im_start|>assistant\\n
                                            ----------- lead --------------       -- tail --
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from halo_forge.chat.messages import CallStyle, Render
from halo_forge.chat.tokens import Special, TextEncoder
from halo_forge.errors import DataError, RowError

_USER, _ANSWER, _NEXT_USER, _NEXT_ANSWER, _RESULT = ("\ue101\ue1a1", "\ue102\ue1a2", "\ue103", "\ue104", "\ue105\ue1a5")
_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word."}},
            "required": ["word"],
        },
    },
}
_CALL_STYLES = (
    CallStyle(),
    CallStyle(empty_content=None),
    CallStyle(arguments_as_text=True),
    CallStyle(arguments_as_text=True, empty_content=None),
)
_GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


@dataclass(frozen=True, slots=True)
class Lead:
    """What the template writes before an answer.

    anchors  literal texts that end where an answer begins, the generation prompt first; the others are for histories
             that leave out a part of it (a `<think>` that only the generation prompt opens)
    cuts     how many characters of the generation prompt such histories lack
    """

    anchors: tuple[str, ...]
    cuts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The token that ends an answer: `final` where the answer ends the conversation, `middle` where a turn follows."""

    final: str | None
    middle: str | None


@dataclass(frozen=True, slots=True)
class ToolFacts:
    style: CallStyle
    lead: Lead
    stop: Stop


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """`literals` are the strings the template compares content with. `plain_ending` is what it writes after an answer
    where that holds no token to stop on. `tools` is None where the template does not render tool calls."""

    render: Render
    lead: Lead
    stop: Stop
    plain_ending: str
    literals: tuple[str, ...]
    tools: ToolFacts | None


def learn_template(source: str, renderers: Sequence[Render], encoder: TextEncoder) -> TemplateFacts:
    """Takes the first renderer that shows a question and its answer; DataError where none does."""
    problem: DataError | None = None
    for render in renderers:
        try:
            return _learn(source, render, encoder)
        except DataError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _learn(source: str, render: Render, encoder: TextEncoder) -> TemplateFacts:
    question = [{"role": "user", "content": _USER}]
    answered = [*question, {"role": "assistant", "content": _ANSWER}]
    more = [*answered, {"role": "user", "content": _NEXT_USER}, {"role": "assistant", "content": _NEXT_ANSWER}]
    try:
        whole = render(answered, (), False)
        prompt = render(question, (), True)
    except RowError as error:
        raise DataError(
            "the chat template does not render a question and its answer",
            expected=error.what,
            fix="take another template or model; some templates serve one fixed task only",
        ) from None
    if _USER not in whole or _ANSWER not in whole or _USER not in prompt:
        raise DataError(
            "the chat template leaves out the question or the answer",
            fix="take the template of the model's own repository",
        )
    several = _attempt(render, more, ())
    tail = whole.rpartition(_ANSWER)[2]
    middle = _between(several, _ANSWER, _NEXT_USER)
    stop = _find_stop(encoder, tail, middle)
    return TemplateFacts(
        render=render,
        lead=_find_lead(
            encoder,
            prompt=prompt.rpartition(_USER)[2],
            unprompted=(_attempt(render, question, ()) or "").rpartition(_USER)[2],
            histories=[_between(whole, _USER, _ANSWER), _between(several, _USER, _ANSWER)],
        ),
        stop=stop,
        plain_ending=tail.strip() if stop.final is None else "",
        literals=_inspected_literals(source),
        tools=_learn_tools(render, encoder, stop),
    )


def _learn_tools(render: Render, encoder: TextEncoder, text_stop: Stop) -> ToolFacts | None:
    for style in _CALL_STYLES:
        asked = [{"role": "user", "content": _USER}, _probe_call(style)]
        told = [*asked, {"role": "tool", "content": _RESULT, "name": "lookup", "tool_call_id": "abcdefghi"}]
        called = _attempt(render, asked, (_TOOL,))
        answered = [*told, {"role": "assistant", "content": _NEXT_ANSWER}]
        more = [*answered, {"role": "user", "content": _NEXT_USER}, {"role": "assistant", "content": "."}]
        whole = _attempt(render, answered, (_TOOL,))
        prompt = _attempt(render, told, (_TOOL,), True)
        if called is None or _ANSWER not in called or whole is None or _RESULT not in whole or prompt is None:
            continue
        return ToolFacts(
            style=style,
            lead=_find_lead(
                encoder,
                prompt=prompt.rpartition(_RESULT)[2],
                unprompted=(_attempt(render, told, (_TOOL,)) or "").rpartition(_RESULT)[2],
                histories=[
                    _between(whole, _RESULT, _NEXT_ANSWER),
                    _between(_attempt(render, more, (_TOOL,)), _RESULT, _NEXT_ANSWER),
                ],
            ),
            stop=_find_stop(encoder, called.rpartition(_ANSWER)[2], _between(whole, _ANSWER, _RESULT), text_stop),
        )
    return None


def _probe_call(style: CallStyle) -> dict[str, Any]:
    arguments: Any = f'{{"word": "{_ANSWER}"}}' if style.arguments_as_text else {"word": _ANSWER}
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "lookup", "arguments": arguments}}
    return {"role": "assistant", "content": style.empty_content, "tool_calls": [call]}


def _attempt(
    render: Render, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], prompt: bool = False
) -> str | None:
    try:
        return render(messages, tools, prompt)
    except RowError:
        return None


def _between(text: str | None, left: str, right: str) -> str | None:
    if text is None:
        return None
    start = text.rfind(left)
    end = text.find(right, start)
    return text[start + len(left) : end] if 0 <= start < end else None


def _find_lead(encoder: TextEncoder, prompt: str, unprompted: str, histories: list[str | None]) -> Lead:
    """`prompt` and `unprompted`: what follows the last message with and without a generation prompt."""
    specials = encoder.specials_in(prompt)
    # Where the generation prompt adds nothing ("[/INST]"), the end of the question is what announces the answer.
    own_start = _whole_tokens(_common_length(prompt, unprompted), specials)
    if not prompt[own_start:].strip():
        own_start = 0
    cuts = [0]
    for history in histories:
        if history is not None:
            cuts.append(len(prompt) - _whole_tokens(_common_length(prompt, history), specials))
    anchors = [prompt[own_start : len(prompt) - cut] for cut in sorted(set(cuts))]
    return Lead(tuple(anchor for anchor in anchors if anchor.strip()), tuple(sorted(set(cuts))))


def _common_length(left: Sequence[str], right: Sequence[str]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(left), len(right)))


def _whole_tokens(length: int, specials: list[Special]) -> int:
    """The longest length up to `length` that splits no special token."""
    return min((special.start for special in specials if special.start < length < special.end), default=length)


def _find_stop(encoder: TextEncoder, tail: str, middle: str | None, text_stop: Stop | None = None) -> Stop:
    """The stop is the last special token that the template writes both at the end and before another turn: what
    follows it opens the next turn, or closes the text."""
    ending = [special.text for special in encoder.specials_in(tail)]
    going_on = [special.text for special in encoder.specials_in(middle or "")]
    shared = ending[: _common_length(ending, going_on)]
    if text_stop is not None and text_stop.final is None:
        return Stop(None, next(iter(going_on[len(ending) :]), None))
    if middle is None:
        going_on = ending
        shared = ending if text_stop is not None else ending[:1]
    if shared:
        return Stop(shared[-1], shared[-1])
    if not ending:
        return Stop(None, going_on[0] if going_on else None)
    final = ending[0] if text_stop is None else ending[-1]
    return Stop(final, going_on[0] if going_on else None)


def _inspected_literals(source: str) -> tuple[str, ...]:
    """Marked-up string constants of the template; content that holds one may be rendered in another way."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION_TAGS.sub("", source))
    except jinja2.TemplateError:
        return ()
    constants = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    return tuple(
        sorted(
            constant
            for constant in constants
            if len(constant) > 1 and not any(character.isspace() for character in constant) and not constant.isalnum()
        )
    )
