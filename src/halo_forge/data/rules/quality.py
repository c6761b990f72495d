"""One look at one conversation: what the rules of `quality_rules` find in it, and the mends that are asked for.

Almost every row is clean, so the look is in two steps: a handful of byte-level scans that every row pays, and the
checks themselves, each run only where a scan says that it could find something.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

from halo_forge.chat.records import Conversation, Message, TextPart, ToolCall
from halo_forge.config.schema import RowAction
from halo_forge.data.rules import answers as reading
from halo_forge.data.rules import cleaning
from halo_forge.data.rules.calls import call_findings, strings_in
from halo_forge.data.rules.quality_rules import RULES
from halo_forge.texts import privacy, toxicity
from halo_forge.traits import language

MAX_PASSES = 6
"""A mend can uncover something else to mend (text damaged twice); so often is looked again."""
_PRIVATE = frozenset(rule.code for rule in RULES if rule.kind == "privacy")
_ORDER = {rule.code: at for at, rule in enumerate(RULES)}
_NOT_CONTROL = bytes(byte for byte in range(256) if byte >= 0x80 or byte in b"\t\n\r" or 0x20 <= byte < 0x7F)
_FREQUENT_WORDS: Mapping[str, tuple[str, ...]] = {
    "en": (" the ", " of ", " to ", " is ", " and ", " in ", " how "),
    "de": (" der ", " die ", " und ", " ist ", " nicht ", " ein"),
    "fr": (" le ", " les ", " est ", " et ", " une ", " des "),
    "es": (" el ", " los ", " que ", " una ", " es ", " por "),
    "it": (" il ", " che ", " di ", " una ", " per ", " è "),
    "pt": (" o ", " que ", " um", " não ", " para ", " é "),
    "nl": (" het ", " een ", " van ", " niet ", " en "),
}
"""Two of them in a prompt: it surely is in this language, and need not be measured."""
_ABOUT_LANGUAGES = """
translate translated translates translating translation übersetze übersetzen übersetzung traduis traduire traduction
traduce traducir traducción traduza traduzir tradução traduci vertaal english french german spanish italian portuguese
chinese japanese korean russian arabic hindi dutch latin language sprache
"""
_TRANSLATION = frozenset(word.encode() for word in _ABOUT_LANGUAGES.split())
_TRANSLATION_SIGNS = ("翻译", "翻譯", "英文", "英语", "中文", "訳", "번역", "перев", "tradu")
_MENDS: Mapping[str, Callable[[str], str]] = {
    "mojibake": cleaning.without_mojibake,
    "control_characters": cleaning.without_control_characters,
    "not_nfc": cleaning.normalised,
}
"""In the order in which they are applied: what a later one would spoil for an earlier one comes first."""


class Inspection(NamedTuple):
    """What was found in one conversation and what it became.

    conversation  as given, or mended where a rule's action is fix (its `id` is then stale: see `changed`)
    fixes         codes that were mended        flags  codes that were found and left
    problem_code  the first finding (in table order) whose action is skip, quarantine or fail
    found         code -> where it was seen, at most about 120 characters; personal data and secrets are already
                  replaced by their placeholders, control characters are not
    language      ISO 639-1 code of the answers, "unknown", or None where languages were not measured
    """

    conversation: Conversation
    changed: bool
    fixes: tuple[str, ...]
    flags: tuple[str, ...]
    problem_code: str | None
    found: dict[str, str]
    language: str | None


class Inspector:
    """Holds the actions by code (`reasons.action_table`) and the languages that answers may be in (None: any).

    Small and picklable; word weights and the language model are loaded once per process, at the first look.
    """

    def __init__(self, actions: Mapping[str, RowAction], languages: Sequence[str] | None = None) -> None:
        self.actions = {rule.code: actions.get(rule.code, rule.default) for rule in RULES}
        self.languages = frozenset(languages) if languages else None
        self._measures_language = language.is_available()

    def inspect(self, conversation: Conversation) -> Inspection:
        """Never raises, whatever the text holds. Without `fix` among the actions the conversation comes back as is."""
        found: dict[str, str] = {}
        fixes: list[str] = []
        current = conversation
        for _ in range(MAX_PASSES):
            seen, spoken = self._look(current)
            found = seen | found
            mends = [code for code in seen if self.actions[code] == "fix"]
            if not mends:
                break
            mended, done = _mended(current, mends)
            fixes += done
            if not done:
                break
            current = mended
        if not found:
            return Inspection(conversation, False, (), (), None, found, spoken)
        return self._sorted(conversation, current, fixes, found, seen, spoken)

    def _sorted(
        self, before: Conversation, after: Conversation, fixes: Sequence[str], found: dict[str, str],
        left: Mapping[str, str], spoken: str | None,
    ) -> Inspection:  # fmt: skip
        codes = sorted(found, key=_ORDER.__getitem__)
        mended = tuple(code for code in codes if code in fixes)
        flags = tuple(c for c in codes if c in left and c not in mended and self.actions[c] in ("keep", "fix"))
        problem = next((c for c in codes if c in left and self.actions[c] in ("skip", "quarantine", "fail")), None)
        shown = {code: _safe(found[code]) for code in codes if code in mended or code in left}
        return Inspection(after, after is not before, mended, flags, problem, shown, spoken)

    # ------------------------------------------------------------------------------------------- one look

    def _look(self, conversation: Conversation) -> tuple[dict[str, str], str | None]:
        """Code -> excerpt of everything found as the conversation stands, and the language of its answers."""
        found: dict[str, str] = {}
        prompts, answers, other = _texts(conversation)
        texts = [*prompts, *answers, *other]
        text = "\n".join(texts)
        raw = _utf8(text)
        if privacy.hints(text, raw):
            private = _private_findings(texts)
            if private:
                found.update(private)
                prompts, answers = [*map(privacy.redact, prompts)], [*map(privacy.redact, answers)]
                texts = [*map(privacy.redact, texts)]
                text = "\n".join(texts)
        if raw.translate(None, _NOT_CONTROL) or not text.isascii():
            found.update(_character_findings(text, texts))
        if any(len(piece.strip()) != len(piece) for piece in texts) and (padded := _padding(conversation)):
            found["outer_whitespace"] = padded
        is_document = conversation.messages[0].role == "document" if conversation.messages else False
        spoken = self._look_at_answers(prompts, answers, found, is_document=is_document)
        if other or conversation.tools:
            found.update(call_findings(conversation))
        return found, spoken

    def _look_at_answers(
        self, prompts: list[str], answers: list[str], found: dict[str, str], *, is_document: bool
    ) -> str | None:
        prompt = prompts[-1] if prompts else ""
        watched = _watched_words()
        asked = set(language.byte_words(_utf8("\n".join(prompts))))
        is_toxic = not watched.isdisjoint(asked)
        longest: tuple[str, set[bytes]] = ("", set())
        for answer in answers:
            raw = _utf8(answer)
            words = language.byte_words(raw)
            distinct = set(words)
            if len(answer) >= len(longest[0]):
                longest = answer, distinct
            may_repeat = reading.needs_repetition_check(answer, raw, len(words), len(distinct))
            if may_repeat and (loop := reading.repetition(answer)):
                found.setdefault("repetition", loop)
            is_watched = not watched.isdisjoint(distinct)
            is_toxic |= is_watched
            if not is_document:
                _look_at_answer(answer, prompt, distinct if is_watched else frozenset(), found)
        if is_toxic:
            found.update(_toxic_finding([*prompts, *answers]))
        if not answers:
            return None
        if not is_document:
            if (cut := reading.truncation(answers[-1])) and "unclosed_code_fence" not in found:
                found["truncated_answer"] = cut
            if prompts and (shared := reading.echo(answers[0], prompts[0])):
                found["echoes_prompt"] = shared
        return self._language(prompts, asked, *longest, found) if self._measures_language else None

    def _language(
        self, prompts: list[str], asked_words: Set[bytes], answer: str, words: Set[bytes], found: dict[str, str]
    ) -> str:
        spoken = language.language_of(answer, words)
        if spoken == language.UNKNOWN:
            return spoken
        if self.languages is not None and spoken not in self.languages:
            found["other_language"] = f"{spoken}: {answer[: reading.EXCERPT_CHARS - 4]}"
        if spoken == "en" and len(prompts) == 1 and language.is_english(asked_words):
            return spoken
        prompt = prompts[-1] if prompts else ""
        if prompt and sum(map(prompt.count, _FREQUENT_WORDS.get(spoken, ()))) < 2:
            asked = language.language_of(prompt, min_probability=language.VERY_SURE_PROBABILITY)
            differs = asked not in (language.UNKNOWN, spoken) and not _is_about_languages(prompts)
            if differs and language.language_of(answer, min_probability=language.VERY_SURE_PROBABILITY) == spoken:
                found["language_mismatch"] = f"{asked} -> {spoken}: {answer[: reading.EXCERPT_CHARS - 10]}"
        return spoken


@lru_cache(maxsize=1)
def _watched_words() -> frozenset[bytes]:
    return reading.TRIGGER_WORDS | toxicity.lexicon().strong


def _is_about_languages(prompts: Sequence[str]) -> bool:
    return any(
        not _TRANSLATION.isdisjoint(language.byte_words(_utf8(prompt))) or any(s in prompt for s in _TRANSLATION_SIGNS)
        for prompt in prompts
    )


# ------------------------------------------------------------------------------------------------- findings


def _texts(conversation: Conversation) -> tuple[list[str], list[str], list[str]]:
    """What the user said, what the assistant (or document) said, and everything else that is trained on or seen."""
    prompts: list[str] = []
    answers: list[str] = []
    other: list[str] = []
    for message in conversation.messages:
        role = message.role
        target = prompts if role == "user" else answers if role in ("assistant", "document") else other
        for part in message.parts:
            if type(part) is TextPart:
                target.append(part.text)
            elif type(part) is ToolCall:
                other += strings_in(part.arguments)
        if message.reasoning:
            other.append(message.reasoning)
    return prompts, answers, other


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _padding(conversation: Conversation) -> str | None:
    for message in conversation.messages:
        if _trimmed(message) is not message:
            text = privacy.redact(message.text)
            return repr(text[:40] + text[40:][-40:])
    return None


def _character_findings(text: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    if control := cleaning.CONTROL.search(text):
        yield "control_characters", reading.excerpt(text, *control.span())
    if text.isascii():
        return
    if not unicodedata.is_normalized("NFC", text):
        # Joined texts may compose across their border, so each is asked by itself.
        for piece in texts:
            if not unicodedata.is_normalized("NFC", piece):
                yield (
                    "not_nfc",
                    next(
                        (
                            piece[max(0, at - 30) : at + 30]
                            for at in range(len(piece))
                            if unicodedata.combining(piece[at])
                        ),
                        piece[:60],
                    ),
                )
                break
    for piece in texts:
        if runs := cleaning.mojibake_runs(piece):
            yield "mojibake", reading.excerpt(piece, piece.find(runs[0]), piece.find(runs[0]) + len(runs[0]))
            break


def _private_findings(texts: Sequence[str]) -> dict[str, str]:
    """Code -> the finding's surroundings with every finding in them replaced, so that the excerpt can be shown."""
    found: dict[str, str] = {}
    for text in texts:
        spans = privacy.find_private(text)
        shift = 0
        redacted = privacy.replaced(text, spans)
        for span in spans:
            placeholder = privacy.PLACEHOLDER[span.code]
            start = span.start + shift
            found.setdefault(span.code, reading.excerpt(redacted, start, start + len(placeholder)))
            shift += len(placeholder) - (span.end - span.start)
    return found


def _safe(excerpt: str) -> str:
    """An excerpt in which control characters hide no private value."""
    plain = cleaning.without_control_characters(excerpt)
    redacted = privacy.redact(plain)
    return excerpt if redacted == plain else redacted


def _look_at_answer(answer: str, prompt: str, words: Set[bytes], found: dict[str, str]) -> None:
    """`words` may be empty where none of them is watched for."""
    if words:
        for code, where in reading.phrase_findings(answer, words):
            found.setdefault(code, where)
    if "```" in answer or "~~~" in answer:
        mark = cleaning.open_fence(answer)
        if mark is not None:
            found.setdefault("unclosed_code_fence", reading.excerpt(answer, answer.rfind(mark)))
    if ("**" in answer or "](" in answer) and (broken := cleaning.broken_mark(answer)):
        found.setdefault("broken_markdown", broken)
    if tag := cleaning.html_remains(answer, prompt):
        found.setdefault("html_remains", tag)
    if short := reading.short_finding(answer):
        found.setdefault(short, reading.excerpt(answer))


def _toxic_finding(texts: Sequence[str]) -> dict[str, str]:
    strong = toxicity.lexicon().strong
    scored = [
        (toxicity.lexical_toxicity(text), text)
        for text in texts
        if not strong.isdisjoint(language.byte_words(_utf8(text)))
    ]
    score, text = max(scored, default=(0.0, ""))
    return {"toxic_text": f"{score:.2f}: {text[:100]}"} if score >= toxicity.TOXIC_SCORE else {}


# ---------------------------------------------------------------------------------------------------- mends


def _mended(conversation: Conversation, codes: Sequence[str]) -> tuple[Conversation, list[str]]:
    """The conversation with these findings mended, and the codes whose mend changed something."""
    done: list[str] = []
    for code, mend in _MENDS.items():
        if code in codes:
            conversation = _applied(conversation, code, mend, done)
    if "outer_whitespace" in codes:
        trimmed = tuple(map(_trimmed, conversation.messages))
        if any(after is not before for after, before in zip(trimmed, conversation.messages, strict=True)):
            conversation = replace(conversation, messages=trimmed)
            done.append("outer_whitespace")
    if "unclosed_code_fence" in codes:
        conversation = _applied(conversation, "unclosed_code_fence", cleaning.with_closed_fence, done, role="assistant")
    for code in codes:
        if code in _PRIVATE:
            conversation = _applied(conversation, code, partial(privacy.redact, codes=(code,)), done)
    return conversation, done


def _applied(
    conversation: Conversation, code: str, mend: Callable[[str], str], done: list[str], *, role: str | None = None
) -> Conversation:
    messages = tuple(
        _mended_message(message, mend, everywhere=code in _PRIVATE) if role in (None, message.role) else message
        for message in conversation.messages
    )
    if messages == conversation.messages:
        return conversation
    done.append(code)
    return replace(conversation, messages=messages)


def _trimmed(message: Message) -> Message:
    """The message without white space before its first and after its last text; as it is where there is none, or
    where nothing would be left. White space between two parts is the author's."""
    places = [at for at, part in enumerate(message.parts) if isinstance(part, TextPart)]
    if not places or not message.text.strip():
        return message
    parts = list(message.parts)
    for at, strip in ((places[0], str.lstrip), (places[-1], str.rstrip)):
        part = parts[at]
        if isinstance(part, TextPart) and strip(part.text) and strip(part.text) != part.text:
            parts[at] = replace(part, text=strip(part.text))
    return message if tuple(parts) == message.parts else replace(message, parts=tuple(parts))


def _mended_message(message: Message, mend: Callable[[str], str], *, everywhere: bool) -> Message:
    """`everywhere` reaches the arguments of tool calls too. A mend that would leave nothing is not applied: an empty
    message is another damage than the one found."""

    def kept(text: str) -> str:
        mended = mend(text)
        return mended if mended.strip() else text

    parts = tuple(
        replace(part, text=kept(part.text))
        if isinstance(part, TextPart)
        else replace(part, arguments=_mapped(part.arguments, kept))
        if everywhere and isinstance(part, ToolCall)
        else part
        for part in message.parts
    )
    return replace(message, parts=parts, reasoning=kept(message.reasoning) if message.reasoning else message.reasoning)


def _mapped(value: Any, mend: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {key: _mapped(item, mend) for key, item in value.items()}
    return [_mapped(item, mend) for item in value] if isinstance(value, list) else value
