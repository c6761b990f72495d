"""Whether an answer repeats itself, and the version of the rules that a release and the monitor count answers by.

A monitor compares rates with rates, so a rule that misses one refusal in five still sees the rate double; what it must
not do is change its mind between the release and production.
"""

from __future__ import annotations

import re

RULES_VERSION = 2
"""Stored beside the rates; raised when `is_repetitive` or `texts.refusal` changes what it says: rates by other rules
are not compared."""
SEEN_CHARS = 4000
"""Of a longer answer only so much is looked at for repetition."""
MIN_WORDS = 24
GRAM_WORDS = 4
MAX_DISTINCT_SHARE = 0.5


def is_repetitive(answer: str) -> bool:
    """At least MIN_WORDS words, and of their groups of four at most half are different; or one character 48 times."""
    text = answer[:SEEN_CHARS]
    words = text.split()
    if len(words) >= MIN_WORDS:
        grams = list(zip(*(words[start:] for start in range(GRAM_WORDS)), strict=False))
        return len(set(grams)) <= MAX_DISTINCT_SHARE * len(grams)
    return _CHARACTER_RUN.search(text) is not None


_CHARACTER_RUN = re.compile(r"([^\s\-=_*#.~+|/\\])\1{47}")
