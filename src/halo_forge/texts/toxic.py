"""Toxic sentences of an answer, by the lexical score that the data rules use too: English words, no meaning."""

from __future__ import annotations

import re

from halo_forge.texts.toxicity import TOXIC_SCORE, lexical_toxicity, lexicon

_SENTENCE = re.compile(r"[^.!?\n]+")
_WORD = re.compile(r"\w\w+")


def toxic_sentence(text: str) -> str | None:
    """The first sentence with a strong word and a score of TOXIC_SCORE or more, or None. Sentence by sentence, because
    one insult in a long polite answer is an insult."""
    strong = lexicon().strong
    for match in _SENTENCE.finditer(text):
        sentence = match[0].strip()
        words = {word.encode("utf-8", "replace") for word in _WORD.findall(sentence.lower())}
        if not strong.isdisjoint(words) and lexical_toxicity(sentence) >= TOXIC_SCORE:
            return sentence
    return None
