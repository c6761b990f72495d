"""What the one training loop asks of a Moonshine model: rows to tokens, sounds to tensors, tensors to logits.

Axes: T tokens of a transcript, U positions that predict, V vocabulary. One document at a time (`packs` is False).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halo_forge.chat.batch_encode import EncodedBatch, encode_one_by_one
from halo_forge.chat.example import Encoded
from halo_forge.chat.records import Conversation, Example, MediaKind, MediaPart, Medium
from halo_forge.config.schema import Config, DataSection
from halo_forge.domains.media import copy_processor
from halo_forge.errors import RowError
from halo_forge.media.sounds import samples_of
from halo_forge.media.store import media_parts, read_medium
from halo_forge.models.generate import Generation, Prompt
from halo_forge.models.inspection import read_json_object

MAX_SECONDS = 64.0
TOKENS_PER_SECOND = 6.5  # what Moonshine's authors allow an answer: more is a loop


def open_moonshine(config: Config, tokenizer: Any, directory: Path) -> Moonshine:
    described = read_json_object(directory / "config.json")
    return Moonshine(
        directory=directory,
        tokenizer=tokenizer,
        start=int(described["decoder_start_token_id"]),
        end=int(described["eos_token_id"]),
        rate=int(read_json_object(directory / "preprocessor_config.json")["sampling_rate"]),
    )


@dataclass(frozen=True)
class TranscriptEncoder:
    encode: Callable[[Conversation], Encoded]

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        return encode_one_by_one(self.encode, conversations)


@dataclass(frozen=True)
class Moonshine:
    """start, end: ids before the first and after the last token of a transcript; rate: samples a second."""

    directory: Path
    tokenizer: Any
    start: int
    end: int
    rate: int

    kind: MediaKind = "audio"
    packs: bool = False
    attention: str = "unpacked"
    reads_text: bool = False

    def encoder(self, data: DataSection, train_on: Any = None) -> TranscriptEncoder:
        return TranscriptEncoder(self._encode)

    def _encode(self, conversation: Conversation) -> Encoded:
        sound, text = sound_and_text(conversation)
        samples_of(read_medium(sound), self.rate, MAX_SECONDS)  # a sound that cannot be read is refused here, by name
        ids = [self.start, *self.tokenizer(text, add_special_tokens=False).input_ids, self.end]
        weights = np.full(len(ids), conversation.weight, dtype=np.float32)
        weights[0] = 0.0
        example = Example(
            input_ids=np.array(ids, dtype=np.int32),
            loss_weights=weights,
            conversation_id=conversation.id,
            media=(heard(sound),),
        )
        return Encoded(example=example, notes=())

    def question(self, conversation: Conversation) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
        sound, text = sound_and_text(conversation)
        return [self.start], text, [self.end], (heard(sound),)

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_values float32 [D, samples] and attention_mask int64 of the same shape: shorter sounds end in zeros
        that the mask leaves out."""
        sounds = [self._samples(medium) for example in examples for medium in example.media]
        values = np.zeros((len(sounds), max(map(len, sounds))), dtype=np.float32)
        mask = np.zeros(values.shape, dtype=np.int64)
        for row, samples in enumerate(sounds):
            values[row, : len(samples)], mask[row, : len(samples)] = samples, 1
        return {"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}

    def _samples(self, medium: Medium) -> np.ndarray:
        return samples_of(read_medium(medium), self.rate, MAX_SECONDS)

    def configure(self, model: torch.nn.Module) -> None:
        """Everything that the method trains is trained."""

    def logits(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """float [U, V] at batch.positions of the one transcript in the batch."""
        moonshine = speech_model(model)
        read = moonshine(
            input_values=batch.media["input_values"].to(moonshine.dtype),  # a frozen base may be bfloat16
            attention_mask=batch.media["attention_mask"], decoder_input_ids=batch.input_ids, use_cache=False,
        )  # fmt: skip
        return read.logits[0, batch.positions]

    def generate(
        self,
        model: torch.nn.Module,
        prompts: Sequence[Prompt],
        *,
        decode: Callable[[list[int]], str],
        max_new_tokens: int,
        batch_size: int,
        on_finished: Callable[[int, Generation], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Generation]:
        """Greedy, one sound after the other: each is as long as it is."""
        answers, moonshine = [], speech_model(model)
        for index, prompt in enumerate(prompts):
            check()
            samples = torch.from_numpy(self._samples(prompt.media[0]))[None]
            budget = min(max_new_tokens, math.ceil(samples.shape[1] / self.rate * TOKENS_PER_SECOND))
            with torch.no_grad():
                said = moonshine.generate(
                    input_values=samples.to(moonshine.device, moonshine.dtype), max_new_tokens=budget, do_sample=False,
                    decoder_input_ids=torch.tensor([prompt.token_ids], device=moonshine.device),
                )[0].tolist()[len(prompt.token_ids) :]  # fmt: skip
            stopped = self.end in said
            ids = said[: said.index(self.end)] if stopped else said
            answers.append(Generation(tuple(ids), decode(ids), stopped))
            if on_finished is not None:
                on_finished(index, answers[-1])
        return answers

    def save(self, directory: Path) -> None:
        """What AutoProcessor needs beside the tokenizer."""
        copy_processor(self.directory, directory)


def speech_model(model: torch.nn.Module) -> Any:
    """The model itself, with the adapters in its layers; peft's wrapper would pass on arguments of text models."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def sound_and_text(conversation: Conversation) -> tuple[MediaPart, str]:
    """A row's one sound and its transcript. Raises RowError."""
    sounds = media_parts(conversation.messages)
    texts = [message.text for message in conversation.messages if message.role == "assistant"]
    if len(sounds) != 1 or len(texts) != 1:
        raise RowError("media_missing", f"{len(sounds)} sounds and {len(texts)} transcripts; a row has one of each")
    return sounds[0], texts[0]


def heard(part: MediaPart) -> Medium:
    return Medium(kind=part.kind, path=part.path, sha256=part.sha256)
