"""Many texts -> ids at once, and how many bytes of its text each id stands for.

In byte-level BPE every id stands for a fixed string of bytes, so the running sum of their lengths says where in the
text each token begins: no offsets are needed. `learn_byte_tokens` shows from the tokenizer's own description that
it is one of these, and takes fastokens (an optional dependency) for the encoding where that makes the same ids as
tokenizers on a set of strings made to be hard.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from halo_forge.chat.tokens import TextEncoder
from halo_forge.runs import sha256_bytes

EncodeFlat = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
"""texts -> (ids int32 [N], starts int64 [number of texts + 1])"""

_NUM_TRIALS = 2500
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_IDEOGRAPHS = 0x20000  # no numeral of Unicode stands from here on
# fmt: off
_HARD_PIECES = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1f",
    "\x7f", "'s", "'LL", "'t ", "don't", "I'VE", "’s", "...", "?!", "--", "==>", "<|", "|>", "</", "\\n",
    "\\\\", "\"", "{}", "[]", "0", "7", "42", "1234567890", " 3.14", "1,000,000", "½", "٣", "Ⅷ", "²", "$5",
    "5%", "0x1F", "४", "naïve", "e\u0301", "Å", "Å", "Straße", "İstanbul", "Привет", "Σς", "שלום", "مرحبا",
    "नमस\u094dते", "你好", "こんにちは", "안녕", "한", "สวัสดี", "👩\u200d👩\u200d👧", "🇩🇪", "❤️", "\U00020000", "\ue000",
    "def f(x):\n    return x**2\n", "SELECT * FROM t;", "https://a.b/c?d=e#f", "CamelCaseWord", "snake_case",
    "A" * 40, "-" * 30,
)
# fmt: on


@dataclass(frozen=True, slots=True)
class ByteTokens:
    """byte_lengths   int32 [number of ids]; 0 for an id that no text has
    is_structural  bool [number of ids]
    encode_fast    quick; texts with a character of `needs_plain` it may encode in another way
    """

    byte_lengths: np.ndarray
    is_structural: np.ndarray
    engine: Literal["fastokens", "tokenizers"]
    normalises: bool
    encode_fast: EncodeFlat
    encode_plain: EncodeFlat
    needs_plain: frozenset[str]

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [N], starts int64 [len(texts) + 1]). Every text is valid Unicode."""
        odd = [index for index, text in enumerate(texts) if not text.isascii() and self._is_odd(text)]
        if not odd:
            return self.encode_fast(texts)
        plain, plain_starts = self.encode_plain([texts[index] for index in odd])
        blanked = list(texts)
        for index in odd:
            blanked[index] = ""
        ids, starts = self.encode_fast(blanked)
        parts, done = [], 0
        for number, index in enumerate(odd):
            parts += [ids[done : starts[index]], plain[plain_starts[number] : plain_starts[number + 1]]]
            done = int(starts[index])
        lengths = np.diff(starts)
        lengths[odd] = np.diff(plain_starts)
        return np.concatenate([*parts, ids[done:]]), np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))

    def _is_odd(self, text: str) -> bool:
        return bool(self.needs_plain) and not self.needs_plain.isdisjoint("".join(_BEYOND_ASCII.findall(text)))

    def is_normal(self, text: str) -> bool:
        """Whether the tokenizer's normaliser leaves a text as it is."""
        return not self.normalises or text.isascii() or unicodedata.is_normalized("NFC", text)


_MAX_KNOWN = 4
_known: dict[str, ByteTokens | str] = {}


def learn_byte_tokens(encoder: TextEncoder) -> ByteTokens | str:
    """What is known of a tokenizer's bytes, or why nothing is. Kept for the last few tokenizers: it takes a second."""
    backend = encoder.backend()
    described = backend.to_str()
    name = sha256_bytes(described.encode("utf-8", "surrogatepass") + repr(sorted(encoder.structural)).encode())
    if name not in _known:
        for oldest in list(_known)[: len(_known) - _MAX_KNOWN + 1]:
            del _known[oldest]
        _known[name] = _learn(encoder, backend, json.loads(described))
    return _known[name]


def _learn(encoder: TextEncoder, backend: Tokenizer, spec: dict[str, Any]) -> ByteTokens | str:
    reason = _not_byte_level(spec)
    if reason is not None:
        return reason
    if encoder.bos_id is not None and encoder.bos_id not in encoder.structural:
        return "its begin-of-text token is not among its special tokens"
    lengths = np.zeros(backend.get_vocab_size(with_added_tokens=True) + 1, dtype=np.int32)
    pieces = {**spec["model"]["vocab"], **{token["content"]: token["id"] for token in spec["added_tokens"]}}
    lengths.resize(max([len(lengths), *(number + 1 for number in pieces.values())]))
    for piece, number in spec["model"]["vocab"].items():
        lengths[number] = len(piece)
    for token in spec["added_tokens"]:
        lengths[token["id"]] = len(token["content"].encode())
    structural = np.zeros(len(lengths), dtype=bool)
    structural[list(encoder.structural)] = True

    def encode_plain(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        ids = np.fromiter((number for row in encoded for number in row), dtype=np.int32, count=int(starts[-1]))
        return ids, starts

    fast = _fastokens(spec, encode_plain, _trials(backend, encoder))
    return ByteTokens(
        byte_lengths=lengths,
        is_structural=structural,
        engine="fastokens" if fast else "tokenizers",
        normalises=spec.get("normalizer") is not None,
        encode_fast=fast[0] if fast else encode_plain,
        encode_plain=encode_plain,
        needs_plain=fast[1] if fast else frozenset(),
    )


def _not_byte_level(spec: dict[str, Any]) -> str | None:
    model, decoder = spec["model"], spec.get("decoder") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        return "it is no byte-level BPE tokenizer"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its pieces carry affixes"
    if decoder.get("type") != "ByteLevel":
        return "its decoder is not byte-level"
    steps = _steps(spec.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if kinds.count("ByteLevel") != 1 or set(kinds) - {"ByteLevel", "Split", "Digits"}:
        return "its pre-tokeniser is not byte-level"
    for step in steps:
        if step.get("add_prefix_space") or step.get("behavior") == "Removed":
            return "its pre-tokeniser adds or removes characters"
    if (spec.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return "its normaliser changes texts"
    added = {token["content"] for token in spec["added_tokens"]}
    if not set().union(*(piece for piece in model["vocab"] if piece not in added)) <= set(
        pre_tokenizers.ByteLevel.alphabet()
    ):
        return "its vocabulary is not spelled in bytes"
    return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _fastokens(
    spec: dict[str, Any], encode_plain: EncodeFlat, trials: list[str]
) -> tuple[EncodeFlat, frozenset[str]] | None:
    """(the quick encoder, characters it is not for), or None where it is not installed or makes other ids."""
    try:
        import fastokens
    except ImportError:
        return None
    quick, needs_plain = _quick_digits(spec)
    try:
        engine = fastokens.Tokenizer.from_json_str(json.dumps(quick))
    except Exception:  # a foreign parser: whatever it cannot read, tokenizers can
        return None

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            ids, starts = engine.encode_batch_flat(texts)
        except ValueError:  # a byte that the vocabulary has no token for; where one text has it, all are refused
            if len(texts) == 1:
                return encode_plain(texts)
            middle = len(texts) // 2
            (ids, starts), (more, ends) = encode(texts[:middle]), encode(texts[middle:])
            return np.concatenate((ids, more)), np.concatenate((starts, ends[1:] + starts[-1]))
        return np.frombuffer(ids, dtype="<u4").astype(np.int32), np.frombuffer(starts, dtype="<u8").astype(np.int64)

    tried = [text for text in trials if needs_plain.isdisjoint(text)]
    try:
        found, wanted = encode(tried), encode_plain(tried)
    except Exception:  # as above
        return None
    equal = all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
    return (encode, needs_plain) if equal else None


def _quick_digits(spec: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """The same tokenizer without the `Digits` step, which fastokens has no quick way for.

    That step makes a piece of every digit. Added tokens are cut out of a text before all else, so digits that
    are added tokens are such pieces too, with the ids they have. Digits beyond ASCII can be several tokens; texts with
    these are not for this tokenizer."""
    steps = _steps(spec.get("pre_tokenizer"))
    vocabulary, digits = spec["model"]["vocab"], "0123456789"
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"] or not steps[0].get("individual_digits"):
        return spec, frozenset()
    if any(digit not in vocabulary for digit in digits) or spec.get("normalizer") is not None:
        return spec, frozenset()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": vocabulary[digit], "content": digit, **flags} for digit in digits]
    quick = {**spec, "pre_tokenizer": steps[1], "added_tokens": [*spec["added_tokens"], *added]}
    return quick, _numerals_beyond_ascii()


@cache
def _numerals_beyond_ascii() -> frozenset[str]:
    # Unassigned characters too: the tokenizer's tables may be of a later Unicode than Python's.
    classes = {"Nd", "Nl", "No", "Cn"}
    return frozenset(
        character for character in map(chr, range(128, _IDEOGRAPHS)) if unicodedata.category(character) in classes
    )


def _trials(backend: Tokenizer, encoder: TextEncoder) -> list[str]:
    """Strings that tokenizers differ on: pieces of the vocabulary, specials and fragments of them, scripts, spaces."""
    chance = random.Random(20)
    to_byte = {character: byte for byte, character in _bytes_to_characters().items()}
    size = backend.get_vocab_size(with_added_tokens=False)
    pieces = list(_HARD_PIECES)
    for number in chance.sample(range(size), min(size, 3000)):
        spelled = bytes(to_byte.get(character, 32) for character in backend.id_to_token(number) or "")
        pieces.append(spelled.decode(errors="ignore"))
    specials = [*encoder.structural.values()]
    pieces += [*specials[:50], *(special[: len(special) // 2] for special in specials[:20])]
    planes = ((32, 0xD800), (0xE000, 0xFFFE), (0x10000, 0x30000))
    pieces += [chr(chance.randrange(*chance.choice(planes))) for _ in range(300)]
    trials = ["".join(chance.choices(pieces, k=chance.randint(1, 9))) for _ in range(_NUM_TRIALS)]
    return [*_HARD_PIECES, *trials]


def _bytes_to_characters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, every other byte from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
