"""What a model that sees or hears needs beside tokens. The stages know this much of it and nothing of any family."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from halo_forge.chat import ChatEncoder, prompt_and_reference
from halo_forge.chat.batch_encode import EncodedBatch, encode_one_by_one
from halo_forge.chat.known import KnownTokenizer
from halo_forge.chat.records import Conversation, Example, MediaKind, Medium
from halo_forge.config.schema import Config, DataSection
from halo_forge.domains import Domain, domain_that_reads
from halo_forge.models.inspection import read_json_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from halo_forge.models.generate import Generation, Prompt


class Encoder(Protocol):
    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch: ...


@dataclass(frozen=True, slots=True)
class ChatWithMedia:
    """Rows to examples by the encoder of texts: media are the placeholders that `known` spells."""

    chat: ChatEncoder

    @staticmethod
    def of(tokenizer: Any, known: KnownTokenizer, data: DataSection, train_on: Any = None) -> ChatWithMedia:
        return ChatWithMedia(
            ChatEncoder(
                tokenizer, max_seq_length=data.max_seq_length, train_on=train_on or data.train_on,
                overlong=data.overlong, reasoning=data.reasoning, fast=False, known=known,
            )
        )  # fmt: skip

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        return encode_one_by_one(self.chat.encode, conversations)


class MediaBatch(Protocol):
    """What `logits` reads of a micro-batch (train/batches.Batch): axes N tokens, U positions that predict."""

    @property
    def input_ids(self) -> torch.Tensor: ...  # int64 [1, N]
    @property
    def position_ids(self) -> torch.Tensor: ...  # int64 [1, N]
    @property
    def positions(self) -> torch.Tensor: ...  # int64 [U]
    @property
    def document_lengths(self) -> tuple[int, ...]: ...
    @property
    def media(self) -> dict[str, torch.Tensor]: ...  # what `inputs` gave
    def row(self) -> Any: ...  # PackedRow: what attends to what


class Media(Protocol):
    """One model's eyes or ears. Picklable: it travels to the processes that prepare rows.

    kind   what it reads
    packs  whether several documents may lie in one row of a batch
    attention  the name that a run reports for how they are kept apart
    reads_text whether it also answers texts without any image or sound
    """

    kind: MediaKind
    packs: bool
    attention: str
    reads_text: bool

    def encoder(self, data: DataSection, train_on: Any = None) -> Encoder:
        """Rows to examples with media; `train_on` in place of data.train_on where given. A row that cannot become one
        is a RowError among the batch's problems."""

    def question(self, conversation: Conversation) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
        """(prompt ids, reference answer, stop token ids, media before the answer) for answering the last turn anew.
        Raises RowError."""

    def inputs(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The model's inputs for all media of the examples, in order; {} where there are none. The same bytes give the
        same tensors. Raises DataError for a file that is gone or changed."""

    def configure(self, model: PreTrainedModel) -> None:
        """Once after the model was loaded for training, before adapters: freeze what is to stay."""

    def logits(self, model: torch.nn.Module, batch: MediaBatch) -> torch.Tensor:
        """Vocabulary logits [U, V] at `batch.positions`, with gradients for what is trained."""

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
        """Greedy answers, as models.generate.generate gives them for texts."""

    def save(self, directory: Path) -> None:
        """The processor's files, beside the tokenizer's, so that the model can be used without this program: those of
        the base byte for byte (`copy_processor`), or publishing refuses them."""


def inputs_of_step(media: Media, step: int) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
    """`media.inputs` as one optimizer step reads them: a domain that changes its media while training (augmentation)
    has `training_inputs(examples, step)`, a pure function of both."""
    changed = getattr(media, "training_inputs", None)
    return partial(changed, step=step) if changed is not None else media.inputs


def counts_documents(media: Media | None) -> bool:
    """Whether a micro-batch is per_device_train_batch_size documents whatever their tokens, because what a document
    costs is its image or sound (a domain's own `counts_documents`)."""
    return bool(getattr(media, "counts_documents", False))


def settings_of(media: Media | None) -> dict[str, Any]:
    """What else than rows, `data` and tokenizer decides the examples: a domain's own `settings`, as JSON."""
    found: dict[str, Any] = getattr(media, "settings", {}) if media is not None else {}
    return found


def question_of(
    conversation: Conversation, tokenizer: Any, media: Media | None
) -> tuple[list[int], str, list[int], tuple[Medium, ...]]:
    """(prompt ids, reference answer, stop token ids, media before the answer) for answering the last turn anew, with
    or without eyes and ears. Raises RowError."""
    return media.question(conversation) if media is not None else (*prompt_and_reference(conversation, tokenizer), ())


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def copy_processor(base: Path, directory: Path, names: Sequence[str] = PROCESSOR_FILES) -> None:
    """The files of these names that the base has, where they are not there yet."""
    for name in names:
        if (base / name).is_file() and not (directory / name).is_file():
            shutil.copyfile(base / name, directory / name)


def domain_of_model(directory: Path) -> Domain | None:
    """The domain that opens the model in a directory; None for a model of text."""
    return domain_that_reads(str(read_json_object(directory / "config.json").get("model_type", "")))


def open_media(config: Config, tokenizer: Any) -> Media | None:
    """The eyes or ears of the model that a tokenizer belongs to; None where it reads text alone."""
    named = getattr(tokenizer, "name_or_path", "")
    if not named:
        return None
    directory = Path(named)
    if not (directory / "config.json").is_file() and (directory.parent / "config.json").is_file():
        directory = directory.parent  # the tokenizer lies in a folder of its own
    if not (directory / "config.json").is_file():
        return None
    domain = domain_of_model(directory)
    if domain is None:
        return None
    module, _, function = domain.opens.partition(":")
    opened: Media = getattr(import_module(module), function)(config, tokenizer, directory)
    return opened
