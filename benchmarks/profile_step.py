"""Where the time of one training step goes, against what this machine's matrix products could do.

    python benchmarks/profile_step.py --threads 2

SmolLM2-135M-Instruct, LoRA of rank 16 and full, one micro-batch of 2,048 tokens: eight documents of which the second
half is trained. torch.profiler counts the self time of every operation of warm steps; each goes to one part:

    products       matrix products of layers and adapters
    head           matrix products with the vocabulary
    attention      scores, their softmax, and what they are multiplied with, inside the attention's own record
    element-wise   arithmetic, sums, normalisations, activations
    copies         casts, copies, gathers, fills
    optimizer      clipping and the optimizer's own step
    other          what is left, Python included: wall time that no operation accounts for

The limit: the fastest of several products, of the layers' own shapes and a large square one, in the step's own
precision, in the same process before and after. `floor_s` is what the step's products would take at it, `distance_s`
the seconds of each part above that. Figures of a busy machine say little: both limits should agree.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from halo_forge.config.schema import Config
from halo_forge.models import load_tokenizer
from halo_forge.models.compute import Compute
from halo_forge.models.precision import choose_precision
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import Objective
from halo_forge.train.optimizer import apply_clipped, make_optimizer
from halo_forge.train.session import choose_objective, load_training_model
from halo_forge.train.step import clip_factor

RESULTS = Path(__file__).parent / "results" / "profile.json"
MODEL = "smollm2-135m-instruct"
NUM_TOKENS, NUM_DOCUMENTS = 2048, 8
LORA_RANK, LORA_ALPHA, LEARNING_RATE = 16, 32.0, 2e-5
PARTS = ("products", "head", "attention", "element-wise", "copies", "optimizer", "other")
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmm_", "aten::_scaled_mm"}
PRODUCTS |= {"mkldnn::_linear_pointwise", "aten::mkldnn_linear"}
COPIES = {
    "aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index_select", "aten::index", "aten::embedding",
    "aten::index_put_", "aten::_index_put_impl_", "aten::index_add_", "aten::embedding_dense_backward", "aten::gather",
    "aten::scatter_", "aten::_foreach_copy_", "aten::stack", "aten::repeat_interleave", "aten::constant_pad_nd",
}  # fmt: skip
ATTENTION_NAMES = ("attention", "softmax")
BOOKKEEPING = {
    "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::view", "aten::t", "aten::transpose", "aten::slice",
    "aten::as_strided", "aten::detach", "aten::select", "aten::reshape", "aten::narrow", "aten::expand",
    "aten::resize_",
    "aten::split", "aten::unbind", "aten::permute", "aten::unsqueeze", "aten::squeeze", "aten::item", "aten::to",
    "aten::_local_scalar_dense", "aten::split_with_sizes", "aten::_unsafe_view", "aten::alias", "aten::lift_fresh",
}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A step that can be taken again and again."""

    step: Callable[[], None]
    precision: str
    vocabulary: int
    shapes: list[tuple[int, int]]  # (inputs, outputs) of the linear layers


# ------------------------------------------------------------------------------------------------ the step


def prepare_step(method: str) -> Prepared:
    config = Config.model_validate(
        {
            "model": {"name": MODEL},
            "training": {"method": method, "weight_decay": 0.0},
            "lora": {"r": LORA_RANK, "alpha": LORA_ALPHA, "dropout": 0.0},
        }
    )
    device = torch.device("cpu")
    compute = Compute(device=device, precision=choose_precision("auto", device).name)
    model = load_training_model(config, compute, load_tokenizer(MODEL))
    vocabulary = int(model.config.vocab_size)
    linear = {
        (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and LORA_RANK not in module.weight.shape
        and vocabulary not in module.weight.shape
    }  # fmt: skip
    objective, _ = choose_objective(model, config, compute, batch_of(vocabulary, 16), lambda event, fields: None)
    model.train()
    optimizer = make_optimizer(model.parameters(), config.training)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    batch = batch_of(vocabulary, NUM_TOKENS)
    return Prepared(lambda: take_step(objective, optimizer, batch), compute.precision, vocabulary, sorted(linear))


def batch_of(vocabulary: int, num_tokens: int) -> Batch:
    """Documents of equal length and random tokens: what they say changes no time."""
    import numpy as np

    from halo_forge.chat import Example

    generator = np.random.default_rng(0)
    length = num_tokens // NUM_DOCUMENTS
    weights = np.zeros(length, dtype=np.float32)
    weights[length // 2 :] = 1.0
    return examples_to_batch(
        [
            Example(
                input_ids=generator.integers(3, vocabulary, length, dtype=np.int32), loss_weights=weights,
                conversation_id=str(number),
            )
            for number in range(NUM_DOCUMENTS)
        ]
    )  # fmt: skip


def take_step(objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """What train_step does, with its optimizer's part named for the profiler."""
    objective.refresh()
    loss, _ = objective.nll(batch, batch.weights / float(batch.weights.sum()))
    loss.backward()
    with record_function("part:optimizer"):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        apply_clipped(optimizer, clip_factor(norm, 1.0))
        optimizer.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------ the limit


def product_limit(shapes: list[tuple[int, int]], precision: str, repeats: int = 8) -> float:
    """FLOP/s of the fastest product [2048, inputs] x [inputs, outputs] of these shapes or square, best of `repeats`."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    for inputs, outputs in [*shapes, (NUM_TOKENS, NUM_TOKENS)]:
        left, right = torch.randn(NUM_TOKENS, inputs, dtype=kind), torch.randn(inputs, outputs, dtype=kind)
        for _ in range(repeats):
            started = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2 * NUM_TOKENS * inputs * outputs / (time.perf_counter() - started))
    return best


# ------------------------------------------------------------------------------------------------ the profile


def profiled(step: Callable[[], None], vocabulary: int, num_steps: int) -> dict[str, Any]:
    """Mean seconds of each part over `num_steps`, the wall time beside them, and the products' work."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as recorded:
        started = time.perf_counter()
        for _ in range(num_steps):
            step()
        wall = time.perf_counter() - started
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    work: dict[str, float] = defaultdict(float)
    by_name: dict[tuple[str, str], float] = defaultdict(float)
    for event in recorded.events():
        part = part_of(event, vocabulary)
        seconds[part] += event.self_cpu_time_total / 1e6 / num_steps
        by_name[part, event.name] += event.self_cpu_time_total / 1e6 / num_steps
        if event.name in PRODUCTS:
            work[part] += product_flop(event) / num_steps
    seconds["other"] += max(0.0, wall / num_steps - sum(seconds.values()))
    longest = sorted(by_name.items(), key=lambda named: -named[1])[:15]
    return {
        "wall_s": wall / num_steps,
        "parts_s": seconds,
        "flop": dict(work),
        "longest": [{"part": part, "operation": name, "s": spent} for (part, name), spent in longest],
    }


def part_of(event: Any, vocabulary: int) -> str:
    """The part that the self time of an operation belongs to."""
    above = ancestors(event)
    if any(name == "part:optimizer" for name in above):
        return "optimizer"
    if any(mark in name.lower() for name in above for mark in ATTENTION_NAMES) or event.name == "aten::bmm":
        return "attention"
    if event.name in PRODUCTS:
        return "head" if any(vocabulary in shape for shape in shapes_of(event)) else "products"
    if event.name in COPIES:
        return "copies"
    is_operation = event.name.startswith("aten::") and event.name not in BOOKKEEPING
    return "element-wise" if is_operation else "other"


def ancestors(event: Any) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def shapes_of(event: Any) -> list[list[int]]:
    return [shape for shape in event.input_shapes or [] if shape]


def product_flop(event: Any) -> float:
    """2 x rows x inner x columns, from the shapes of the two factors: what is added to them comes first (addmm), what
    they are written into last (mm.out)."""
    factors = shapes_of(event)["add" in event.name :][:2]
    if len(factors) < 2:
        return 0.0
    return 2.0 * math.prod(factors[0][:-1]) * math.prod(factors[1][-2:])


def explain(found: dict[str, Any], limit: float) -> dict[str, Any]:
    """The step against its products at the limit: where each second above the floor is."""
    in_products = {part: found["flop"].get(part, 0.0) for part in ("products", "head", "attention")}
    floor = {part: flop / limit for part, flop in in_products.items()}
    distance = {part: found["parts_s"][part] - floor.get(part, 0.0) for part in PARTS}
    return {"floor_s": sum(floor.values()), "floor_by_part_s": floor, "distance_s": distance}


def measure(method: str, num_steps: int) -> dict[str, Any]:
    prepared = prepare_step(method)
    for _ in range(2):
        prepared.step()
    before = product_limit(prepared.shapes, prepared.precision)
    unprofiled = []
    for _ in range(num_steps):
        started = time.perf_counter()
        prepared.step()
        unprofiled.append(time.perf_counter() - started)
    found = profiled(prepared.step, prepared.vocabulary, num_steps)
    after = product_limit(prepared.shapes, prepared.precision)
    limit = max(before, after)
    return {
        "precision": prepared.precision, "unprofiled_s": min(unprofiled), "limits_gflops": [before / 1e9, after / 1e9],
        **found, **explain(found, limit),
    }  # fmt: skip


def table(method: str, found: dict[str, Any]) -> str:
    """Markdown: part, seconds, share of the step, rate of its products, seconds above the limit."""
    lines = [f"| {method}: part | s | share | GFLOP/s | s above the limit |", "|---|--:|--:|--:|--:|"]
    for part in PARTS:
        spent, flop = found["parts_s"][part], found["flop"].get(part, 0.0)
        rate = f"{flop / spent / 1e9:.0f}" if flop and spent else ""
        share, above = spent / found["wall_s"], found["distance_s"][part]
        lines.append(f"| {part} | {spent:.3f} | {100 * share:.0f} % | {rate} | {above:.3f} |")
    limits = " and ".join(f"{limit:.0f}" for limit in found["limits_gflops"])
    lines += [
        "",
        f"step {found['wall_s']:.3f} s with the profiler, {found['unprofiled_s']:.3f} s without; its products at the "
        f"limit of {limits} GFLOP/s (before and after): {found['floor_s']:.3f} s",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--steps", type=int, default=3, help="steps timed without the profiler, and as many with it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    methods = {}
    for method in arguments.methods:
        methods[method] = measure(method, arguments.steps)
        print(table(method, methods[method]) + "\n", flush=True)
    settings = {
        "model": MODEL, "tokens": NUM_TOKENS, "documents": NUM_DOCUMENTS, "rank": LORA_RANK,
        "threads": arguments.threads, "cores": os.cpu_count(), "machine": platform.machine(),
        "load": os.getloadavg()[0], "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }  # fmt: skip
    arguments.out.write_text(json.dumps(settings | {"methods": methods}, indent=2) + "\n")


if __name__ == "__main__":
    main()
