"""The loss of each source: what a mix learns and what it does not, from the nll that every target has anyway."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from halo_forge.train.batches import Batch


@dataclass(frozen=True, slots=True)
class LossSums:
    """Name of a source -> (sum of weight * nll in nats, weight, number of targets); "" is one without a name."""

    sums: dict[str, tuple[float, float, float]]

    @property
    def mean(self) -> float:
        """Over all sources, in nats per unit of weight."""
        return sum(total for total, _, _ in self.sums.values()) / sum(weight for _, weight, _ in self.sums.values())

    def by_source(self) -> dict[str, dict[str, float | int]]:
        """For metrics.jsonl; empty where there is one source."""
        if len(self.sums) < 2:
            return {}
        return {
            name or "other": {"loss": total / weight, "num_supervised_tokens": int(count)}
            for name, (total, weight, count) in sorted(self.sums.items())
            if weight
        }


@dataclass(slots=True)
class LossCounter:
    """Collects without asking the device; `over_processes` does, once."""

    _parts: list[tuple[tuple[str, ...], torch.Tensor]] = field(default_factory=list)

    def add(self, batch: Batch, nll: torch.Tensor) -> None:
        """nll [S] of the batch's targets."""
        columns = torch.stack([nll.double() * batch.weights, batch.weights.double(), torch.ones_like(nll).double()])
        sums = columns.new_zeros(3, len(batch.sources)).index_add_(1, batch.source_of, columns)
        self._parts.append((batch.sources, sums))

    def over_processes(self) -> LossSums:
        """Joined with those of the other processes, the same in all of them."""
        mine = [(names, sums.T.tolist()) for names, sums in self._parts]
        gathered = [mine]
        if dist.is_initialized():
            gathered = [[]] * dist.get_world_size()
            dist.all_gather_object(gathered, mine)
        sums: dict[str, tuple[float, float, float]] = {}
        for parts in gathered:
            for names, rows in parts:
                for name, (total, weight, count) in zip(names, rows, strict=True):
                    known = sums.get(name, (0.0, 0.0, 0.0))
                    sums[name] = (known[0] + total, known[1] + weight, known[2] + count)
        return LossSums(sums)
