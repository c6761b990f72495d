"""The known ways in which models write calls, by name; and one that is read off a model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halo_forge.texts.calls.json_forms import NamedJson, TaggedJson, json_at, read_bare_json
from halo_forge.texts.calls.markup_forms import Markup, read_gemma
from halo_forge.texts.calls.pythonic import read_pythonic
from halo_forge.texts.calls.record import NOTHING, Call, Read, Said, Schemas

REASONING_END = "</think>"
KNOWN_FORMATS: Mapping[str, Read] = {
    "tool_call tags": TaggedJson("<tool_call>", "</tool_call>"),  # Hermes, Qwen 2.5 and 3, and our own
    "function tags": Markup("<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>"),  # Qwen 3.5
    "arg_key tags": Markup(
        "<tool_call>", "\n", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"
    ),  # GLM 4
    "invoke tags": Markup(
        '<atem:invoke name="', '">', '<atem:parameter name="', '">', "", "</atem:parameter>", "</atem:invoke>"
    ),
    "TOOL_CALLS list": TaggedJson("[TOOL_CALLS]", ""),  # Mistral
    "TOOL_CALLS names": NamedJson("[TOOL_CALLS]", ""),  # Mistral since 2025: name[ARGS]{...}
    "START_ACTION": TaggedJson("<|START_ACTION|>", "<|END_ACTION|>"),  # Command R
    "bar tags": TaggedJson("<|tool_call|>", "<|/tool_call|>"),  # Phi 4 mini
    "functools": TaggedJson("functools[", "", kept=1),
    "deepseek": NamedJson("<｜tool▁sep｜>", "```json"),  # V3, R1
    "deepseek short": NamedJson("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),  # V3.1
    "harmony": NamedJson("to=functions.", "<|message|>"),  # gpt-oss
    "kimi": NamedJson("<|tool_call_begin|>functions.", "<|tool_call_argument_begin|>"),
    "function tag with JSON": NamedJson("<function=", ">"),  # Llama 3 without built-in tools
    "gemma": read_gemma,
    "pythonic": read_pythonic,  # BFCL, Llama 4, LFM 2
    "bare JSON": read_bare_json,  # Llama 3, xLAM
}
"""In the order in which they are tried where nothing is known of the model; the ones without a mark come last."""


def read_calls(text: str, tools: Schemas, read: Read | None = None) -> Said:
    """The calls of an answer, by the model's own format, or by the first known format that finds some. Thoughts before
    the answer are not read. Never raises; time is linear in the text."""
    text = text.rpartition(REASONING_END)[2]
    if read is not None:
        return read(text, tools)
    failed = NOTHING
    for reader in KNOWN_FORMATS.values():
        said = reader(text, tools)
        if said.calls and said.problem is None:
            return said
        if said.attempts and not failed.attempts:
            failed = said
    return failed


def format_of_samples(samples: Sequence[tuple[str, tuple[Call, ...]]], tools: Schemas) -> tuple[str, Read] | None:
    """(name, reader) of the format that reads every sample, (text, its calls), exactly: a known one, or one derived
    from the first sample; None where there is none."""
    candidates = list(KNOWN_FORMATS.items())
    if (derived := derived_format([text for text, _ in samples], [calls for _, calls in samples])) is not None:
        candidates.append((f"derived: {derived.mark}NAME{derived.before}{{...}}", derived))
    for name, read in candidates:
        if all(same_calls(read_calls(text, tools, read), calls) for text, calls in samples):
            return name, read
    return None


def same_calls(said: Said, calls: Sequence[Call]) -> bool:
    return said.problem is None and said.calls == tuple(calls)


def derived_format(texts: Sequence[str], calls: Sequence[tuple[Call, ...]]) -> NamedJson | None:
    """What stands before a name and between it and the JSON object of its arguments, in every call of every text."""
    marks: list[str] = []
    befores: list[str] = []
    for text, wanted in zip(texts, calls, strict=True):
        at = 0
        for call in wanted:
            start = text.find(call.name, at)
            opening = start + len(call.name)
            found = None
            while start >= 0 and (opening := text.find("{", opening)) >= 0:
                found = json_at(text, opening)
                if found is not None and found[0] == call.arguments:
                    break
                found, opening = None, opening + 1
            if found is None:
                return None
            marks.append(text[at:start])
            befores.append(text[start + len(call.name) : opening])
            at = found[1]
    mark = _common_end(marks).lstrip()
    if not befores or len(set(befores)) != 1 or not mark or mark.isalnum():
        return None
    return NamedJson(mark, befores[0].strip())


def _common_end(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    length = 0
    while all(len(text) > length for text in texts) and len({text[-1 - length] for text in texts}) == 1:
        length += 1
    return texts[0][len(texts[0]) - length :]
