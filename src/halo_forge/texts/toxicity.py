"""A lexical toxicity score.

It knows English words and no meaning (`lexicons/README.md` says where its weights come from): it finds insults and
slurs, misses polite cruelty, and can be wrong about quotations, names of groups and body parts. It is a reason to look
at a text, never a verdict.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

TOXIC_SCORE = 0.9
"""From this lexical score on a text counts as toxic."""
STRONG_LOGIT = 7.0
"""A word that adds this much by itself is strong. A text without a strong word is not scored: no sum of mild words is
evidence."""
_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """`idf` and `weight` by lower-case word; `strong` are UTF-8 words, for a quick look at a row's words."""

    idf: dict[str, float]
    weight: dict[str, float]
    offset: float
    strong: frozenset[bytes]


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The word weights, read once per process (about 10 ms)."""
    source = resources.files("halo_forge.texts") / "lexicons" / "toxicity.npz"
    with resources.as_file(source) as path, np.load(path, allow_pickle=False) as arrays:
        words = arrays["words"].tobytes().decode().split("\n")
        weights, idf, offset = arrays["weights"].tolist(), arrays["idf"].tolist(), float(arrays["offset"])
    strong = frozenset(word.encode() for word, weight in zip(words, weights, strict=True) if weight >= STRONG_LOGIT)
    return Lexicon(dict(zip(words, idf, strict=True)), dict(zip(words, weights, strict=True)), offset, strong)


def lexical_toxicity(text: str) -> float:
    """Lexical toxicity score of one text, 0 to 1: the sigmoid of a weighted sum over its L2-normed TF-IDF words."""
    table = lexicon()
    counts = Counter(word for word in _WORD.findall(text.lower()) if word in table.idf)
    if not counts:
        return 1 / (1 + math.exp(-table.offset))
    values = {word: count * table.idf[word] for word, count in counts.items()}
    norm = math.sqrt(sum(value * value for value in values.values()))
    logit = table.offset + sum(value * table.weight[word] for word, value in values.items()) / norm
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))
