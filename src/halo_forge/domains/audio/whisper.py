"""The Media of speech: what the one training loop asks of a Whisper model (domains/media.py tells the protocol).

Axes: D transcripts of a micro-batch, N their tokens end to end, U positions that predict, F frames, V vocabulary.

The decoder runs without padding: transcripts lie end to end in one row, and each hears its own sound (attention.py).
With a frozen encoder, what it makes of a sound never changes; it is computed once, a sound at a time so that no batch
decides its last bits, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, WhisperForConditionalGeneration

from halo_forge.chat.batch_encode import EncodedBatch
from halo_forge.chat.records import Conversation, Example, MediaKind, MediaPart, Medium
from halo_forge.config.audio_section import AudioSection
from halo_forge.config.schema import Config, DataSection
from halo_forge.domains.audio.attention import SPEECH_ATTENTION
from halo_forge.domains.audio.augmentation import Draw
from halo_forge.domains.audio.decoding import transcribe
from halo_forge.domains.audio.features import FeatureMaker, open_features
from halo_forge.domains.audio.transcripts import Transcripts, is_multilingual, sound_and_text
from halo_forge.domains.media import copy_processor
from halo_forge.errors import DataError, RowError
from halo_forge.media.sounds import samples_of
from halo_forge.media.store import read_medium
from halo_forge.models.forward import keep_going, padded_attention
from halo_forge.models.generate import Generation, Prompt
from halo_forge.models.inspection import read_json_object
from halo_forge.runs import write_json

if TYPE_CHECKING:
    from halo_forge.domains.media import MediaBatch

MAX_KEPT_BYTES = 4 * 2**30


@dataclass(slots=True)
class KeptSounds:
    """What one frozen encoder made of sounds: sha256 of the bytes -> [F, width]."""

    encoder: torch.nn.Module | None = None
    outputs: dict[bytes, torch.Tensor] = field(default_factory=dict)
    num_bytes: int = 0

    def belong_to(self, encoder: torch.nn.Module) -> None:
        if self.encoder is not encoder:
            self.encoder, self.outputs, self.num_bytes = encoder, {}, 0

    def keep(self, name: bytes, output: torch.Tensor) -> None:
        size = output.numel() * output.element_size()
        if self.num_bytes + size <= MAX_KEPT_BYTES:
            self.outputs[name], self.num_bytes = output, self.num_bytes + size


@dataclass(frozen=True)
class SpeechEncoder:
    """Rows to examples: the decoder's ids, and the sound they are the transcript of. `train_on` is ignored: of a row of
    speech the transcript is trained, whatever else is asked."""

    transcripts: Transcripts
    maker: FeatureMaker

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """A row at a time: what it costs is the sound, which is opened here so that a bad one is refused before
        anything is trained."""
        ids: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        problems: dict[int, RowError] = {}
        notes: dict[int, tuple[str, ...]] = {}
        media: dict[int, tuple[Medium, ...]] = {}
        for row, conversation in enumerate(conversations):
            try:
                row_ids, row_weights, row_notes, medium = self._encode(conversation)
            except RowError as problem:
                problems[row] = problem
                row_ids, row_weights = np.zeros(0, np.int32), np.zeros(0, np.float32)
            else:
                media[row] = (medium,)
                if row_notes:
                    notes[row] = row_notes
            ids.append(row_ids)
            weights.append(row_weights)
        starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
        return EncodedBatch(
            ids=np.concatenate([*ids, np.zeros(0, np.int32)]), starts=starts, problems=problems, notes=notes,
            loss_weights=np.concatenate([*weights, np.zeros(0, np.float32)]), num_fast=0, num_slow=len(conversations),
            media=media,
        )  # fmt: skip

    def _encode(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], Medium]:
        sound, answer = sound_and_text(conversation)
        ids, notes = self.transcripts.ids_of(answer.text)
        weights = np.full(len(ids), 1.0 if answer.weight is None else answer.weight, dtype=np.float32)
        weights[: len(self.transcripts.prefix)] = 0.0
        weights *= conversation.weight
        if not (weights > 0).any():
            raise RowError("no_supervised_tokens", "no token of the row is trained: every weight is 0")
        samples_of(_bytes_of(sound), self.maker.rate, self.maker.max_seconds)
        return ids, weights, notes, _medium(sound)


@dataclass(frozen=True)
class WhisperMedia:
    """Picklable; what was kept of sounds stays behind."""

    transcripts: Transcripts
    maker: FeatureMaker
    audio: AudioSection
    seed: int
    kept: KeptSounds = field(default_factory=KeptSounds, compare=False)

    kind: MediaKind = "audio"
    packs: bool = True
    attention: str = "transcript"
    reads_text: bool = False
    counts_documents: bool = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": KeptSounds()}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides examples beside rows, data settings and tokenizer."""
        told = {name: getattr(self.audio, name) for name in ("language", "task", "timestamps")}
        return {
            **told,
            "rate": self.maker.rate,
            "seconds": self.maker.max_seconds,
            "tokens": self.transcripts.max_tokens,
        }

    def encoder(self, data: DataSection, train_on: Any = None) -> SpeechEncoder:
        return SpeechEncoder(self.transcripts, self.maker)

    def question(self, conversation: Conversation) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
        sound, answer = sound_and_text(conversation)
        reference = self.transcripts.plain(answer.text)
        return list(self.transcripts.prefix), reference, [self.transcripts.end], (_medium(sound),)

    # ------------------------------------------------------------------------------------------- what the model reads

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_features  float32 [K, mel rows, 2 F]  of the K sounds that were not kept
        feature_row     int64 [D]     which of them each transcript hears, -1 for a kept one
        sound_name      uint8 [D, 32] sha256 of its bytes"""
        return self._inputs(examples, None)

    def training_inputs(self, examples: Sequence[Example], step: int) -> dict[str, torch.Tensor]:
        """The same with the augmentation of this optimizer step."""
        return self._inputs(examples, step if self.audio.augmentation else None)

    def _inputs(self, examples: Sequence[Example], step: int | None) -> dict[str, torch.Tensor]:
        features: list[np.ndarray] = []
        rows: dict[bytes, int] = {}
        feature_row, names = [], []
        for example in examples:
            medium = _only_sound(example.media, example.conversation_id)
            name = bytes.fromhex(medium.sha256)
            names.append(np.frombuffer(name, dtype=np.uint8))
            if step is None and name in self.kept.outputs:
                feature_row.append(-1)
                continue
            known = name if step is None else name + example.conversation_id.encode()
            if known not in rows:
                rows[known] = len(features)
                features.append(self._features(medium, example.conversation_id, step))
            feature_row.append(rows[known])
        shape = (0, int(self.maker.extractor.feature_size), self.maker.num_frames)
        return {
            "input_features": torch.from_numpy(np.stack(features) if features else np.zeros(shape, np.float32)),
            "feature_row": torch.tensor(feature_row, dtype=torch.int64),
            "sound_name": torch.from_numpy(np.stack(names)),
        }

    def _features(self, medium: Medium, example: str, step: int | None) -> np.ndarray:
        try:
            if step is None:
                return self.maker.features(read_medium(medium))
            draw = Draw(seed=self.seed, step=step, example=example)
            return self.maker.features(read_medium(medium), self.audio.augmentation, draw)
        except RowError as problem:  # it was read when the rows were prepared, and its bytes are the same
            raise DataError(
                f"a sound cannot be read any more ({problem.code}): {problem.reason}", where=medium.path
            ) from None

    # ------------------------------------------------------------------------------------------- what the model makes

    def configure(self, model: torch.nn.Module) -> None:
        """Once before adapters are put in and once after: a frozen encoder gets none that train. The sinusoids of the
        encoder never train (Whisper's paper, 2.2): transformers' model says so, too, and forgets it on loading."""
        encoder = speech_model(model).model.encoder
        (encoder if self.audio.freeze_encoder else encoder.embed_positions).requires_grad_(False)

    def _keeps(self, encoder: torch.nn.Module) -> bool:
        """Whether what this encoder makes of a sound stays as it is."""
        wanted = self.audio.freeze_encoder and self.audio.keep_encoder_output and not self.audio.augmentation
        return wanted and not any(parameter.requires_grad for parameter in encoder.parameters())

    def logits(self, model: torch.nn.Module, batch: MediaBatch) -> torch.Tensor:
        whisper = speech_model(model)
        if whisper.config._attn_implementation != SPEECH_ATTENTION:
            whisper.set_attn_implementation(SPEECH_ATTENTION)
        heard = self._heard(whisper, batch)  # [D, F, width]
        hidden = whisper.model.decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False,
            encoder_hidden_states=heard.reshape(1, -1, heard.shape[-1]), transcript_lengths=batch.document_lengths,
        ).last_hidden_state  # fmt: skip
        logits: torch.Tensor = whisper.proj_out(hidden[0, batch.positions])
        return logits

    def _heard(self, whisper: WhisperForConditionalGeneration, batch: MediaBatch) -> torch.Tensor:
        """What the encoder makes of each transcript's sound, [D, F, width]. Sounds that several transcripts share are
        encoded once."""
        if not batch.media:  # a micro-batch without a target: it only takes part
            shape = (len(batch.document_lengths), self._num_frames(whisper), whisper.config.d_model)
            return torch.zeros(shape, device=batch.input_ids.device, dtype=whisper.dtype)
        features, rows = batch.media["input_features"].to(whisper.dtype), batch.media["feature_row"]
        encoder = whisper.model.encoder
        if not self._keeps(encoder):
            encoded = encoder(features).last_hidden_state
            return encoded if encoded.shape[0] == len(rows) else encoded[rows]
        self.kept.belong_to(encoder)
        return torch.stack([
            self._heard_once(whisper, name.tobytes(), features, row)
            for name, row in zip(batch.media["sound_name"].cpu().numpy(), rows.tolist(), strict=True)
        ])  # fmt: skip

    def _heard_once(
        self, whisper: WhisperForConditionalGeneration, name: bytes, features: torch.Tensor, row: int
    ) -> torch.Tensor:
        found = self.kept.outputs.get(name)
        if found is not None:
            return found.to(features.device)
        if row < 0:
            raise DataError("a kept sound is gone", where=name.hex())
        with torch.no_grad(), evaluating(whisper.model.encoder):
            made = whisper.model.encoder(features[row : row + 1]).last_hidden_state[0]
        self.kept.keep(name, made)
        return made

    def _num_frames(self, whisper: WhisperForConditionalGeneration) -> int:
        return int(whisper.config.max_source_positions)

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
        """Greedy, `batch_size` sounds at a time; the tokens equal transformers' own greedy `generate`."""
        whisper = speech_model(model)
        found: list[Generation] = []
        with torch.no_grad(), padded_attention(whisper):
            for start in range(0, len(prompts), batch_size):
                check()
                group = prompts[start : start + batch_size]
                sounds = [_only_sound(prompt.media, "a prompt") for prompt in group]
                features = torch.from_numpy(np.stack([self._features(sound, "", None) for sound in sounds]))
                encoded = whisper.model.encoder(features.to(whisper.device, whisper.dtype)).last_hidden_state
                said = transcribe(
                    whisper, encoded, group[0].token_ids, stop_ids=group[0].stop_token_ids,
                    max_new_tokens=max_new_tokens, timestamps=self.audio.timestamps, check=check,
                )  # fmt: skip
                for at, (token_ids, stopped) in enumerate(said):
                    found.append(Generation(tuple(token_ids), decode(token_ids).strip(), stopped))
                    if on_finished is not None:
                        on_finished(start + at, found[-1])
        return found

    def save(self, directory: Path) -> None:
        """The processor's files, and in generation_config.json the language and task that were trained."""
        copy_processor(self.maker.directory, directory)
        path = directory / "generation_config.json"
        if path.is_file() and is_multilingual(self.transcripts.tokenizer):
            told = {"language": self.audio.language, "task": self.audio.task}
            write_json(path, {**read_json_object(path), **told})


def open_whisper(config: Config, tokenizer: PreTrainedTokenizerBase, directory: Path) -> WhisperMedia:
    described = read_json_object(directory / "config.json")
    maker = open_features(directory)
    transcripts = Transcripts(tokenizer, config.audio, int(described.get("max_target_positions", 448)))
    _ = transcripts.prefix  # a language that the model does not know is told here
    return WhisperMedia(
        transcripts=transcripts, maker=maker, audio=config.audio, seed=config.training.seed
    )  # fmt: skip


def speech_model(model: torch.nn.Module) -> WhisperForConditionalGeneration:
    """The transformers model itself; adapters injected into its layers stay."""
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, WhisperForConditionalGeneration):
        raise TypeError(f"expected a Whisper model, found {type(inner).__name__}")
    return inner


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """A frozen encoder drops nothing out, also while the decoder trains."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def _bytes_of(sound: MediaPart) -> bytes:
    return read_medium(sound)


def _medium(sound: MediaPart) -> Medium:
    return Medium(kind="audio", path=sound.path, sha256=sound.sha256)


def _only_sound(media: Sequence[Medium], where: str) -> Medium:
    if len(media) != 1:
        raise DataError(f"{len(media)} sounds where one belongs", where=where, fix="prepare the rows again")
    return media[0]
