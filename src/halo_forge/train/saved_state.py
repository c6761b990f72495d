"""What a checkpoint holds of model and optimizer: whole tensors, or from each process its part.

    whole   adapter_model.safetensors or model.safetensors, and optimizer.safetensors: loadable by peft or transformers
    parts   parts/*.safetensors, written by torch distributed checkpoint without any pickle; read back by any number of
            processes, one without a process group included

Whatever the model is now, cut or whole, both are read into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from transformers import PreTrainedModel

from halo_forge.errors import CheckpointError
from halo_forge.models.weights import ADAPTER_FILE, FULL_FILE, load_weights, parameter_names, save_weights
from halo_forge.train.checkpoint import OPTIMIZER_FILE, load_optimizer, optimizer_tensors
from halo_forge.train.optimizer import moments
from halo_forge.train.processes import from_main
from halo_forge.train.sharding import is_sharded, like, whole

Model = PreTrainedModel | PeftModel
PARTS = "parts"


def write_whole(directory: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """From one process."""
    save_weights(model, directory)
    save_file(optimizer_tensors(optimizer, parameter_names(model)), directory / OPTIMIZER_FILE)


def write_gathered(directory: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """From a sharded model, the same files as from a whole one; every process calls this, the main one writes."""
    is_main = dist.get_rank() == 0
    weights, state = {}, {}
    for name, tensor in _saved_weights(model):
        weights[name] = _kept(tensor, is_main)
    for name, tensor in _moments(model, optimizer):
        state[name] = _kept(tensor, is_main)

    def write() -> None:
        save_weights(model, directory, weights)
        save_file(state, directory / OPTIMIZER_FILE)

    from_main(write)


def _kept(tensor: torch.Tensor, is_main: bool) -> torch.Tensor:
    """All of it on the main process, in its own memory; nothing elsewhere."""
    full = whole(tensor.detach())
    return full.cpu().contiguous().clone() if is_main else torch.empty(0)


def write_parts(directory: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """From each process its part; every process calls this. Raises OSError."""
    named = dict(_named_tensors(model, optimizer))
    try:
        dcp.save(named, storage_writer=HuggingFaceStorageWriter(str(directory / PARTS), save_distributed=True))
    except CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        raise OSError(f"process {rank}: {error}") from None


def read_weights(directory: Path, model: Model, *, alone: bool = False) -> None:
    """Into the model, in place. `alone`: only this process reads. Raises CheckpointError."""
    if (directory / PARTS).is_dir():
        _read_parts(directory, {f"weights.{name}": tensor for name, tensor in _saved_weights(model)}, alone)
    elif is_sharded(model.parameters()):
        _read_into_shards(directory, model)
    else:
        load_weights(model, directory)


def read_optimizer(directory: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Into the optimizer. Raises CheckpointError."""
    if not (directory / PARTS).is_dir():
        load_optimizer(directory, optimizer, parameter_names(model))
        return
    for parameter in parameter_names(model):
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    _read_parts(directory, {f"optimizer.{name}": tensor for name, tensor in _moments(model, optimizer)}, False)


def _read_parts(directory: Path, named: dict[str, torch.Tensor], alone: bool) -> None:
    reader = HuggingFaceStorageReader(str(directory / PARTS))
    try:
        with warnings.catch_warnings():  # that one process reads alone
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(named, storage_reader=reader, no_dist=alone or not dist.is_initialized())
    except (CheckpointException, KeyError, ValueError) as error:
        raise CheckpointError(f"weights do not fit this model: {error}", where=str(directory)) from None


@torch.no_grad()
def _read_into_shards(directory: Path, model: Model) -> None:
    tensors = load_file(directory / (ADAPTER_FILE if isinstance(model, PeftModel) else FULL_FILE))
    own = dict(_saved_weights(model))
    if isinstance(model, PeftModel):
        own = get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)
    if set(own) != set(tensors):
        different = sorted(set(own) ^ set(tensors))
        raise CheckpointError(f"weights do not fit this model: {different[:3]}", where=str(directory))
    for name, tensor in own.items():
        tensor.copy_(like(tensor, tensors[name]))


def _saved_weights(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint must hold: the adapters, or all of a model that is trained itself."""
    is_adapter = isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not is_adapter:
            yield name, parameter.detach()


def _moments(model: Model, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter, name in parameter_names(model).items():
        for field, tensor in moments(optimizer, parameter).items():
            yield f"{name}:{field}", tensor


def _named_tensors(model: Model, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    yield from ((f"weights.{name}", tensor) for name, tensor in _saved_weights(model))
    yield from ((f"optimizer.{name}", tensor) for name, tensor in _moments(model, optimizer))
