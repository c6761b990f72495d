"""How an answer reads: refusals, boilerplate, placeholders, loops, answers that stop too early or repeat the prompt.

Few false findings matter more here than many findings: each rule asks for a shape that good answers do not have. The
phrases are English, with the usual refusals of nine other languages. Every check is linear in the text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Set

EXCERPT_CHARS = 120

_CANNOT = (
    r"(?:can(?:no|['’])t|can\s+not|unable|not\s+able|won['’]t|(?:do\s+not|don['’]t)\s+have|not\s+(?:allowed|permitted))"
)
_REFUSAL = re.compile(
    rf"""\W{{0,3}}(?:
        (?:i['’]m|i\s+am|we['’]re|we\s+are)\s+(?:\w+\s+){{0,2}}sorry\b[^\n]{{0,160}}?\b(?:{_CANNOT}|beyond\s+my)
      | (?:sorry|apologies|my\s+apologies|unfortunately|i\s+apologi[sz]e)\b[^\n]{{0,120}}?
        \b(?:i|we)(?:['’]m|\s+am|['’]re|\s+are)?\s+(?:\w+\s+)?{_CANNOT}
      | as\s+an?\s+(?:\w+\s+){{0,2}}(?:ai|artificial\s+intelligence|language\s+model|assistant|chatbot)\b[^\n]{{0,120}}?
        \b(?:i|we)(?:['’]m|\s+am)?\s+(?:\w+\s+)?(?:cannot|can['’]t|unable|not\s+able|do\s+not|don['’]t|won['’]t)
      | (?:i|we)(?:['’]m|\s+am|['’]re|\s+are)?\s+(?:\w+\s+)?(?:cannot|can['’]t|can\s+not|won['’]t|will\s+not
          |unable\s+to|not\s+able\s+to|must\s+decline\s+to|decline\s+to|refuse\s+to)\s+(?:\w+\s+){{0,2}}?
        (?:help\s+(?:you|with)|assist|provide|create|generate|fulfil|comply|answer|do\s+that|support|engage|produce
          |share|discuss|participate|complete)
    )""",
    re.I | re.X,
)
REFUSAL_WORDS = frozenset(
    (b"sorry", b"apologies", b"unfortunately", b"apologize", b"apologise", b"cannot", b"can't", b"won't", b"unable",
     b"decline", b"refuse", b"ai", b"chatbot", b"can\xe2\x80\x99t", b"won\xe2\x80\x99t")
)  # fmt: skip
_FOREIGN_REFUSAL = (
    *("Es tut mir leid, aber ich k", "Es tut mir leid, ich k", "Leider kann ich", "Als KI"),
    *("Als ein KI", "Je suis désolé, mais je ne", "Je suis désolée, mais je ne", "Désolé, mais je ne"),
    *("Désolé, je ne", "En tant qu'IA", "Lo siento, pero no puedo", "Lo siento, no puedo"),
    *("Como modelo de lenguaje", "Mi dispiace, ma non posso", "Desculpe, mas não posso", "Desculpe, não posso"),
    *("Sinto muito, mas não posso", "К сожалению, я не могу", "Извините, но я не могу", "Het spijt me, maar ik kan"),
    *("抱歉，我无法", "抱歉，我不能", "很抱歉，我无法", "很抱歉，我不能"),
    *("对不起，我无法", "对不起，我不能"),
    *("申し訳ありませんが", "申し訳ございませんが", "죄송하지만"),
    *("죄송합니다",),
)
_CHINESE_REFUSAL = re.compile("作为一?[个名]?(?:AI|人工智能)[^。\n]{0,20}?我?(?:无法|不能|没有能力)")
_BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)? (?:model|assistant)\b|\bas a (?:large )?language model\b"
    r"|\bi(?:'m| am) chatgpt\b|\btrained by openai\b|\bmy (?:knowledge|training data) cut-?off\b|\bwe use cookies\b"
    r"|(?:^|\n)[ \t]{0,8}(?:regenerate response|stop generating|copy code|accept (?:all )?cookies"
    r"|all rights reserved\.?|skip to (?:main )?content|share this (?:article|post|page)|subscribe to our newsletter)"
    r"[ \t]{0,8}(?:\n|$)",
    re.I,
)
BOILERPLATE_WORDS = frozenset(
    (b"ai", b"language", b"chatgpt", b"openai", b"cutoff", b"cut", b"cookies", b"regenerate", b"generating", b"copy",
     b"reserved", b"skip", b"newsletter", b"artificial", b"article", b"post", b"page")
)  # fmt: skip
_PLACEHOLDER = re.compile(
    r"(?i:lorem ipsum|\b(?:your|insert|type|enter|write) (?:your |the )?(?:answer|response|text) (?:goes )?here\b"
    r"|\[(?:insert|enter|your|placeholder|add your|company name|name of)\b[^\[\]\n]{0,60}\]"
    r"|<(?:insert|your|placeholder)\b[^<>\n]{0,60}>)|\b(?:TODO|TBD|FIXME)\b"
)
PLACEHOLDER_WORDS = frozenset(
    (b"lorem", b"insert", b"placeholder", b"todo", b"tbd", b"fixme", b"your", b"enter", b"type", b"name", b"write")
)
TRIGGER_WORDS = REFUSAL_WORDS | BOILERPLATE_WORDS | PLACEHOLDER_WORDS
"""A phrase of this module can only stand in a text that has one of these words (lower case, UTF-8)."""
_WHOLE_PLACEHOLDER = re.compile(
    r"\W{0,3}(?:TODO|TBD|FIXME|(?i:lorem ipsum\b.*"
    r"|\[?(?:insert |type |write |enter )?(?:your |the )?answer (?:goes )?here\]?))\W{0,3}",
    re.S,
)
_NOTHING = frozenset(("n/a", "null", "nan", "none", "undefined", "[object object]", "no answer"))
_NO_WORDS = ".,;:?!…-–—_~*# \t\r\n。！？、"
_DANGLING = re.compile(
    r"\b(?:and|the|of|a|an|with|or|because|which|whose|their|its|your|my|und|der|die|das|mit|weil|et|les|avec|pour|y|el|los|que"
    r"|con|para)$"
)
_EMPTY_ITEM = re.compile(r"\n[ \t]{0,8}(?:\d{1,3}[.)]|[-*•])$")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]?(?=\s)")
_CHAR_RUN = re.compile(r"([^\s\-=_*#.~+|/\\0])\1{47}")
_SAMPLED_RUN = re.compile(rb"([^ \t\r\n])\1\1", re.S)
_LONG_RUN = re.compile(r"([^\s])\1{199}")


def excerpt(text: str, start: int = 0, end: int | None = None) -> str:
    """At most EXCERPT_CHARS characters around text[start:end]."""
    end = min(len(text), start + EXCERPT_CHARS) if end is None else min(end, start + EXCERPT_CHARS)
    margin = min(30, max(0, EXCERPT_CHARS - (end - start)) // 2)
    return text[max(0, start - margin) : end + margin]


def phrase_findings(answer: str, words: Set[bytes]) -> Iterator[tuple[str, str]]:
    """(code, excerpt) for refusal, boilerplate, placeholder_answer and placeholder_text. `words` are the lower-case
    UTF-8 words of the answer."""
    if not words.isdisjoint(REFUSAL_WORDS) and (refusal := _REFUSAL.match(answer)):
        yield "refusal", excerpt(answer, 0, refusal.end())
    if not words.isdisjoint(BOILERPLATE_WORDS) and (chrome := _BOILERPLATE.search(answer)):
        yield "boilerplate", excerpt(answer, *chrome.span())
    if not words.isdisjoint(PLACEHOLDER_WORDS):
        if _WHOLE_PLACEHOLDER.fullmatch(answer):
            yield "placeholder_answer", excerpt(answer)
        elif placeholder := _PLACEHOLDER.search(answer):
            yield "placeholder_text", excerpt(answer, *placeholder.span())


def short_finding(answer: str) -> str | None:
    """The code of what the beginning, or a very short answer, shows: refusal, placeholder_text or low_information.
    An operator, a digit or an emoji can be a whole answer; marks of punctuation are not."""
    if answer.startswith(_FOREIGN_REFUSAL) or (answer.startswith("作为") and _CHINESE_REFUSAL.match(answer)):
        return "refusal"
    if len(answer) > 20:
        return None
    plain = answer.strip().lower().rstrip(".") or answer.strip()
    if plain in _NOTHING:
        return "placeholder_text"
    return "low_information" if plain and not plain.strip(_NO_WORDS) else None


def truncation(answer: str) -> str | None:
    """The end of an answer that stops in the middle: of JSON, of a list, after a comma, colon or joining word, or of a
    sentence where every other sentence is ended. None for anything that may be meant."""
    text = answer.rstrip()
    last = text[-1:]
    if text[:1] in ("{", "[") and last not in "}]" and len(text) >= 20 and _is_cut_json(text):
        return text[-60:]
    if len(text) < 80:
        return None
    if last in ".)-*•" and _EMPTY_ITEM.search(text[-16:]):
        return text[-60:]
    if last in '.!?。！？…"”’»)}]`>|;' or last.isdigit():
        return None
    final_line = text[text.rfind("\n") + 1 :]
    num_words = len(final_line[-300:].split())
    if last == "," and num_words >= 4:
        return text[-60:]
    if last == ":" and num_words >= 3:
        return text[-60:]
    if not last.isalpha():
        return None
    is_prose = num_words >= 6 and not final_line.lstrip().startswith(("-", "*", "•", "#", ">", "|", "    ", "\t"))
    if is_prose and last.islower() and not text[-40:].split()[-1].startswith(("#", "@", "http")):
        if _DANGLING.search(text[-20:]):
            return text[-60:]
        before = text[: max(text.rfind("\n"), 0)] + " " + final_line[:-1]
        is_name = text[-40:].split()[-1][0].isupper()
        if (
            len(final_line) >= 80
            and not is_name
            and len(_SENTENCE_END.findall(before)) >= 4
            and _SENTENCE_END.search(final_line)
        ):
            return text[-60:]
    return None


def _is_cut_json(text: str) -> bool:
    """Whether a value begins like JSON and ends before its last bracket."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - 1 or error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False


def needs_repetition_check(answer: str, raw: bytes, num_words: int, num_different: int) -> bool:
    """A quick look: few different words, hardly any spaces in a long text, or one character several times
    in a row."""
    if num_words >= 24 and num_different * 3 < num_words:
        return True
    if len(answer) >= 200 and num_words * 20 < len(answer):
        return True
    # A run of 48 covers three bytes that are sixteen apart: looking at every sixteenth byte is enough to see it.
    return _SAMPLED_RUN.search(raw[::16]) is not None


def repetition(answer: str) -> str | None:
    """What an answer repeats in a loop: one character, one line, or a group of words; None for none."""
    run = _CHAR_RUN.search(answer) or _LONG_RUN.search(answer)
    if run:
        return excerpt(answer, run.start())
    lines = [line.strip() for line in answer.split("\n")]
    long_lines = Counter(line for line in lines if len(line) >= 20)
    if long_lines:
        line, count = long_lines.most_common(1)[0]
        if count >= 5 and count * 2 >= sum(1 for line in lines if line):
            return line[:EXCERPT_CHARS]
    units = answer.split()
    joint = " "
    if len(answer) >= 200 and len(units) * 20 < len(answer):  # a script without spaces
        units, joint = list(answer), ""
    return _loop(units, joint)


def _loop(units: list[str], joint: str) -> str | None:
    """A group of up to 60 units that stands at least four times in a row (30 units or more) at the end, or groups of
    eight of which more than half are repeats."""
    for period in range(1, min(60, len(units) // 4) + 1):
        times = 1
        while units[-period * (times + 1) : -period * times] == units[-period:]:
            times += 1
        if times >= 4 and period * times >= 30:
            return joint.join(units[-2 * period :])[:EXCERPT_CHARS]
    size = 8 if joint else 16
    if len(units) >= 6 * size:
        groups = Counter(zip(*(units[at:] for at in range(size)), strict=False))
        group, count = groups.most_common(1)[0]
        if count >= 4 and len(groups) * 2 < groups.total():
            return joint.join(group)[:EXCERPT_CHARS]
    return None


def echo(answer: str, prompt: str) -> str | None:
    """The shared text where the answer begins with the whole prompt, or the prompt already holds the whole answer."""
    plain = answer.strip()
    if len(answer) >= len(prompt) >= 20:
        return prompt[:EXCERPT_CHARS] if answer.startswith(prompt.strip()) else None
    is_held = (len(plain) >= 40 and plain in prompt) or (len(plain) >= 8 and prompt.rstrip().endswith(plain))
    return plain[:EXCERPT_CHARS] if is_held else None
