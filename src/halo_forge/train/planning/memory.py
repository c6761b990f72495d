"""How much memory each phase of a run will hold, from sizes alone.

Axes: N tokens of a micro-batch, T of one document, S supervised positions, V vocabulary, L layers.

The numbers that were measured stand in one place, `SAVED` and the constants under it. `tests/parity/
test_activation_bytes.py` measures them again on small real models and prints the row to write here when a kernel has
changed what it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halo_forge.models.fast.head import GPU_LOGITS_BYTES, MAX_LOGITS_BYTES
from halo_forge.models.shape import ModelShape

Method = Literal["lora", "full"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBytes:
    """What one token leaves in one layer for the backward pass: bytes for each feature of the hidden state, the
    feed-forward block, the queries, the keys and for each rank of the adapters. Attention weights are not kept.
    `checkpoint`: bytes of a hidden feature where the layer is recomputed."""

    hidden: float
    intermediate: float
    query: float
    key: float
    rank: float = 0.0
    checkpoint: float


SAVED: dict[tuple[Method, Precision], SavedBytes] = {
    ("full", "float32"): SavedBytes(hidden=8, intermediate=8, query=8, key=8, checkpoint=4),
    ("full", "bfloat16"): SavedBytes(hidden=8, intermediate=4, query=4, key=4, checkpoint=4),
    ("lora", "float32"): SavedBytes(hidden=8, intermediate=8, query=8, key=8, rank=28, checkpoint=4),
    ("lora", "bfloat16"): SavedBytes(hidden=8, intermediate=4, query=4, key=4, rank=14, checkpoint=4),
}
"""Of models/fast: bytes of distinct storages that autograd holds at the end of a forward pass (saved_tensors_hooks), as
differences between Llamas that differ in one size."""
DROPOUT_SAVED = SavedBytes(hidden=2, intermediate=1, query=1, key=0, checkpoint=0)
"""What adapters keep on top with dropout: one mask for each input, a byte a feature. Measured alike."""
SLOW_SAVED: dict[tuple[Method, Precision], SavedBytes] = {
    ("full", "float32"): SavedBytes(hidden=24, intermediate=16, query=8, key=8, checkpoint=4),
    ("full", "bfloat16"): SavedBytes(hidden=26, intermediate=8, query=4, key=4, checkpoint=4),
    ("lora", "float32"): SavedBytes(hidden=16, intermediate=16, query=8, key=8, rank=28, checkpoint=4),
    ("lora", "bfloat16"): SavedBytes(hidden=18, intermediate=8, query=4, key=4, rank=14, checkpoint=2),
}
"""Of transformers' own layers, which serve every other family; measured alike on a Llama."""
SLOW_DROPOUT_SAVED: dict[Precision, SavedBytes] = {
    "float32": SavedBytes(hidden=32, intermediate=4, query=4, key=0, checkpoint=0),
    "bfloat16": SavedBytes(hidden=20, intermediate=4, query=4, key=0, checkpoint=0),
}
LOGIT_COPIES = 2
"""[S, V] tensors that live at once in the loss on transformers' layers: logits and their gradient."""
HEAD_COPIES = {"cpu": 1, "cuda": 4}
"""The same of the written-out head, for a chunk of logits: on a GPU also the softmax in float32. By reading
models/fast/head.py."""
LOGIT_CHUNK_ROWS = 128
"""Rows of logits that the loss holds in float32, twice. By reading train/loss.py."""
TOP_BYTES = 2
"""For each token and hidden feature outside the layers: the tables of rotary positions. Measured alike."""
ALLOCATOR_SHARE = {"cpu": 0.15, "cuda": 0.1}
ALLOCATOR_KEPT = 150_000_000
"""Memory that the allocator holds beyond what lives: a share of activations and logits, and, on a CPU, small pieces.
With the memory settings that a command which trains starts itself with (cli/start.py); without them, or with another C
library, a step holds about a quarter more, which its trial shows. Fitted to the table in docs/plan.md."""
PROCESS_BYTES = {"cpu": 550_000_000, "cuda": 600_000_000}
"""CPU: Python, torch, transformers, a tokenizer, the rest of the data stage (450 to 600 MB measured). GPU: the CUDA
context, which `free memory` pays."""
ADAM_BYTES = 8
"""Two moments in float32 for each trained weight."""
EVALUATION_TOKENS = 2048
"""Tokens of one batch of the likelihood measurement (evaluate/heldout.py)."""
EVALUATION_LOGIT_BYTES = 4 * 64_000_000
"""Its chunk of vocabulary logits in float32 and their copies."""
SPARE_CACHE_COLUMNS = 64
"""Tokens of room that the key/value cache keeps (evaluate/kv_cache.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """One micro-batch: N tokens, S supervised positions."""

    num_tokens: int
    num_supervised: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInputs:
    """All that the prediction depends on. `rank` and `dropout` matter for adapters only; process_bytes None = typical.
    prompt_tokens and new_tokens are of the longest question that the evaluation will ask; eval_batch 0 = it is off."""

    shape: ModelShape
    method: Method
    precision: Precision
    device: str
    batch: BatchSize
    recompute: bool = False
    rank: int = 0
    dropout: float = 0.0
    supervised_logits_only: bool = True
    fast_layers: bool = True
    eval_batch: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    process_bytes: int | None = None

    @property
    def itemsize(self) -> int:
        return 2 if self.precision == "bfloat16" else 4

    @property
    def num_trainable(self) -> int:
        if self.method == "full":
            return self.shape.num_parameters - self.shape.frozen
        return self.rank * self.shape.adapted


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of a run and what it holds, in bytes by part. The run needs what its largest phase needs."""

    name: str
    parts: dict[str, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.parts.values())


def predict_memory(inputs: MemoryInputs) -> tuple[Phase, ...]:
    """Phases in the order of a run: training step, validation, saving, evaluation."""
    held = _held(inputs)
    activations, logits = activation_bytes(inputs), logit_bytes(inputs)
    head_gradient = 0
    if inputs.method == "full":  # of the output layer: computed in the compute type, then added in float32
        head_gradient = inputs.shape.head * (inputs.itemsize + 4)
    step = {
        **held,
        "gradients": inputs.num_trainable * 4,
        "activations": activations,
        "logits": logits + head_gradient,
        "allocator": _allocator_bytes(inputs, activations + logits + head_gradient),
    }
    one_layer = layer_bytes(inputs) + round(TOP_BYTES * inputs.shape.hidden * inputs.batch.num_tokens)
    validation = {
        **held,
        "activations": one_layer,
        "logits": logits,
        "allocator": _allocator_bytes(inputs, one_layer + logits),
    }
    phases = [
        Phase(name="training step", parts=_without_zeros(step)),
        Phase(name="validation", parts=_without_zeros(validation)),
        Phase(name="saving", parts=_without_zeros({**held, "copy of the weights": _written_bytes(inputs)})),
    ]
    if inputs.eval_batch:
        phases.append(Phase(name="evaluation", parts=_without_zeros(_evaluation(inputs))))
    return tuple(phases)


def activation_bytes(inputs: MemoryInputs) -> int:
    """What the forward pass of the micro-batch leaves for the backward pass, without the head."""
    shape, tokens = inputs.shape, inputs.batch.num_tokens
    top = TOP_BYTES * shape.hidden * tokens
    if inputs.recompute:
        checkpoints = _saved(inputs).checkpoint * shape.hidden * tokens * shape.num_layers
        return round(top + checkpoints + layer_bytes(inputs))
    return round(top + layer_bytes(inputs) * shape.num_layers)


def _saved(inputs: MemoryInputs) -> SavedBytes:
    return (SAVED if inputs.fast_layers else SLOW_SAVED)[inputs.method, inputs.precision]


def layer_bytes(inputs: MemoryInputs) -> int:
    """The same for one layer without recomputation."""
    shape = inputs.shape
    saved = _saved(inputs)
    token = saved.rank * inputs.rank * shape.adapted_share
    rows = [(saved, 1.0)]
    if inputs.method == "lora" and inputs.dropout:
        dropped = DROPOUT_SAVED if inputs.fast_layers else SLOW_DROPOUT_SAVED[inputs.precision]
        rows.append((dropped, shape.adapted_share))
    for row, share in rows:
        features = row.hidden * shape.hidden + row.intermediate * shape.intermediate
        token += share * (features + row.query * shape.query + row.key * shape.key)
    return round(token * inputs.batch.num_tokens)


def logit_bytes(inputs: MemoryInputs) -> int:
    """Of the loss of one micro-batch."""
    batch, vocabulary = inputs.batch, inputs.shape.vocabulary
    if inputs.fast_layers:
        num_rows = batch.num_supervised if inputs.supervised_logits_only else batch.num_tokens
        most = GPU_LOGITS_BYTES if inputs.device == "cuda" else MAX_LOGITS_BYTES
        return HEAD_COPIES[inputs.device] * min(num_rows * vocabulary * inputs.itemsize, most)
    kept = LOGIT_COPIES * batch.num_supervised
    if not inputs.supervised_logits_only:
        kept += batch.num_tokens
    chunk = 2 * 4 * min(LOGIT_CHUNK_ROWS, batch.num_supervised)
    return (kept * inputs.itemsize + chunk) * vocabulary


def weight_bytes(inputs: MemoryInputs) -> int:
    """Full: float32 masters. Adapters: a frozen base in the compute type, float32 beside it."""
    if inputs.method == "full":
        return inputs.shape.num_parameters * 4
    return inputs.shape.num_parameters * inputs.itemsize + inputs.num_trainable * 4


def _held(inputs: MemoryInputs) -> dict[str, int]:
    """What stays from the first step to the last."""
    typical = PROCESS_BYTES[inputs.device]
    working_copy = 0
    if inputs.method == "full" and inputs.precision == "bfloat16":
        working_copy = 2 * (inputs.shape.active + inputs.shape.head)
    return {
        "process": typical if inputs.process_bytes is None else inputs.process_bytes,
        "weights": weight_bytes(inputs),
        "bfloat16 copy": working_copy,
        "optimizer": ADAM_BYTES * inputs.num_trainable,
    }


def _allocator_bytes(inputs: MemoryInputs, passing: int) -> int:
    """`passing`: bytes that come and go with a batch. A small model never fills what glibc would keep."""
    share = round(ALLOCATOR_SHARE[inputs.device] * passing)
    if inputs.device == "cuda":
        return share
    return share + min(ALLOCATOR_KEPT, 2 * (passing + weight_bytes(inputs)))


def _written_bytes(inputs: MemoryInputs) -> int:
    """final_model/ of a full run is cast to its file type and read back. Checkpoints are written from where they lie;
    from a GPU they pass through the machine's memory, not the GPU's."""
    return inputs.shape.num_parameters * 4 if inputs.method == "full" and inputs.device == "cpu" else 0


def _evaluation(inputs: MemoryInputs) -> dict[str, int]:
    """Base and tuned model answer in the compute type; gradients and optimizer are gone by then."""
    shape, item = inputs.shape, inputs.itemsize
    columns = inputs.prompt_tokens + inputs.new_tokens + SPARE_CACHE_COLUMNS
    if shape.max_positions is not None:
        columns = min(columns, shape.max_positions + SPARE_CACHE_COLUMNS)
    cache = 2 * shape.num_layers * shape.key * columns * inputs.eval_batch * item
    read_at_once = max(inputs.eval_batch * inputs.prompt_tokens, EVALUATION_TOKENS)
    reading = read_at_once * (4 * shape.hidden + 3 * shape.intermediate + 3 * shape.query) * item
    scores = inputs.eval_batch * inputs.prompt_tokens**2 * 4  # the mask of a padded batch
    logits = inputs.eval_batch * shape.vocabulary * 4 + EVALUATION_LOGIT_BYTES
    typical = PROCESS_BYTES[inputs.device]
    return {
        "process": typical if inputs.process_bytes is None else inputs.process_bytes,
        "weights": (shape.num_parameters + (inputs.num_trainable if inputs.method == "lora" else 0)) * item,
        "key/value cache": cache,
        "reading prompts": reading + scores,
        "logits": logits,
        "allocator": _allocator_bytes(inputs, reading + scores + logits),
    }


def _without_zeros(parts: dict[str, int]) -> dict[str, int]:
    return {name: num_bytes for name, num_bytes in parts.items() if num_bytes}
