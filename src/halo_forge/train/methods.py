"""The model that a run trains: loaded, in the type its method asks for, with what the method adds or freezes."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.artifacts import LORA_METHODS
from halo_forge.config.schema import Config
from halo_forge.domains.media import open_media
from halo_forge.errors import UsageError
from halo_forge.models import add_lora, load_model
from halo_forge.models.bottleneck import BottleneckOptions, add_bottlenecks
from halo_forge.models.compute import Compute
from halo_forge.models.lora_options import LoraOptions
from halo_forge.models.new_tokens import add_rows, new_token_ids
from halo_forge.models.partial import train_only
from halo_forge.models.quantised import require_bitsandbytes
from halo_forge.runs import Notify, silent

Model = PreTrainedModel | PeftModel


def check_method(config: Config) -> None:
    """Raises UsageError for a method whose package is missing, before anything is loaded."""
    if config.training.method == "qlora":
        require_bitsandbytes()


def load_training_model(
    config: Config, compute: Compute, tokenizer: PreTrainedTokenizerBase, notify: Notify = silent
) -> Model:
    """The model with exactly the weights that are to be trained requiring a gradient, all of these in float32.

    full                 float32 masters, computed under autocast; some of them frozen with training.trainable
    lora, dora, adapter  a frozen base in the compute type, float32 adapters
    qlora                the same over a base in 4 bits
    tokenizer            with the new tokens of the configuration in it: they get rows in the embeddings
    Raises ModelNotFound, OutOfMemory, UsageError.
    """
    method = config.training.method
    half = method != "full" and compute.precision == "bfloat16"
    model = load_model(
        config.model.name,
        dtype=torch.bfloat16 if half else torch.float32,
        device=compute.device,
        revision=config.model.revision,
        in_4_bits=method == "qlora",
    )
    model.config.use_cache = False
    media = open_media(config, tokenizer)
    if media is not None:
        media.configure(model)
    token_ids = new_token_ids(tokenizer, config.model)
    add_rows(model, token_ids)
    if method in LORA_METHODS:
        adapted = _with_lora(model, config, token_ids)
        if media is not None:
            media.configure(model)  # adapters stand in frozen parts, too, and are not to train there
        return adapted
    if method == "adapter":
        return add_bottlenecks(model, bottleneck_options(model, config), seed=config.training.seed)
    if config.training.trainable is not None:
        train_only(model, config.training.trainable, notify)
        _require_trained_rows(model, token_ids)
    return model


def _with_lora(model: PreTrainedModel, config: Config, token_ids: list[int]) -> PeftModel:
    lora = config.lora
    return add_lora(
        model,
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        seed=config.training.seed,
        options=LoraOptions(
            use_dora=config.training.method == "dora",
            use_rslora=lora.use_rslora,
            rank_pattern=lora.rank_pattern,
            alpha_pattern=lora.alpha_pattern,
            modules_to_save=lora.modules_to_save,
            exclude_modules=lora.exclude_modules,
            layers_to_transform=lora.layers_to_transform,
            token_ids=token_ids,
        ),
    )


def bottleneck_options(model: PreTrainedModel, config: Config) -> BottleneckOptions:
    adapter = config.adapter
    hidden_size = model.config.get_text_config().hidden_size
    return BottleneckOptions(
        size=adapter.bottleneck_size or max(1, round(hidden_size / adapter.reduction_factor)),
        activation=adapter.activation,
        after_attention=adapter.after_attention,
    )


def _require_trained_rows(model: PreTrainedModel, token_ids: list[int]) -> None:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    if token_ids and not all(end is None or end.weight.requires_grad for end in ends):
        raise UsageError(
            "model.add_tokens adds rows to the embeddings, and training.trainable leaves them frozen",
            where="training.trainable",
            fix="add embed_tokens and lm_head to training.trainable",
        )
