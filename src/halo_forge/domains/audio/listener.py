"""The Media of audio language models: chats with sounds, through the model's own template and forward pass.

A sound stands in the text as the placeholders that the model's processor would write; its features take their places
inside the model. Each document runs alone, by transformers' forward pass. Axes: K sounds of a document, T its tokens,
U positions that predict, F frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from halo_forge.chat.example import question
from halo_forge.chat.known import KnownTokenizer
from halo_forge.chat.placeholders import Placeholders, Spelled
from halo_forge.chat.records import Conversation, Example, MediaKind, MediaPart, Medium
from halo_forge.config.audio_section import AudioSection
from halo_forge.config.schema import Config, DataSection
from halo_forge.domains.audio.augmentation import Draw
from halo_forge.domains.audio.features import FeatureMaker, open_features
from halo_forge.domains.media import PROCESSOR_FILES, ChatWithMedia, MediaBatch, copy_processor
from halo_forge.errors import DataError, ModelNotFound, RowError
from halo_forge.media.sounds import samples_of
from halo_forge.media.store import read_medium
from halo_forge.models.forward import bare, keep_going, language_model, padded_attention
from halo_forge.models.generate import Generation, Prompt
from halo_forge.models.inspection import read_json_object

COPIED_FILES = (*PROCESSOR_FILES, "chat_template.jinja", "chat_template.json")
MIN_TOKENS = 2
"""transformers takes a single placeholder for a prompt that is still to be spelled out."""


@dataclass
class Listener:
    """Picklable. placeholder: the token that stands for a piece of sound, and its id."""

    maker: FeatureMaker
    tokenizer: Any
    placeholder: tuple[str, int]
    audio: AudioSection
    seed: int
    _known: KnownTokenizer | None = field(default=None, repr=False)

    kind: MediaKind = "audio"
    packs: bool = False
    attention: str = "unpacked"
    reads_text: bool = True
    counts_documents: bool = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides examples beside rows, data settings and tokenizer."""
        return {"rate": self.maker.rate, "seconds": self.maker.max_seconds, "hop": int(self.maker.extractor.hop_length)}

    @property
    def known(self) -> KnownTokenizer:
        """What is known of the tokenizer, with the placeholders of sounds."""
        if self._known is None:
            marker, token_id = self.placeholder
            self._known = KnownTokenizer(
                self.tokenizer, Placeholders("audio", marker, frozenset({token_id}), self.spell)
            )
        return self._known

    def spell(self, part: MediaPart) -> Spelled:
        """As many placeholders as the encoder gives features. Raises RowError for what is no sound of at most 30 s."""
        try:
            samples = samples_of(read_medium(part), self.maker.rate, self.maker.max_seconds)
        except DataError as error:
            if isinstance(error, RowError):
                raise
            raise RowError("media_missing", error.what) from None
        count = num_features(-(-len(samples) // int(self.maker.extractor.hop_length)))
        if count < MIN_TOKENS:
            raise RowError("audio_empty", f"{Path(part.path).name}: too short for this model to hear")
        return Spelled(self.placeholder[0] * count)

    def encoder(self, data: DataSection, train_on: Any = None) -> ChatWithMedia:
        return ChatWithMedia.of(self.tokenizer, self.known, data, train_on)

    def question(self, conversation: Conversation) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
        return question(conversation, self.known)

    # ------------------------------------------------------------------------------------------- what the model reads

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_features float32 [K, mel rows, F] and feature_attention_mask int64 [K, F]; {} without sounds."""
        return self._inputs([(medium, example.conversation_id) for example in examples for medium in example.media])

    def training_inputs(self, examples: Sequence[Example], step: int) -> dict[str, torch.Tensor]:
        """The same with the augmentation of this optimizer step. A changed sound is as long as it was."""
        media = [(medium, example.conversation_id) for example in examples for medium in example.media]
        return self._inputs(media, step if self.audio.augmentation else None)

    def _inputs(self, media: Sequence[tuple[Medium, str]], step: int | None = None) -> dict[str, torch.Tensor]:
        if not media:
            return {}
        features, masks = [], np.zeros((len(media), self.maker.num_frames), dtype=np.int64)
        for row, (medium, example) in enumerate(media):
            data = read_medium(medium)
            heard = len(samples_of(data, self.maker.rate, self.maker.max_seconds))
            masks[row, : -(-heard // int(self.maker.extractor.hop_length))] = 1
            draw = None if step is None else Draw(seed=self.seed, step=step, example=example)
            features.append(self.maker.features(data, self.audio.augmentation if draw else (), draw))
        return {
            "input_features": torch.from_numpy(np.stack(features)),
            "feature_attention_mask": torch.from_numpy(masks),
        }

    # ------------------------------------------------------------------------------------------- what the model makes

    def configure(self, model: torch.nn.Module) -> None:
        """Once before adapters are put in and once after. The encoder's sinusoids never train (as in whisper.py)."""
        tower = bare(model).get_submodule("model.audio_tower")
        (tower if self.audio.freeze_encoder else tower.get_submodule("embed_positions")).requires_grad_(False)

    def logits(self, model: torch.nn.Module, batch: MediaBatch) -> torch.Tensor:
        """float [U, V] at batch.positions of the one document in the batch."""
        causal = bare(model)
        with padded_attention(causal):
            media = of_type(batch.media, causal.dtype)
            hidden = causal.model(input_ids=batch.input_ids, **media, use_cache=False).last_hidden_state
        found: torch.Tensor = causal.get_output_embeddings()(hidden[0, batch.positions])
        return found

    @torch.no_grad()
    def generate(
        self,
        model: torch.nn.Module,
        prompts: Sequence[Prompt],
        *,
        decode: Callable[[list[int]], str],
        max_new_tokens: int,
        batch_size: int,
        on_finished: Callable[[int, Generation], None] | None = None,
        check: Callable[[], None] = keep_going,
    ) -> list[Generation]:
        """Greedy, one prompt after the other."""
        inner: Any = language_model(model)
        answers = []
        with padded_attention(inner):
            for index, prompt in enumerate(prompts):
                token_ids, stopped = self._answer(inner, prompt, max_new_tokens, check)
                answers.append(Generation(tuple(token_ids), decode(token_ids), stopped))
                if on_finished is not None:
                    on_finished(index, answers[-1])
        return answers

    def _answer(
        self, model: Any, prompt: Prompt, max_new_tokens: int, check: Callable[[], None]
    ) -> tuple[list[int], bool]:
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = max_new_tokens if longest is None else max(0, min(max_new_tokens, longest - len(prompt.token_ids)))
        ids = torch.tensor([prompt.token_ids], device=model.device)
        media = {
            name: tensor.to(model.device) for name, tensor in self._inputs([(m, "") for m in prompt.media]).items()
        }
        cache, found = DynamicCache(config=model.config.get_text_config()), list[int]()
        for _ in range(room):
            check()
            read = model.model(
                input_ids=ids, **of_type(media, model.dtype), past_key_values=cache, use_cache=True
            ).last_hidden_state
            token_id = int(model.get_output_embeddings()(read[:, -1])[0].argmax())
            if token_id in prompt.stop_token_ids:
                return found, True
            found.append(token_id)
            ids, media = torch.tensor([[token_id]], device=model.device), {}
        return found, False

    def save(self, directory: Path) -> None:
        copy_processor(self.maker.directory, directory, COPIED_FILES)


def num_features(num_frames: int) -> int:
    """Features that Qwen2-Audio's encoder gives for so many mel frames: a convolution of stride 2, then a mean of 2."""
    return (((num_frames - 1) // 2 + 1) - 2) // 2 + 1


def of_type(media: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Features in the type of a base that is held in bfloat16; masks as they are."""
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in media.items()}


def open_listener(config: Config, tokenizer: Any, directory: Path) -> Listener:
    """Raises ModelNotFound where the directory has no feature extractor, or its tokenizer no token for sounds."""
    maker = open_features(directory)
    described = read_json_object(directory / "config.json")
    token_id = int(described.get("audio_token_id", described.get("audio_token_index", -1)))
    marker = tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(tokenizer) else None
    if marker is None:
        raise ModelNotFound(
            f"the tokenizer has no token {token_id} for sounds", where=str(directory), expected="the model's own one"
        )
    stored = directory / "chat_template.json"
    if stored.is_file():  # the processor's is the one with sounds
        tokenizer.chat_template = read_json_object(stored)["chat_template"]
    return Listener(maker, tokenizer, (str(marker), token_id), config.audio, config.training.seed)
