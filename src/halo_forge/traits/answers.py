"""The form of an answer: JSON, refusal, repetition. Each is a yes or no, linear in the text, and never an opinion.

A monitor compares rates with rates, so a rule that misses one refusal in five still sees the rate double; what it must
not do is change its mind between the release and production. `RULES_VERSION` is stored beside the rates.
"""

from __future__ import annotations

import json
import re

RULES_VERSION = 1
"""Raised when a rule below changes what it says: rates of other rules are not compared."""
SEEN_CHARS = 4000
"""Of a longer answer only so much is looked at for repetition."""
MIN_WORDS = 24
GRAM_WORDS = 4
MAX_DISTINCT_SHARE = 0.5
_CANNOT = r"(?:can(?:no|['’])t|can not|won['’]t|will not|(?:am|['’]m|are|['’]re|is) (?:not (?:able|allowed)|unable) to)"
_REFUSAL = re.compile(
    rf"\W{{0,3}}(?:(?:i['’]m|i am|we['’]re|we are) (?:\w+ ){{0,2}}sorry\b"
    rf"|(?:sorry|unfortunately|apologies|i apologi[sz]e)\b"
    rf"|as an? (?:\w+ ){{0,2}}(?:ai|language model|assistant|chatbot)\b|i must (?:decline|refuse)\b)[^\n]{{0,160}}?"
    rf"\b(?:{_CANNOT}|unable|decline|refuse|against (?:my|our) (?:guidelines|polic))"
    rf"|\W{{0,3}}(?:i|we) ?(?:{_CANNOT}|must (?:decline|refuse)) (?:\w+ ){{0,3}}?(?:help|assist|provide|create|generate"
    r"|fulfil|comply|answer|do that|support|engage|produce|share|discuss|write|give)",
    re.I,
)
_FOREIGN_REFUSALS = (
    *("Es tut mir leid, aber", "Es tut mir leid, ich k", "Leider kann ich", "Je suis désolé, mais", "Désolé, je ne"),
    *("Lo siento, pero no", "Lo siento, no puedo", "Mi dispiace, ma non", "Desculpe, mas não", "Sinto muito, mas não"),
    *("К сожалению, я не могу", "Извините, но я не могу", "Het spijt me, maar", "抱歉，我", "很抱歉，我", "对不起，我"),
    *("申し訳ありませんが", "申し訳ございませんが", "죄송하지만"),
)


def is_json_document(text: str) -> bool:
    """One JSON object or array and nothing around it but white space; NaN and Infinity are not JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def is_refusal(answer: str) -> bool:
    """The answer begins by declining: an apology or a self-description followed by "cannot" in the same line, or "I
    cannot help". English, with the usual openings of ten other languages."""
    head = answer[:400].lstrip()
    return _REFUSAL.match(head) is not None or head.startswith(_FOREIGN_REFUSALS)


def is_repetitive(answer: str) -> bool:
    """At least MIN_WORDS words, and of their groups of four at most half are different; or one character 48 times."""
    text = answer[:SEEN_CHARS]
    words = text.split()
    if len(words) >= MIN_WORDS:
        grams = list(zip(*(words[start:] for start in range(GRAM_WORDS)), strict=False))
        return len(set(grams)) <= MAX_DISTINCT_SHARE * len(grams)
    return _CHARACTER_RUN.search(text) is not None


_CHARACTER_RUN = re.compile(r"([^\s\-=_*#.~+|/\\])\1{47}")
