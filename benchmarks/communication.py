"""What several processes cost on paper: bytes that each GPU sends in a step, and the time that computing cannot hide.

    python benchmarks/communication.py            a table for 8 to 1,024 GPUs
    python benchmarks/communication.py --json

A model, not a measurement: no cluster was at hand. Its parts are the message counts of train/step.py and
train/sharding.py, ring collectives (Patarasuk and Yuan 2009: (n - 1) / n of the bytes leave each GPU, in n - 1 hops),
and the speeds below, which are the makers' figures times what is usually reached.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

GPUS_PER_NODE = 8
COMPUTE_FLOPS = 0.45 * 989e12
"""bfloat16 on one H100: 45 % of the maker's figure, what good trainings of dense models reach."""
NVLINK_BYTES_S, NETWORK_BYTES_S = 0.75 * 450e9, 0.8 * 50e9
"""From one GPU to the next in its node (NVLink 4), and to another node (one 400 Gb/s port for each GPU)."""
NVLINK_HOP_S, NETWORK_HOP_S = 3e-6, 8e-6
TOKENS = 8192
"""Of one micro-batch on each GPU; one micro-batch a step."""


@dataclass(frozen=True, slots=True)
class Training:
    """num_weights, of which num_trained take a gradient; group: GPUs that share one copy of the model (None = all),
    whose layers are gathered one by one; 1 = a copy on each."""

    name: str
    num_weights: float
    num_trained: float
    num_layers: int
    group: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    training: str
    num_gpus: int
    sent_gb: float
    compute_s: float
    exposed_s: float
    memory_gb: float

    @property
    def efficiency(self) -> float:
        return self.compute_s / (self.compute_s + self.exposed_s)


TRAININGS = (
    Training("8B LoRA, a copy on each GPU", 8.0e9, 42e6, 32, 1),
    Training("8B full, sharded over all", 8.0e9, 8.0e9, 32, None),
    Training("8B full, sharded over 8", 8.0e9, 8.0e9, 32, 8),
    Training("70B LoRA, sharded over all", 70.6e9, 207e6, 80, None),
    Training("70B LoRA, sharded over 8", 70.6e9, 207e6, 80, 8),
    Training("70B full, sharded over all", 70.6e9, 70.6e9, 80, None),
    Training("70B full, sharded over 32", 70.6e9, 70.6e9, 80, 32),
)


def collective_s(num_bytes: float, num_gpus: int, in_one_node: int = GPUS_PER_NODE) -> float:
    """One ring all-gather or reduce-scatter of so many bytes in all."""
    bandwidth = NVLINK_BYTES_S if num_gpus <= in_one_node else NETWORK_BYTES_S
    nodes = max(1, num_gpus // in_one_node)
    hops_s = (num_gpus - nodes) * NVLINK_HOP_S + (nodes - 1) * NETWORK_HOP_S
    return num_bytes * (num_gpus - 1) / num_gpus / bandwidth + hops_s


def cost(training: Training, num_gpus: int) -> Cost:
    passes = 6 if training.num_trained == training.num_weights else 4  # a frozen weight takes no gradient of its own
    compute_s = passes * training.num_weights * TOKENS / COMPUTE_FLOPS
    group = min(training.group or num_gpus, num_gpus)
    share, copies = (group - 1) / group, num_gpus // group
    gradient_bytes = 4 * training.num_trained
    if group == 1:
        # One all-reduce after the last micro-batch, which nothing hides: a reduce-scatter and an all-gather.
        exposed_s = 2 * collective_s(gradient_bytes, num_gpus)
        memory = 2 * training.num_weights + 16 * training.num_trained
        sent = 2 * gradient_bytes * (num_gpus - 1) / num_gpus
        return Cost(training.name, num_gpus, sent / 1e9, compute_s, exposed_s, memory / 1e9)
    weight_bytes = 2 * training.num_weights
    layer_s = collective_s(weight_bytes / training.num_layers, group)
    reduce_s = collective_s(gradient_bytes / training.num_layers, group)
    # Copies join their parts of the gradient over the network, each GPU with its like in every other group.
    joined_bytes = gradient_bytes / group
    reduce_s += 2 * collective_s(joined_bytes / training.num_layers, copies, in_one_node=1) if copies > 1 else 0.0
    forward_s, backward_s = compute_s / (passes / 2), compute_s * (1 - 2 / passes)
    # Messages run beside the neighbouring layer's products; the first gather and the last sum have none beside them.
    late_s = max(0.0, training.num_layers * layer_s - forward_s)
    late_s += max(0.0, training.num_layers * (layer_s + reduce_s) - backward_s)
    held = 12 * training.num_trained + (2 * training.num_weights if passes == 4 else 4 * training.num_weights)
    return Cost(
        training=training.name,
        num_gpus=num_gpus,
        sent_gb=((2 * weight_bytes + gradient_bytes) * share + 2 * joined_bytes * (copies - 1) / copies) / 1e9,
        compute_s=compute_s,
        exposed_s=layer_s + reduce_s + late_s,
        memory_gb=(held / group + 3 * weight_bytes / training.num_layers) / 1e9,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    costs = [cost(training, num_gpus) for training in TRAININGS for num_gpus in (8, 64, 256, 1024)]
    if parser.parse_args().json:
        print(json.dumps([asdict(one) | {"efficiency": one.efficiency} for one in costs], indent=2))
        return
    print("| training | GPUs | each sends | computing | not hidden | efficiency | weights and states on each |")
    print("|---|---|---|---|---|---|---|")
    for one in costs:
        sizes = f"| {one.training} | {one.num_gpus:,} | {one.sent_gb:.3g} GB | {one.compute_s:.2f} s "
        print(f"{sizes}| {one.exposed_s:.3f} s | {one.efficiency:.0%} | {one.memory_gb:.1f} GB |")


if __name__ == "__main__":
    main()
