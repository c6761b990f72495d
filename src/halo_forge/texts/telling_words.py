"""The words that tell some texts from others: those that stand in most of the one and in few of the other."""

from __future__ import annotations

import re
from collections import Counter

MAX_WORDS = 2000
SEEN_CHARS = 2000
MIN_EXCESS = 0.1
_WORD = re.compile(r"[^\W\d_]{3,30}")


def count_words(words: Counter[str], text: str) -> None:
    """Each word of a text once; no new words once MAX_WORDS are known."""
    for word in {match[0] for match in _WORD.finditer(text[:SEEN_CHARS].lower())}:
        if word in words or len(words) < MAX_WORDS:
            words[word] += 1


def telling_words(
    words: Counter[str], num_texts: int, all_words: Counter[str], num_all: int, most: int
) -> tuple[str, ...]:
    """At most `most` words, the most telling first. `words`: how many of the `num_texts` texts hold each; `all_words`
    and `num_all`: the same over these and all others."""
    others = max(num_all - num_texts, 1)

    def excess(word: str) -> float:
        count = words[word]
        return count / num_texts - max(all_words[word] - count, 0) / others

    best = sorted(words, key=lambda word: (-excess(word), word))[:most]
    return tuple(word for word in best if excess(word) > MIN_EXCESS)
