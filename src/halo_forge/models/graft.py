"""A vision-language model made offline: a small vision tower, untrained, in front of a language model that is there.

No small pretrained vision-language model comes out of a package registry. This one has the architecture of SmolVLM
(Idefics3): its words are those of the language model it is made from, its eyes have seen nothing yet, and training
opens them. It is an ordinary model directory: `AutoModelForImageTextToText` and `AutoProcessor` load it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.errors import ModelNotFound, UsageError
from halo_forge.models.embedded import NAME as TEXT_MODEL
from halo_forge.models.embedded import cache_directory
from halo_forge.runs import Notify, fsync_directory, sha256_json, silent

if TYPE_CHECKING:
    from transformers import Idefics3Config, PreTrainedModel, PreTrainedTokenizerBase

NAME = "smolvlm-graft"
VERSION = 3  # part of the cache key: raise it when what is written below changes
IMAGE_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The language model's own ChatML; an image is `<image>` where it stands, which the processor spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """image_size and patch_size are pixels of a side; `pooling` is how many patches of a side become one token, so an
    image is (image_size / patch_size / pooling)^2 tokens."""

    image_size: int = 64
    patch_size: int = 8
    pooling: int = 4
    hidden_size: int = 192
    num_layers: int = 3
    num_heads: int = 6
    seed: int = 0

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.patch_size // self.pooling) ** 2

    def check(self) -> None:
        """Raises UsageError for a shape that does not come out even."""
        if self.image_size % (self.patch_size * self.pooling) or self.hidden_size % self.num_heads:
            raise UsageError(
                "this vision tower does not come out even",
                expected="image size a multiple of patch size times pooling, hidden size a multiple of the heads",
            )


SHAPE = TowerShape()


def grafted_model(notify: Notify = silent, text_model: str = TEXT_MODEL, shape: TowerShape = SHAPE) -> Path:
    """The directory of the graft in the cache, made when it is not there yet (seconds). Raises ModelNotFound where
    the language model is missing or the cache cannot be written."""
    from halo_forge.models.resolve import resolve_model

    shape.check()
    source = resolve_model(text_model, notify=notify)
    key = sha256_json({"text": str(source), "shape": asdict(shape), "version": VERSION})[:16]
    target = cache_directory() / "models" / f"{NAME}-{key}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                notify("note", {"text": f"making {NAME} out of {text_model} in {target} (once, a few seconds)"})
                staging = target.with_name(f".{target.name}.{os.getpid()}")
                try:
                    graft(source, staging, shape)
                    os.replace(staging, target)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
                fsync_directory(target.parent)
    except OSError as error:
        raise ModelNotFound(
            f"the model cannot be written to the cache: {error.strerror or error}", where=str(target.parent),
            fix="set HALO_FORGE_CACHE to a directory you can write to (0.4 GB)",
        ) from None  # fmt: skip
    return target


def graft(text_model: Path, directory: Path, shape: TowerShape = SHAPE) -> None:
    """Write a model directory: the language model of `text_model` with a new vision tower before it.

    The tower and the projector are drawn from `shape.seed`; the embeddings of the new tokens are the mean of all, so
    that none of them is likely before it is learnt. Raises ModelNotFound where `text_model` is no Llama-like model.
    """
    import torch
    from transformers import AutoModelForCausalLM, Idefics3ForConditionalGeneration

    from halo_forge.models.load import load_tokenizer
    from halo_forge.models.quiet import quiet_transformers

    tokenizer = load_tokenizer(str(text_model))
    with quiet_transformers():
        language_model: Any = AutoModelForCausalLM.from_pretrained(
            text_model, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    if language_model.config.model_type != "llama":
        raise ModelNotFound(
            f"`{language_model.config.model_type}` is not a Llama", where=str(text_model),
            expected="a Llama-like model (SmolLM, SmolLM2, Llama), as SmolVLM has",
        )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    tokenizer.chat_template = TEMPLATE
    language_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    _set_new_rows(language_model, len(tokenizer) - len(IMAGE_TOKENS))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(shape.seed)
        model = Idefics3ForConditionalGeneration(_configuration(language_model, tokenizer, shape))
    model.model.text_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    _match_scale(model)
    model.generation_config = language_model.generation_config
    directory.mkdir(parents=True)
    with quiet_transformers():
        model.to(torch.bfloat16).save_pretrained(directory)
        _processor(tokenizer, shape).save_pretrained(directory)


def _set_new_rows(language_model: PreTrainedModel, first: int) -> None:
    import torch

    with torch.no_grad():
        for layer in {language_model.get_input_embeddings(), language_model.get_output_embeddings()}:  # type: ignore[no-untyped-call]
            layer.weight[first:] = layer.weight[:first].mean(0)


def _match_scale(model: Any) -> None:
    """Draw the projector so that an image's tokens are as large as a word's. Larger ones would drown what the language
    model adds to them, and small weights turn quickly towards what is to be told apart."""
    import torch

    projection = model.model.connector.modality_projection.proj.weight
    size = float(model.get_input_embeddings().weight.detach().std())
    with torch.no_grad():
        projection.mul_(size / (float(projection.std()) * projection.shape[1] ** 0.5))


def _configuration(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shape: TowerShape
) -> Idefics3Config:
    from transformers import Idefics3Config

    text = language_model.config.to_dict()
    return Idefics3Config(
        text_config=text,  # type: ignore[arg-type]
        vision_config={  # type: ignore[arg-type]
            "hidden_size": shape.hidden_size, "intermediate_size": 4 * shape.hidden_size,
            "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads,
            "image_size": shape.image_size, "patch_size": shape.patch_size, "initializer_range": 0.05,
        },
        scale_factor=shape.pooling,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _processor(tokenizer: PreTrainedTokenizerBase, shape: TowerShape) -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    edge = {"longest_edge": shape.image_size}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(
        images, tokenizer, image_seq_len=shape.tokens_per_image, chat_template=tokenizer.chat_template
    )
