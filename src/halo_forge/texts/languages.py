"""In which of a few languages a text seems to be written: by its script and its commonest words.

Enough to tell whether an answer kept to the language that it was asked for; no language model is needed. A text with
too few known words is "unknown", which passes no check.
"""

from __future__ import annotations

import re
from collections import Counter

COMMON_WORDS = {
    "en": "the and of is that are with this to in for it you was on as be from by an have not or at which",
    "de": "der die das und ist nicht ein eine mit von zu den für auf sich dem im auch es als ich sie wird sind",
    "fr": "le la les des est et un une du dans que pour qui pas sur au avec il elle ce sont nous vous plus",
    "es": "el los las del es y un una que en por con para se no lo su como más al son está pero muy",
    "it": "il lo gli di è e un una che in per con non si sono della del dei come più al da anche questo",
    "pt": "o os as do da é e um uma que em por com para não se dos das como mais ao são está foi",
    "nl": "de het een en van is dat niet met op voor te zijn die in aan er ook als worden naar bij uit",
}
MIN_COMMON = 2
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "zh": re.compile("[\u3400-\u9fff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
    "hi": re.compile("[\u0900-\u097f]"),
}
LANGUAGES = frozenset(COMMON_WORDS) | frozenset(_SCRIPTS)
_LISTS = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}


def seeming_language(text: str) -> str:
    """ISO 639-1 code out of LANGUAGES, or "unknown". Scripts first: a third of the letters decides."""
    words = _WORD.findall(text.lower())
    num_letters = sum(map(len, words))
    if not num_letters:
        return "unknown"
    for language, script in _SCRIPTS.items():  # Japanese before Chinese: it has Han characters too
        # Kana hold a Japanese text together; a tenth of it is enough.
        if len(script.findall(text)) >= num_letters * (0.1 if language == "ja" else 0.34):
            return language
    counts = Counter({language: sum(word in known for word in words) for language, known in _LISTS.items()})
    (best, most), (_, second) = counts.most_common(2)
    return best if most >= MIN_COMMON and most > second else "unknown"
