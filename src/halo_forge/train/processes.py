"""Several processes over one step: who takes which examples, and how they agree. One process is the same code."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def current_processes() -> Processes:
    """From the launcher's environment through the process group, if one is initialised."""
    if not dist.is_initialized():
        return Processes(rank=0, count=1)
    return Processes(rank=dist.get_rank(), count=dist.get_world_size())


def any_process(value: bool, device: torch.device) -> bool:
    """True if it is on one of the processes: what memory or a signal tells need not be the same on all."""
    if not dist.is_initialized():
        return value
    flag = torch.tensor([int(value)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def from_main(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises on the main process, on every one: they read the same files, which may change
    between two readings, and must not come to two conclusions."""
    if not dist.is_initialized():
        return ask()
    box: list[tuple[Answer | None, Exception | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            box = [(ask(), None)]
        except Exception as error:  # also what nobody foresaw: the others wait for an answer
            box = [(None, error)]
    dist.broadcast_object_list(box)
    [(answer, problem)] = box
    if problem is not None:
        raise problem
    return answer  # type: ignore[return-value]


def share_out(costs: Sequence[float], keys: Sequence[Hashable], num_shares: int) -> list[list[int]]:
    """Positions for each process, so that all take about the same time: costliest first, to whom has the least (Graham
    1969: at most 4/3 of the best). Same input, same shares, in every process.

    keys  of examples with a common prompt, equal: they stay together, to share its work, while that is not more than a
          quarter of a process's part
    """
    if num_shares == 1:
        return [list(range(len(costs)))]
    together: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        together.setdefault(key, []).append(position)
    limit = sum(costs) / num_shares / 4
    units: list[list[int]] = []
    for family in together.values():
        is_small = sum(costs[position] for position in family) <= limit
        units += [family] if is_small else [[position] for position in family]
    units.sort(key=lambda unit: (-sum(costs[position] for position in unit), unit))
    loads = [(0.0, share) for share in range(num_shares)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for unit in units:
        load, share = heapq.heappop(loads)
        shares[share] += unit
        heapq.heappush(loads, (load + sum(costs[position] for position in unit), share))
    return [sorted(share) for share in shares]


def step_cost(num_tokens: int, hidden_size: int) -> float:
    """Of a document, in tokens of a short one: products cost 24 D^2 a token and layer, causal attention 2 N D."""
    return num_tokens * (1 + num_tokens / (12 * hidden_size))
