"""One real step before the first: the largest micro-batch, forward and backward, with gradients that are thrown away.

It is `train_step` itself, with an optimizer that looks instead of stepping, so that what is tried is what will run.
Weights, optimizer and random state come out bit for bit as they went in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from halo_forge.chat import Example
from halo_forge.models.compute import release_memory
from halo_forge.models.machine import resident_bytes
from halo_forge.train.batches import examples_to_batch
from halo_forge.train.session import Session
from halo_forge.train.sharding import local
from halo_forge.train.step import train_step

SAMPLE_EVERY_S = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """grown_bytes: most memory beyond what was held before; without_gradient: names of trainable tensors that
    none reached; loss is that of the micro-batch, in nats per supervised token."""

    num_tokens: int
    num_supervised: int
    loss: float
    grown_bytes: int
    time_s: float
    without_gradient: tuple[str, ...]
    all_zero: bool


class Onlooker(torch.optim.Optimizer):
    """Stands in the optimizer's place and changes nothing; sees every gradient at the moment it is complete."""

    def __init__(self, names: dict[torch.nn.Parameter, str]) -> None:
        super().__init__(list(names), {"lr": 0.0})
        self.names = names
        self.without_gradient: list[str] = []
        self.all_zero = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter, name in self.names.items():
            if parameter.grad is None:
                self.without_gradient.append(name)
            elif self.all_zero and bool(local(parameter.grad).any()):
                self.all_zero = False


def trial_step(session: Session, examples: Sequence[Example]) -> Trial:
    """Run the step of one micro-batch and throw its gradients away. Raises torch.OutOfMemoryError where it is."""
    batch = examples_to_batch(examples, trim=session.config.training.skip_unread, media_inputs=session.media_inputs)
    onlooker = Onlooker(session.parameter_names)
    with left_unchanged(session), peak_memory(session.compute.device) as peak:
        started = time.perf_counter()
        result = train_step(session.objective, onlooker, [batch], 0.0, session.config.training.max_grad_norm)
        if session.compute.device.type == "cuda":
            torch.cuda.synchronize(session.compute.device)
        time_s = time.perf_counter() - started
    release_memory(session.compute.device)
    return Trial(
        num_tokens=batch.num_tokens,
        num_supervised=len(batch.targets),
        loss=result.loss,
        grown_bytes=peak.grown_bytes,
        time_s=time_s,
        without_gradient=tuple(onlooker.without_gradient),
        all_zero=onlooker.all_zero,
    )


@contextmanager
def left_unchanged(session: Session) -> Iterator[None]:
    """Random state, buffers, gradients and training mode are on the way out what they were on the way in. Weights are
    the caller's: a copy of them is memory that only some need to spend."""
    model, device = session.model, session.compute.device
    # A module may put another tensor in a buffer's place, so the tensors themselves are kept beside their values.
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    # Rotary embeddings that grow with the longest row seen keep how far they have grown beside their buffer.
    grown = {m: m.max_seq_len_cached for m in model.modules() if hasattr(m, "max_seq_len_cached")}
    was_training = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for parameter in session.parameter_names:
                parameter.grad = None
            for module, name, buffer, values in buffers:
                buffer.copy_(values)
                setattr(module, name, buffer)
            for module, length in grown.items():
                module.max_seq_len_cached = length
            model.train(was_training)


@dataclass(slots=True)
class Peak:
    """grown_bytes is valid after the block."""

    before: int
    most: int = field(default=0)

    @property
    def grown_bytes(self) -> int:
        return max(0, self.most - self.before)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most memory held inside the block: the GPU allocator's count, or resident memory sampled beside the work."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(before=torch.cuda.memory_allocated(device))
        yield peak
        peak.most = torch.cuda.max_memory_allocated(device)
        return
    peak, stop = Peak(before=resident_bytes()), threading.Event()
    sampler = threading.Thread(target=_sample, args=(peak, stop.is_set), daemon=True, name="memory")
    sampler.start()
    try:
        yield peak
    finally:
        stop.set()
        sampler.join()


def _sample(peak: Peak, is_over: Callable[[], bool]) -> None:
    while not is_over():
        peak.most = max(peak.most, resident_bytes())
        time.sleep(SAMPLE_EVERY_S)
    peak.most = max(peak.most, resident_bytes())
