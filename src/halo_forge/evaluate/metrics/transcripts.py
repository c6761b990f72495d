"""Transcripts against what was said: edits of words and of characters, as jiwer counts them.

A rate is of all texts together: all edits over all words of the references, so that a long text counts for more than a
short one. Here is one text's rate; `units` is what the whole is weighed by (compare.py).

    wer, cer   after Whisper's own normaliser, as transformers has it: case, punctuation, contractions and numbers of
               English (without its table of British spellings, which no package holds), or for other languages case
               and punctuation alone
    wer_raw    words as they are written, split at white space
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from halo_forge.errors import UsageError

Normalising = Literal["english", "basic"]
ERROR_RATES = ("wer", "cer", "wer_raw")


def error_rate(metric: str, text: str, reference: str, normalising: Normalising) -> float | None:
    """Edits that make `reference` of `text`, over the reference's words or characters; above 1 where a text is much
    longer. None where the reference has none."""
    number = units(metric, reference, normalising)
    if not number:
        return None
    said, expected = _prepared(metric, text, normalising), _prepared(metric, reference, normalising)
    count = _jiwer().process_characters if metric == "cer" else _jiwer().process_words
    found = count(expected, said)
    return float((found.substitutions + found.deletions + found.insertions) / number)


def units(metric: str, reference: str, normalising: Normalising) -> int:
    """How many words or characters a reference has."""
    prepared = _prepared(metric, reference, normalising)
    return len(prepared) if metric == "cer" else len(prepared.split())


def _prepared(metric: str, text: str, normalising: Normalising) -> str:
    written = text if metric == "wer_raw" else str(_normaliser(normalising)(text))
    return " ".join(written.split())


@cache
def _normaliser(normalising: Normalising) -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if normalising == "english" else BasicTextNormalizer()


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise UsageError(
            "error rates of transcripts are counted by jiwer, which is not installed",
            fix='pip install "halo-forge[audio]"',
        ) from None
    return jiwer
