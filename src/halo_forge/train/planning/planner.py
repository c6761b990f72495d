"""What a run will need, told before it starts: memory by phase, steps, tokens, time, disk, and whether it fits.

`plan_run` is arithmetic over a model's shape and the rows' lengths; nothing is loaded. `remedies.py` plans again with
one change after the other and says what each saves and costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halo_forge.config.schema import Config
from halo_forge.models.fast.decoder import COVERED_FAMILIES
from halo_forge.models.shape import ModelShape
from halo_forge.train.batches import StepOrder
from halo_forge.train.planning.memory import MemoryInputs, Phase, Precision, predict_memory
from halo_forge.train.planning.workload import Packing, Workload
from halo_forge.train.session import num_training_steps

TIGHT_SHARE = 0.8
"""Above this share of the memory that is free a run is called tight: predictions are within 25 % (docs/plan.md)."""
STEP_EFFICIENCY = {("full", "cpu"): 0.55, ("lora", "cpu"): 0.4, ("full", "cuda"): 0.4, ("lora", "cuda"): 0.35}
"""Share of the measured matrix-multiply rate that a training step keeps; the rest goes to attention, norms, casts and
small products. Measured on SmolLM2-135M on CPU (docs/plan.md); for a GPU an assumption."""
OPTIMIZER_BYTES_PER_S = {"cpu": 8e9, "cuda": 1e12}
"""Weights, gradient and moments pass through memory once a step: 28 bytes a trained weight."""
CHECKPOINT_OVERHEAD_BYTES = 4_000_000  # configuration, tokenizer and manifest files
Fit = Literal["fits", "tight", "does not fit", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """usable_bytes: what the run may hold in all on its device; None = not known. gflops: measured product rate in the
    compute type. tokens_per_s: speed of an earlier part of this very run."""

    device: str
    precision: Precision
    usable_bytes: int | None
    gflops: float | None = None
    tokens_per_s: float | None = None
    process_bytes: int | None = None
    num_processes: int = 1
    free_disk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes. A checkpoint is written beside those that stay: num_checkpoints is one more than are kept, if ever so many
    are written."""

    checkpoint: int
    num_checkpoints: int
    final_model: int
    data: int | None

    @property
    def num_bytes(self) -> int:
        return self.checkpoint * self.num_checkpoints + self.final_model


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """time_s is of training and its validations. None = not known: no prepared rows, or no measured rate."""

    model: ModelShape
    num_trainable: int
    device: str
    precision: Precision
    recompute: bool
    workload: Workload
    phases: tuple[Phase, ...]
    usable_bytes: int | None
    num_steps: int | None
    num_tokens: int | None
    tokens_per_s: float | None
    speed_source: Literal["measured in this run", "measured matrix products", "not known"]
    time_s: float | None
    disk: Disk
    free_disk_bytes: int | None

    @property
    def largest_phase(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.num_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.largest_phase.num_bytes

    @property
    def memory_fit(self) -> Fit:
        if self.usable_bytes is None:
            return "unknown"
        if self.peak_bytes > self.usable_bytes:
            return "does not fit"
        return "tight" if self.peak_bytes > TIGHT_SHARE * self.usable_bytes else "fits"

    @property
    def disk_fits(self) -> bool:
        return self.free_disk_bytes is None or self.disk.num_bytes <= self.free_disk_bytes

    @property
    def fits(self) -> bool:
        return self.memory_fit != "does not fit" and self.disk_fits


def plan_run(
    config: Config, shape: ModelShape, workload: Workload, packing: Packing, machine: Machine, *, recompute: bool
) -> RunPlan:
    """The plan of this configuration; `recompute` is what gradient_checkpointing means here."""
    inputs = memory_inputs(config, shape, workload, machine, recompute=recompute)
    num_steps = _num_steps(config, workload, packing)
    num_tokens = None
    if num_steps is not None and workload.num_tokens is not None and workload.num_examples:
        num_tokens = round(num_steps * packing.examples_per_step * workload.num_tokens / workload.num_examples)
        per_epoch = -(-workload.num_examples // packing.examples_per_step)
        num_tokens = min(num_tokens, round(workload.num_tokens * num_steps / per_epoch))
    speed, source = training_speed(inputs, workload, machine)
    num_validations = -(-num_steps // config.training.eval_steps) if num_steps else 0
    time_s = None
    if speed is not None and num_tokens is not None and num_steps is not None:
        optimizer_s = 28 * inputs.num_trainable / OPTIMIZER_BYTES_PER_S[machine.device] * num_steps
        # A forward pass is a third of the products of a full step, half of an adapter's.
        validation_tokens = num_validations * workload.validation_tokens / (3 if inputs.method == "full" else 2)
        time_s = (num_tokens / machine.num_processes + validation_tokens) / speed
        time_s += optimizer_s if source == "measured matrix products" else 0.0
    return RunPlan(
        model=shape,
        num_trainable=inputs.num_trainable,
        device=machine.device,
        precision=machine.precision,
        recompute=recompute,
        workload=workload,
        phases=predict_memory(inputs),
        usable_bytes=machine.usable_bytes,
        num_steps=num_steps,
        num_tokens=num_tokens,
        tokens_per_s=speed,
        speed_source=source,
        time_s=time_s,
        disk=_disk(config, shape, inputs.num_trainable, num_steps, workload.data_bytes),
        free_disk_bytes=machine.free_disk_bytes,
    )


def memory_inputs(
    config: Config, shape: ModelShape, workload: Workload, machine: Machine, *, recompute: bool
) -> MemoryInputs:
    evaluation = config.evaluation
    return MemoryInputs(
        shape=shape,
        method="full" if config.training.method == "full" else "lora",
        precision=machine.precision,
        device=machine.device,
        batch=workload.largest,
        recompute=recompute,
        rank=config.lora.r,
        dropout=config.lora.dropout,
        supervised_logits_only=config.training.supervised_logits_only,
        fast_layers=config.training.fast_layers and shape.family in COVERED_FAMILIES,
        eval_batch=evaluation.batch_size if evaluation.enabled else 0,
        prompt_tokens=workload.longest_tokens,
        new_tokens=evaluation.max_new_tokens,
        process_bytes=machine.process_bytes,
    )


def training_speed(
    inputs: MemoryInputs, workload: Workload, machine: Machine
) -> tuple[float | None, Literal["measured in this run", "measured matrix products", "not known"]]:
    """Tokens a second of one process, and where the figure comes from."""
    if machine.tokens_per_s is not None:
        return machine.tokens_per_s, "measured in this run"
    if machine.gflops is None:
        return None, "not known"
    rate = machine.gflops * 1e9 * STEP_EFFICIENCY[inputs.method, machine.device]
    return rate / flops_per_token(inputs, workload), "measured matrix products"


def flops_per_token(inputs: MemoryInputs, workload: Workload) -> float:
    """Necessary operations of forward and backward pass. Two for each weight and product: one product forward, one for
    the inputs' gradient, one for the weights' where they are trained. Attention is causal: two and five."""
    shape = inputs.shape
    products = 3 if inputs.method == "full" else 2
    supervised = workload.supervised_share if inputs.supervised_logits_only else 1.0
    adapters = 0 if inputs.method == "full" else 6 * inputs.num_trainable
    attention = workload.mean_tokens * shape.query * shape.num_layers
    flops = 2 * products * (shape.active + supervised * shape.head) + adapters + 7 * attention
    if inputs.recompute:
        flops += 2 * shape.active + adapters / 3 + 2 * attention
    return float(flops)


def _num_steps(config: Config, workload: Workload, packing: Packing) -> int | None:
    if workload.num_examples is None:
        return config.training.max_steps
    order = StepOrder(
        num_examples=workload.num_examples, examples_per_step=packing.examples_per_step, seed=config.training.seed
    )
    return num_training_steps(config, order)


def _disk(config: Config, shape: ModelShape, num_trainable: int, num_steps: int | None, data: int | None) -> Disk:
    """Weights and two moments in float32 for each checkpoint; best_val, best_train and latest stay whatever the limit
    says; the newest is written before the oldest goes. final_model/ keeps the base's two-byte type when full."""
    checkpoint = num_trainable * 4 * 3 + CHECKPOINT_OVERHEAD_BYTES
    kept = max(config.output.save_total_limit, 3) + 1
    if num_steps is not None:
        save, validate = config.output.save_steps, config.training.eval_steps
        ends_with_one = num_steps % save == 0 or num_steps % validate == 0
        kept = min(kept, num_steps // save + num_steps // validate + (not ends_with_one))
    final = num_trainable * 4 if config.training.method == "lora" else shape.num_parameters * 2
    return Disk(
        checkpoint=checkpoint,
        num_checkpoints=kept,
        final_model=final + 2 * CHECKPOINT_OVERHEAD_BYTES,
        data=data,
    )
