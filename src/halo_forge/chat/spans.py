"""Where the trained characters of a rendering are: two derivations that share no reasoning, and must agree.

By growth   the conversation is rendered turn by turn, as a server would: an answer begins where the generation prompt
            of the conversation so far ends, and goes through the token that stops it. Where a template rewrites
            earlier turns once the conversation goes on, the turn's heading is looked up in the final rendering.
By origin   the characters that come from an answer are known one by one (origin.py); the answer begins at the heading
            before the first of them and goes through the first stop token after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halo_forge.chat.origin import Origin
from halo_forge.chat.template import Lead, Stop, TemplateFacts
from halo_forge.errors import RowError

_QUOTED_CHARS = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant message: what leads to it and what must end it. `stop` is None where the template ends it with
    no token at all; `final_stop` is what ends it while nothing follows."""

    message: int
    lead: Lead
    stop: str | None
    final_stop: str | None
    is_last: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of one assistant turn, its stop token included; `end` is None where no stop token was
    found."""

    message: int
    start: int
    end: int | None


def turns_of(roles: Sequence[str], calls: Sequence[bool], facts: TemplateFacts) -> list[Turn]:
    """The assistant turns of a conversation given by each message's role and whether it calls tools."""
    turns = []
    for index, role in enumerate(roles):
        if role != "assistant":
            continue
        after_tool = index > 0 and roles[index - 1] == "tool" and facts.tools is not None
        lead = facts.tools.lead if after_tool and facts.tools else facts.lead
        stop: Stop = facts.tools.stop if calls[index] and facts.tools else facts.stop
        is_last = index == len(roles) - 1
        turns.append(Turn(index, lead, stop.final if is_last else stop.middle, stop.final, is_last))
    return turns


def agreed_spans(
    rendered: str, origin: Origin, turns: list[Turn], grow: Callable[[int, bool], str | None]
) -> list[Span]:
    """The spans of all turns. `grow(k, prompt)` renders the first k messages, with a generation prompt or not; None
    where the template refuses that. Raises RowError `mask_disagreement` with what differs."""
    by_growth = spans_by_growth(rendered, origin.shifted, turns, grow)
    by_origin = spans_by_origin(rendered, origin, turns)
    for turn, grown, traced in zip(turns, by_growth, by_origin, strict=True):
        if grown != traced or grown is None or traced is None:
            raise RowError(
                "mask_disagreement",
                f"the two derivations of what to train in message {turn.message} differ: rendering turn by turn gives "
                f"{_told(rendered, grown)}, tracing the text gives {_told(rendered, traced)}",
            )
    return [span for span in by_growth if span is not None]


def _told(rendered: str, span: Span | None) -> str:
    if span is None:
        return "no place"
    if span.end is None:
        return f"characters {span.start} to ?"
    text = rendered[span.start : span.end]
    quoted = text if len(text) <= _QUOTED_CHARS else f"{text[:20]}...{text[-20:]}"
    return f"characters {span.start} to {span.end} ({quoted!r})"


def spans_by_growth(
    rendered: str, template_text: str, turns: list[Turn], grow: Callable[[int, bool], str | None]
) -> list[Span | None]:
    """`template_text` is the rendering with content made unreadable; only rewritten turns are looked up in it."""
    spans: list[Span | None] = []
    cursor = 0
    for turn in turns:
        start = _start_by_growth(rendered, template_text, turn, grow, cursor)
        if start is None:
            spans.append(None)
            continue
        whole = rendered if turn.is_last else grow(turn.message + 1, False)
        end = _end_by_growth(rendered, template_text, turn, whole, start)
        spans.append(Span(turn.message, start, end))
        cursor = end or start
    return spans


def _start_by_growth(
    rendered: str, template_text: str, turn: Turn, grow: Callable[[int, bool], str | None], cursor: int
) -> int | None:
    prompt = grow(turn.message, True) if turn.message else None
    if prompt is not None:
        for cut in turn.lead.cuts:
            prefix = prompt[: len(prompt) - cut]
            if len(prefix) >= cursor and rendered.startswith(prefix):
                return len(prefix)
    return _first_heading(template_text, turn.lead, cursor, len(template_text))


def _end_by_growth(rendered: str, template_text: str, turn: Turn, whole: str | None, start: int) -> int | None:
    if turn.stop is None:
        return None
    if whole is not None:
        body = whole.rfind(turn.final_stop, start) if turn.final_stop else len(whole.rstrip())
        if body >= start and rendered.startswith(whole[:body]):
            stop = body
            if not turn.final_stop:  # the next turn's first token is what ends this one
                stop += len(rendered[body:]) - len(rendered[body:].lstrip())
            if rendered.startswith(turn.stop, stop):
                return stop + len(turn.stop)
            if turn.is_last:
                return None
    place = template_text.find(turn.stop, start)
    return place + len(turn.stop) if place >= 0 else None


def spans_by_origin(rendered: str, origin: Origin, turns: list[Turn]) -> list[Span | None]:
    spans: list[Span | None] = []
    cursor = 0
    for turn in turns:
        start = _start_by_origin(origin, turn, cursor)
        if start is None:
            spans.append(None)
            continue
        span = Span(turn.message, start, _end_by_origin(origin, turn, start))
        cursor = start if span.end is None else span.end
        if any(s.message != turn.message and s.start < cursor and s.end > start for s in origin.segments):
            spans.append(None)  # another message's text stands inside the answer
            continue
        spans.append(span)
    return spans


def _start_by_origin(origin: Origin, turn: Turn, cursor: int) -> int | None:
    """The heading after whatever was said before, and before the first visible character of the turn."""
    extent = origin.extent(turn.message)
    if extent is not None:
        said = max([cursor, *(segment.end for segment in origin.segments if segment.end <= extent[0])])
        return _first_heading(origin.shifted, turn.lead, said, extent[0])
    said = max([cursor, *(segment.end for segment in origin.segments if segment.message < turn.message)])
    following = (segment.start for segment in origin.segments if segment.message > turn.message)
    return _first_heading(origin.shifted, turn.lead, said, min(following, default=len(origin.shifted)))


def _end_by_origin(origin: Origin, turn: Turn, start: int) -> int | None:
    if turn.stop is None:
        return None
    extent = origin.extent(turn.message)
    last = extent[1] if extent else start
    limit = min((segment.start for segment in origin.segments if segment.start >= last), default=len(origin.shifted))
    place = origin.shifted.find(turn.stop, last, limit)
    return place + len(turn.stop) if place >= 0 else None


def _first_heading(template_text: str, lead: Lead, start: int, end: int) -> int | None:
    """Where the first heading in [start, end) ends; of several at one place the longest."""
    places = [(template_text.find(anchor, start, end), -len(anchor)) for anchor in lead.anchors]
    found = min((place for place in places if place[0] >= 0), default=None)
    return found[0] - found[1] if found else None
