"""The trained weights of a checkpoint: written so that peft or transformers load them, read back bit for bit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from halo_forge.errors import CheckpointError
from halo_forge.models.bottleneck import has_bottlenecks, load_bottlenecks, save_bottlenecks

ADAPTER_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"


def save_weights(
    model: PreTrainedModel | PeftModel, directory: Path, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """The adapters of a model that has some, or the whole model in the dtype it is trained in, in one file.

    tensors  the values by parameter name, where the model itself holds only a part of each
    """
    given = {} if tensors is None else {"state_dict": tensors}
    if isinstance(model, PeftModel):
        # Never the embeddings for having grown: their new rows are among the adapter's weights.
        model.save_pretrained(directory, safe_serialization=True, save_embedding_layers=False, **given)
        (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card; ours comes with the release
    elif has_bottlenecks(model):
        save_bottlenecks(model, directory, (model.config.name_or_path, None))
    else:
        model.save_pretrained(directory, max_shard_size="1000GB", **given)


def load_weights(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Put saved weights into the model in place. Every trainable tensor must be there, or CheckpointError."""
    if isinstance(model, PeftModel):
        tensors = load_file(directory / ADAPTER_FILE)
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        _require_same_names(set(tensors), expected, directory)
        set_peft_model_state_dict(model, tensors)
    elif has_bottlenecks(model):
        load_bottlenecks(model, directory)
    else:
        tensors = load_file(directory / FULL_FILE)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
            name for name, _ in model.named_parameters()
        }
        _require_same_names(set(unexpected) | set(missing), tied & set(missing), directory)


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """safetensors tells of a full disk by an error of its own: inside this block it is the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from None


def parameter_names(model: torch.nn.Module) -> dict[torch.nn.Parameter, str]:
    """Trainable parameter -> its name; a tied parameter has one name."""
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _require_same_names(found: set[str], expected: set[str], directory: Path) -> None:
    if found != expected:
        difference = sorted(found ^ expected)
        raise CheckpointError(
            f"weights do not fit this model: {len(difference)} names differ, for instance {difference[0]}",
            where=str(directory),
        )
