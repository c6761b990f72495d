"""Budgets that hold on any machine: a piece of work is compared with a known one, never with a clock alone."""

from __future__ import annotations

import time
from collections.abc import Callable

PAIRS = 8


def times_as_long(work: Callable[[], object], reference: Callable[[], object]) -> float:
    """CPU time of `work` over that of `reference`: the least of interleaved pairs, since neighbours only add to it."""
    return min(_cpu_s(work) / _cpu_s(reference) for _ in range(PAIRS))


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
