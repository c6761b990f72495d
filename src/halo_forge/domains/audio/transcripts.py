"""A row's sound and text as decoder ids: the model's own prefix, the text, the end.

    English-only   <|startoftranscript|> [<|notimestamps|>] text <|endoftext|>
    multilingual   <|startoftranscript|> <|en|> <|transcribe|> [<|notimestamps|>] text <|endoftext|>

The ids are those of the tokenizer's own `tokenizer(text)` after `set_prefix_tokens`. The prefix is told to the model
when it transcribes, so it is not trained; text and end are.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from halo_forge.chat.records import Conversation, MediaPart, Message
from halo_forge.config.audio_section import AudioSection
from halo_forge.errors import DataError, RowError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIME = re.compile(r"<\|(\d{1,2}\.\d{2})\|>")
TIME_STEP_S, LAST_TIME_S = 0.02, 30.0


@dataclass(frozen=True)
class Transcripts:
    """Texts to ids for one tokenizer. max_tokens is the decoder's longest input, prefix and end among it."""

    tokenizer: PreTrainedTokenizerBase
    audio: AudioSection
    max_tokens: int
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "audio": self.audio, "max_tokens": self.max_tokens, "notes": {}}

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        return prefix_ids(self.tokenizer, self.audio)

    @property
    def end(self) -> int:
        return _id(self.tokenizer, "<|endoftext|>")

    def ids_of(self, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """(int32 ids of a whole transcript, notes). Raises RowError."""
        tokens, notes = self._text_ids(text)
        if not len(tokens):
            raise RowError("empty_content", "the transcript is empty")
        ids = np.concatenate([self.prefix, tokens, [self.end]]).astype(np.int32)
        if len(ids) > self.max_tokens:
            raise RowError("too_long", f"{len(ids)} tokens, and the model writes {self.max_tokens} for one sound")
        return ids, notes

    def plain(self, text: str) -> str:
        """A text without its times."""
        return " ".join(TIME.sub(" ", text).split()) if TIME.search(text) else text

    def _text_ids(self, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
        pieces = TIME.split(text)
        has_times = len(pieces) > 1
        if not self.audio.timestamps:
            tokens, neutralised = self._encoded(self.plain(text))
            notes = (("times_removed",) if has_times else ()) + (("special_tokens_neutralised",) if neutralised else ())
            return tokens, notes
        check_times([float(time) for time in pieces[1::2]], pieces)
        first = _id(self.tokenizer, "<|notimestamps|>") + 1
        found, any_neutralised = [], False
        for number, piece in enumerate(pieces):
            if number % 2:
                found.append(np.array([first + round(float(piece) / TIME_STEP_S)]))
            elif piece:
                tokens, neutralised = self._encoded(piece)
                found, any_neutralised = [*found, tokens], any_neutralised or neutralised
        return np.concatenate(found), ("special_tokens_neutralised",) if any_neutralised else ()

    def _encoded(self, text: str) -> tuple[np.ndarray, bool]:
        from halo_forge.chat.known import known_tokenizer

        tokens, neutralised = known_tokenizer(self.tokenizer).encoder.encode_as_text(text)
        return np.asarray(tokens.ids, dtype=np.int64), neutralised


def check_times(times: list[float], pieces: list[str]) -> None:
    """Times of a text: one before and one after each piece of it, none running back, on the grid of the model."""
    if not times:
        raise RowError("audio_times", "audio.timestamps is on, and the text has no <|0.00|>")
    if len(times) % 2 or pieces[0].strip() or any(piece.strip() for piece in pieces[4::4]):
        raise RowError("audio_times", "times stand in pairs, one before and one after each piece of text")
    if any(late < early for early, late in itertools.pairwise(times)) or times[-1] > LAST_TIME_S:
        raise RowError("audio_times", f"times rise from 0.00 to at most {LAST_TIME_S:.2f}")
    if any(abs(time / TIME_STEP_S - round(time / TIME_STEP_S)) > 1e-6 for time in times):
        raise RowError("audio_times", f"times are multiples of {TIME_STEP_S}")


def prefix_ids(tokenizer: PreTrainedTokenizerBase, audio: AudioSection) -> tuple[int, ...]:
    """The ids that the tokenizer itself puts before a transcript. Raises UsageError where the model wants a language
    and none is said, or takes none."""
    multilingual = is_multilingual(tokenizer)
    if not multilingual and (audio.language or "en").lower() not in ("en", "english"):
        raise UsageError(
            f"this model knows English only, not {audio.language!r}", where="audio.language",
            fix="take a multilingual model (whisper-base), or remove audio.language",
        )  # fmt: skip
    if not multilingual and audio.task != "transcribe":
        raise UsageError("an English-only model does not translate", where="audio.task", fix="task: transcribe")
    if multilingual and audio.language is None:
        raise UsageError(
            "a multilingual model is told the language of each sound", where="audio.language", fix="audio.language: en",
        )  # fmt: skip
    told: dict[str, Any] = {"language": audio.language, "task": audio.task} if multilingual else {}
    copied: Any = _fresh(tokenizer)
    try:
        copied.set_prefix_tokens(predict_timestamps=audio.timestamps, **told)
        return tuple(int(number) for number in copied.prefix_tokens)
    except ValueError as error:
        raise UsageError(
            f"the tokenizer knows no language {audio.language!r}", where="audio.language",
            expected=str(error).partition(":")[2].strip()[:200] or "an ISO 639-1 code or an English name",
        ) from None  # fmt: skip


def _fresh(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy, so that whoever else holds the tokenizer keeps its prefix."""
    import copy

    if not hasattr(tokenizer, "set_prefix_tokens"):
        raise DataError("the tokenizer of this speech model has no prefix tokens", expected="a Whisper tokenizer")
    fresh = copy.copy(tokenizer)
    fresh.language = fresh.task = None
    fresh._tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    return fresh


def is_multilingual(tokenizer: PreTrainedTokenizerBase) -> bool:
    """English-only vocabularies begin their special tokens one id earlier."""
    return _id(tokenizer, "<|startoftranscript|>") >= 50258


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise DataError(f"the tokenizer has no {token}", expected="the tokenizer of a Whisper model")
    return found


def sound_and_text(conversation: Conversation) -> tuple[MediaPart, Message]:
    """The one sound of a row and the message that says what is heard. Raises RowError: a speech model hears one sound
    and reads nothing beside it."""
    sounds = [part for message in conversation.messages for part in message.parts if isinstance(part, MediaPart)]
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if any(part.kind != "audio" for part in sounds):
        raise RowError("media_unsupported", "an image, which a speech model cannot see")
    if len(sounds) != 1:
        raise RowError("audio_missing" if not sounds else "audio_several", f"{len(sounds)} sounds; a row has one")
    if len(answers) != 1:
        raise RowError(
            "no_assistant_turn" if not answers else "audio_several", f"{len(answers)} transcripts of one sound"
        )
    if any(isinstance(part, MediaPart) for part in answers[0].parts):
        raise RowError("media_unsupported", "the sound stands in the answer")
    asked = [m for m in conversation.messages if m.role != "assistant" and m.text.strip()]
    if asked:
        raise RowError("audio_instruction", "a speech model reads no instruction beside the sound; leave the text out")
    return sounds[0], answers[0]
