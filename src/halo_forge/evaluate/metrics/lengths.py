"""How much an answer says: over and over again, or more than was asked for."""

from __future__ import annotations

from halo_forge.evaluate.metrics.overlap import plain_words, spaced_words

NGRAM = 4


def repetition(text: str, size: int = NGRAM) -> float:
    """Share of the text's n-grams of words that stood in it before (rep-n of Welleck et al. 2020, one text at a time):
    0 when all differ, near 1 in a loop. Words as they stand between white space, so that a list or JSON with equal
    keys is no loop yet. 0 where there are fewer than `size` words."""
    words = spaced_words(text)
    num = len(words) - size + 1
    if num < 1:
        return 0.0
    return 1 - len({tuple(words[at : at + size]) for at in range(num)}) / num


def conciseness(text: str, reference: str) -> float | None:
    """Words of the reference over words of the answer, at most 1. An answer without words is not concise but missing:
    0. None when the reference has no words."""
    expected, said = num_words(reference), num_words(text)
    if not expected:
        return None
    return min(1.0, expected / said) if said else 0.0


def num_words(text: str) -> int:
    return len(plain_words(text))
