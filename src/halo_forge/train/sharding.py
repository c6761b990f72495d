"""Weights, gradients and optimizer cut over the processes (FSDP2; Rajbhandari et al. 2020, ZeRO-3).

Only where one device cannot hold them: a copy for each process needs one message a step, this needs three a layer and
micro-batch. It runs on transformers' own layers, under the same autocast, and gives the numbers of one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from halo_forge.config.schema import Config
from halo_forge.errors import UsageError
from halo_forge.models.compute import Compute

SHARDED_METHODS = ("full", "lora")


def check_shardable(config: Config) -> None:
    """Raises UsageError for what has not been shown to give the same numbers when it is cut."""
    training = config.training
    if training.method not in SHARDED_METHODS:
        raise UsageError(
            f"training.method {training.method} cannot be sharded",
            where="--shard",
            expected="training.method lora or full",
            fix="without --shard each process keeps a copy",
        )
    unproven = {
        f"training.optimizer {training.optimizer}": training.optimizer != "adamw",
        "training.l2_to_start": training.l2_to_start > 0,
        "model.add_tokens": bool(config.model.add_tokens or config.model.add_special_tokens),
        "training.preflight overfit": training.preflight == "overfit",
    }
    for name, is_asked in unproven.items():
        if is_asked:
            raise UsageError(
                f"{name} does not work on a sharded model", where="--shard", fix="leave one of the two out"
            )


def shard(model: PreTrainedModel | PeftModel, compute: Compute) -> None:
    """Cut the model in place, layer by layer; what lies outside the layers stays together.

    Of a full training in bfloat16, attention and MLP travel in the compute type (autocast would round them the same
    way), norms and embeddings in float32, as autocast leaves them. Gradients are summed in float32. With fewer parts
    than processes, groups of them hold one copy each, and join their gradients afterwards (hybrid sharding).
    """
    count, size = dist.get_world_size(), compute.shard_size or dist.get_world_size()
    shape, axes = ((count,), ("parts",)) if size == count else ((count // size, size), ("copies", "parts"))
    mesh = init_device_mesh(compute.device.type, shape, mesh_dim_names=axes)
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )  # fmt: skip
    is_full = not isinstance(model, PeftModel)
    for layer in causal.get_decoder().layers:
        products = [child for name, child in layer.named_children() if "norm" not in name]
        norms_inside = any("norm" in name for child in products for name, _ in child.named_modules())
        if is_full and compute.precision == "bfloat16" and not norms_inside:
            for child in products:
                fully_shard(child, mesh=mesh, mp_policy=narrow)
        fully_shard(layer, mesh=mesh, mp_policy=plain)
    fully_shard(model, mesh=mesh, mp_policy=plain, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the weight of the whole step: gradients of processes are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def is_sharded(parameters: Iterable[torch.Tensor]) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be cut. Every process must ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whole values cut as a tensor is, without a message."""
    if not isinstance(tensor, DTensor):
        return values.to(tensor.device)
    placed = values.to(tensor.device)
    return distribute_tensor(placed, tensor.device_mesh, tensor.placements, src_data_rank=None)
