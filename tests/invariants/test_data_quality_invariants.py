"""What holds for every text: a look never fails, `keep` never changes a row, a mend is done once and for all."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from halo_forge.chat.records import Conversation, Message, Role, SourceRef, TextPart, ToolCall
from halo_forge.config.schema import RowAction
from halo_forge.data.rules.quality import Inspector
from halo_forge.data.rules.quality_rules import RULES
from halo_forge.texts.privacy import DETECTORS, find_private, hints, redact

FIX: dict[str, RowAction] = {rule.code: "fix" if "fix" in rule.allowed else "keep" for rule in RULES}
KEEP: dict[str, RowAction] = {rule.code: "keep" for rule in RULES}
SKIP: dict[str, RowAction] = {rule.code: "skip" for rule in RULES}
FIXER, KEEPER, SKIPPER = Inspector(FIX, ["en"]), Inspector(KEEP, None), Inspector(SKIP, ["de"])

PIECES = (
    "```", "```py\n", "\n", " ", "**", "[a](", "</p>", "<br>", "&amp;", "\x00", "\x1b[0m", "\u202e", "e\u0301", "Ã©",
    "Ã", "â€™", "ÃƒÂ©", "Ð¿Ñ€Ð¸", "\ud800", "\udfff", "🙂", "jane.doe@mail.org", "@", "+1 415-223-2671", "415", "-",
    ".", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "84.17.52.109", "2001:db8:85a3::8a2e:370:7334",
    ":", "123-45-6789", "sk-", "aB3dE5gH7jK9mN1pQ3sT5vW7xY9zA1cD3e", "api_key = ", "Bearer ", "://u:", "-----BEGIN ",
    "PRIVATE KEY-----", "-----END ", "phone ", "I'm sorry, but I can't", "As an AI language model", "TODO", "[insert",
    "N/A", "{", "}", '"', ",", "3.", "idiot", "the", "la la la la", "x" * 60, "抱歉，我无法", "\x85", "\u2028",
    "\xa0", "[EMAIL]",
)  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(st.characters(), max_size=80),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=10).map(" ".join),
)
roles: st.SearchStrategy[Role] = st.sampled_from(["system", "user", "assistant", "tool", "document"])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = []
    for role in draw(st.lists(roles, max_size=4)):
        parts: list[TextPart | ToolCall] = [TextPart(text=text) for text in draw(st.lists(texts, max_size=2))]
        if role == "assistant" and draw(st.booleans()):
            value = draw(st.recursive(texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3))
            parts.append(ToolCall(name="f", arguments={"value": value}))
        reasoning = draw(texts) if role == "assistant" and draw(st.booleans()) else None
        messages.append(Message(role=role, parts=tuple(parts), reasoning=reasoning))
    return Conversation(id="0" * 64, messages=tuple(messages), source=SourceRef(path="a", line=1))


def _said(text: str) -> Conversation:
    messages = (
        Message(role="user", parts=(TextPart(text="Q?"),)),
        Message(role="assistant", parts=(TextPart(text=text),)),
    )
    return Conversation(id="0" * 64, messages=messages, source=SourceRef(path="a", line=1))


@settings(max_examples=400, deadline=None)
@given(conversations())
@example(_said("\ud83d"))
@example(_said("jane\x00.doe@mail.org"))
@example(_said("cafÃƒÂ© e\u0301"))
def test_a_mend_is_done_once_and_for_all(conversation: Conversation) -> None:
    first = FIXER.inspect(conversation)
    again = FIXER.inspect(first.conversation)
    assert again.conversation == first.conversation
    assert again.fixes == ()
    assert again.changed is False
    assert first.changed == (first.conversation != conversation)
    assert bool(first.fixes) == first.changed


@settings(max_examples=300, deadline=None)
@given(conversations())
def test_keep_and_skip_never_change_a_row(conversation: Conversation) -> None:
    for inspector in (KEEPER, SKIPPER):
        inspection = inspector.inspect(conversation)
        assert inspection.conversation is conversation
        assert (inspection.changed, inspection.fixes) == (False, ())
    assert KEEPER.inspect(conversation).problem_code is None
    assert set(KEEPER.inspect(conversation).flags) == set(KEEPER.inspect(conversation).found)
    skipped = SKIPPER.inspect(conversation)
    assert (skipped.problem_code is None) == (not skipped.found)


@settings(max_examples=300, deadline=None)
@given(conversations())
def test_every_finding_has_a_place_and_no_private_value(conversation: Conversation) -> None:
    inspection = KEEPER.inspect(conversation)
    for code, where in inspection.found.items():
        assert code in FIX
        assert find_private(where) == []
        assert len(where) <= 260


@settings(max_examples=500, deadline=None)
@given(texts)
@example("jane.doe@mail.org+1 415-223-2671-----BEGIN ")
def test_redaction_leaves_nothing_to_find_and_touches_nothing_else(text: str) -> None:
    spans = find_private(text)
    assert all(left.end <= right.start for left, right in pairwise(spans))
    redacted = redact(text)
    assert find_private(redacted) == []
    if not spans:
        assert redacted == text
    bits = hints(text, text.encode("utf-8", "surrogatepass"))
    for hint, detect in DETECTORS:
        assert bits & hint or not list(detect(text)), detect.__name__


HOSTILE = {
    "one word": "word " * 200_000,
    "one letter": "a" * 1_000_000,
    "one line": "the same line again and again\n" * 33_000,
    "no spaces": "的" * 400_000,
    "different words": " ".join(map(str, range(150_000))),
    "insults": "idiot " * 160_000,
    "sorry": "I am sorry " * 90_000,
    "brackets": "[insert " * 120_000,
    "open JSON": '{"a":' * 200_000,
    "cut JSON": "[" + "1, " * 330_000,
    "code marks": "```\n`" * 200_000,
    "white space": " \n" * 500_000,
    "half characters": "\ud800" * 500_000,
    "list items": "\n1." * 330_000,
    "sentences": "It is so. " * 100_000 + "and then it",
    "non-breaking": "\xa0" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_takes_seconds(name: str) -> None:
    started = time.process_time()
    KEEPER.inspect(_said(HOSTILE[name]))
    assert time.process_time() - started < 6.0  # 1 to 2 s on an idle core
