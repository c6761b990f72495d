"""Text -> token ids with the places they came from, where only the template may write special tokens.

The plain encoding is transformers' own. Where content holds the text of a special token, the rendering is encoded by a
twin of the tokenizer in which every special token is spelled with characters that occur nowhere in the row: the
template's specials are respelled and keep their ids, the content's fall apart into ordinary tokens.
"""

from __future__ import annotations

import copy
import json
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from halo_forge.chat.origin import Origin
from halo_forge.errors import DataError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unicode guarantees that these are never assigned; one that occurs in no text of the row spells the specials.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


@dataclass(frozen=True, slots=True)
class Special:
    """One special token as it was found in a text; `end` is exclusive."""

    token_id: int
    text: str
    start: int
    end: int


class TokenizedText:
    """ids of one text, and which token stands at a character.

    ids  int32 [num_tokens]
    """

    def __init__(
        self, text: str, encoding: Encoding, specials: list[Special], spelled: str, edits: list[tuple[int, int]]
    ) -> None:
        """`spelled` is the text as it was encoded; `edits` are (place in the text, how much farther right that place
        is in `spelled`), in order."""
        self.text, self.specials = text, specials
        self.ids = np.array(encoding.ids, dtype=np.int32)
        self._encoding, self._spelled = encoding, spelled
        self._edit_places = [place for place, _ in edits]
        self._edit_shifts = [shift for _, shift in edits]

    def __len__(self) -> int:
        return len(self.ids)

    def first_token(self, start: int) -> tuple[int, bool]:
        """(the first token that belongs to the text from `start` on, whether a token stands across that place).

        A token across the border belongs to what follows only if it takes nothing but white space from before."""
        start = self._spelled_place(start)
        token = self._token_from(start)
        if token is None:
            return len(self), False
        begin, end = _characters(self._encoding, token)
        if token:
            # Some tokenizers leave a token's leading space out of its offsets: then the token before ends too early.
            begin = min(begin, _characters(self._encoding, token - 1)[1])
        if begin >= start:
            return token, False
        if not self._spelled[begin:start].strip() and self._spelled[start:end].strip():
            return token, True
        while token < len(self) and _characters(self._encoding, token)[0] < start:
            token += 1
        return token, True

    def last_token(self, end: int) -> int:
        """The last token with a character before `end`."""
        end = self._spelled_place(end)
        following = self._token_from(end)
        if following is None:
            return len(self) - 1
        return following if _characters(self._encoding, following)[0] < end else following - 1

    def _token_from(self, start: int) -> int | None:
        """The first token at or after a place of the encoded text."""
        for place in range(start, len(self._spelled)):
            token = self._encoding.char_to_token(place)
            if token is not None:
                return token
        return None

    def _spelled_place(self, place: int) -> int:
        found = bisect_right(self._edit_places, place)
        return place + (self._edit_shifts[found - 1] if found else 0)


class TextEncoder:
    """Encodes renderings with one tokenizer; keeps what is costly to find out about it.

    Structural tokens are all special tokens and those added tokens that the chat template itself writes.
    Raises DataError for a tokenizer without a fast (Rust) implementation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_text: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{type(tokenizer).__name__} cannot tell which characters a token stands for",
                where=getattr(tokenizer, "name_or_path", None) or None,
                expected="a fast tokenizer (tokenizer.json)",
                fix="convert it: AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)",
            )
        self.tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._quiet_copy: Tokenizer | None = None
        self.structural: dict[int, str] = {
            token_id: token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special or _looks_structural(token.content, template_text)
        }
        self._is_structural = np.zeros(max(self.structural, default=0) + 2, dtype=bool)
        self._is_structural[list(self.structural)] = True
        self._twins: dict[str, Tokenizer] = {}

    def specials_in(self, text: str) -> list[Special]:
        """Structural tokens in a text that is all template."""
        return self._find_specials(text, self._encode(text))

    def ids_of(self, specials: list[str]) -> list[int]:
        ids = {content: token_id for token_id, content in self.structural.items()}
        return [ids[special] for special in specials]

    def encode(self, text: str, origin: Origin | None) -> tuple[TokenizedText, bool]:
        """(tokens, whether special tokens in content had to be made text). Without an origin all is template.

        Raises RowError `invalid_unicode` for a text that is no valid Unicode."""
        encoding = self._encode(text)
        specials = self._find_specials(text, encoding)
        if origin is None:
            return TokenizedText(text, encoding, specials, text, []), False
        written = [special for special in specials if not origin.is_content(special.start, special.end)]
        if len(written) == len(specials):
            return TokenizedText(text, encoding, specials, text, []), False
        return self._encode_respelled(text, written), True

    def encode_as_text(self, text: str) -> tuple[TokenizedText, bool]:
        """Like `encode` for a text that is content from end to end (a document)."""
        encoding = self._encode(text)
        if not self._find_specials(text, encoding):
            return TokenizedText(text, encoding, [], text, []), False
        return self._encode_respelled(text, []), True

    def backend(self) -> Tokenizer:
        """The Rust tokenizer. A call with padding or truncation leaves it switched on there; then a copy is used."""
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        if backend.truncation is None and backend.padding is None and not backend.encode_special_tokens:
            return backend
        if self._quiet_copy is None:
            self._quiet_copy = copy.deepcopy(backend)
            self._quiet_copy.no_truncation()
            self._quiet_copy.no_padding()
            self._quiet_copy.encode_special_tokens = False
        return self._quiet_copy

    def _encode(self, text: str) -> Encoding:
        try:
            return self.backend().encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise RowError("invalid_unicode", "the row holds half of a surrogate pair, which is no character") from None

    def _find_specials(self, text: str, encoding: Encoding) -> list[Special]:
        ids = np.array(encoding.ids, dtype=np.int64)
        found = []
        for place in np.flatnonzero(self._is_structural[np.minimum(ids, len(self._is_structural) - 1)]).tolist():
            token_id = int(ids[place])
            start, end = _characters(encoding, place)
            content = self.structural[token_id]
            # Tokens may swallow the white space around them; an unknown-token id may stand for any text.
            start = text.find(content, start, end)
            if start >= 0:
                found.append(Special(token_id, content, start, start + len(content)))
        return found

    def _encode_respelled(self, text: str, written: list[Special]) -> TokenizedText:
        free = next((mark for mark in _NONCHARACTERS if mark not in text), None)
        if free is None:
            raise RowError("special_tokens_unsplittable", "the row holds every Unicode noncharacter")
        if free not in self._twins:
            self._twins[free] = _respelled_twin(self.backend(), self.structural, free)
        pieces: list[str] = []
        edits: list[tuple[int, int]] = []
        cursor = shift = 0
        for special in written:
            spelling = _spelling(free, special.token_id)
            pieces += [text[cursor : special.start], spelling]
            shift += len(spelling) - (special.end - special.start)
            edits.append((special.end, shift))
            cursor = special.end
        pieces.append(text[cursor:])
        respelled = "".join(pieces)
        encoding = self._twins[free].encode(respelled, add_special_tokens=False)
        kept = [
            token_id
            for place, token_id in enumerate(encoding.ids)
            if token_id in self.structural
            and _spelling(free, token_id) in respelled[slice(*_characters(encoding, place))]
        ]
        if kept != [special.token_id for special in written]:
            raise RowError("special_tokens_unsplittable", "the tokenizer makes a special token out of ordinary text")
        return TokenizedText(text, encoding, written, respelled, edits)


def _characters(encoding: Encoding, token: int) -> tuple[int, int]:
    return encoding.token_to_chars(token) or (0, 0)


def _looks_structural(content: str, template_text: str) -> bool:
    return not content.isspace() and not content.isalnum() and content in template_text


def _spelling(mark: str, token_id: int) -> str:
    return f"{mark}{token_id}{mark}"


def _respelled_twin(backend: Tokenizer, structural: dict[int, str], mark: str) -> Tokenizer:
    """The same tokenizer with other spellings for the structural tokens, so that no ordinary text makes one.

    They are respelled in the model's vocabulary too: they keep their ids, and no merge or piece leads to them."""
    spec = json.loads(backend.to_str())
    respelled = {content: _spelling(mark, token_id) for token_id, content in structural.items()}
    for token in spec["added_tokens"]:
        if token["id"] in structural:
            token["content"] = respelled[token["content"]]
            token["normalized"] = False
    model = spec["model"]
    model["vocab"] = _respelled_vocabulary(model["vocab"], respelled)
    if isinstance(model["vocab"], dict):
        # Added tokens outside the vocabulary are numbered anew on loading; inside it they keep their ids.
        model["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    if model.get("unk_token") in respelled:
        model["unk_token"] = respelled[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, respelled)]
    twin = Tokenizer.from_str(json.dumps(spec))
    if any(twin.token_to_id(token["content"]) != token["id"] for token in spec["added_tokens"]):
        raise DataError("the special tokens of this tokenizer cannot be told from text", fix="report the tokenizer")
    return twin


def _respelled_vocabulary(vocabulary: Any, respelled: dict[str, str]) -> Any:
    if isinstance(vocabulary, dict):
        return {respelled.get(piece, piece): number for piece, number in vocabulary.items()}
    return [[respelled.get(piece, piece), score] for piece, score in vocabulary]


def _makes(merge: Any, respelled: dict[str, str]) -> bool:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left in respelled or right in respelled or left + right in respelled
