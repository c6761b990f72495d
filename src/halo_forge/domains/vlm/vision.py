"""A model's eyes, as the stages know them (domains/media.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from halo_forge.chat.example import question
from halo_forge.chat.known import KnownTokenizer
from halo_forge.chat.placeholders import Placeholders
from halo_forge.chat.records import Conversation, Example, MediaKind, Medium
from halo_forge.config.schema import Config, DataSection
from halo_forge.config.vision_section import VisionSection
from halo_forge.domains.media import PROCESSOR_FILES, ChatWithMedia, MediaBatch, copy_processor
from halo_forge.domains.vlm.answers import answer_alone, answer_batched
from halo_forge.domains.vlm.eyes import Eyes
from halo_forge.domains.vlm.families import modules_of
from halo_forge.domains.vlm.forward import DOCUMENT_ATTENTION, Forward
from halo_forge.models.adapters import freeze
from halo_forge.models.forward import bare, keep_going
from halo_forge.models.generate import Generation, Prompt
from halo_forge.runs import sha256_file

COPIED_FILES = (*PROCESSOR_FILES, "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json")


@dataclass(slots=True)
class Vision:
    """`media` of a run whose model reads images. Picklable."""

    eyes: Eyes
    tokenizer: Any
    section: VisionSection
    use_fast: bool
    kind: MediaKind = "image"
    reads_text: bool = True
    forwards: WeakKeyDictionary[torch.nn.Module, dict[bool, Forward]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    _known: KnownTokenizer | None = field(default=None, repr=False)

    @staticmethod
    def of(config: Config, tokenizer: Any, directory: Path) -> Vision:
        eyes = Eyes.of(directory, tokenizer, config.vision.max_pixels)
        fast = config.training.fast_layers and config.model.attn_implementation in ("auto", "document")
        return Vision(eyes, tokenizer, config.vision, fast)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.eyes, self.tokenizer, self.section, self.use_fast

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.eyes, self.tokenizer, self.section, self.use_fast = state
        self.kind, self.reads_text, self.forwards, self._known = "image", True, WeakKeyDictionary(), None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides examples beside rows, data settings and tokenizer."""
        files = [self.eyes.directory / name for name in PROCESSOR_FILES]
        processor = {file.name: sha256_file(file) for file in files if file.is_file()}
        return {"max_pixels": self.section.max_pixels, **processor}

    @property
    def packs(self) -> bool:
        return self.eyes.family.packs

    @property
    def attention(self) -> str:
        return DOCUMENT_ATTENTION if self.packs else "unpacked"

    @property
    def known(self) -> KnownTokenizer:
        """What is known of the tokenizer, with the placeholders of this model's images."""
        if self._known is None:
            placeholders = Placeholders("image", self.eyes.marker, self.eyes.placeholder_ids, self.eyes.spell)
            self._known = KnownTokenizer(self.tokenizer, placeholders)
        return self._known

    def encoder(self, data: DataSection, train_on: Any = None) -> ChatWithMedia:
        return ChatWithMedia.of(self.tokenizer, self.known, data, train_on)

    def question(self, conversation: Conversation) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
        return question(conversation, self.known)

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        return self.eyes.inputs([medium for example in examples for medium in example.media])

    def configure(self, model: PreTrainedModel) -> None:
        """Freeze the parts of `vision.freeze`: adapters pass over what needs no gradient, and so does full training."""
        for part in self.section.freeze:
            freeze(model, modules_of(model, self.eyes.family, part))

    def logits(self, model: torch.nn.Module, batch: MediaBatch) -> torch.Tensor:
        return self.forward_of(model).logits(model, batch)

    def forward_of(self, model: torch.nn.Module) -> Forward:
        """How a loaded model is computed, found out once for each precision."""
        words = bare(model).get_input_embeddings().weight
        half = torch.is_autocast_enabled(words.device.type) or words.dtype != torch.float32
        ways = self.forwards.setdefault(model, {})
        if half not in ways:
            ways[half] = Forward.of(model, self.eyes.family, self.eyes.placeholder_ids, self.use_fast, half)
        return ways[half]

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
        family = self.eyes.family
        answer = answer_batched if family.packs and not family.grids else answer_alone
        return answer(
            model, prompts, self.eyes, decode=decode, max_new_tokens=max_new_tokens, batch_size=batch_size,
            on_finished=on_finished, check=check,
        )  # fmt: skip

    def save(self, directory: Path) -> None:
        copy_processor(self.eyes.directory, directory, COPIED_FILES)
