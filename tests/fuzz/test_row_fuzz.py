"""The fuzz target runs, and a long run of it (`make soak`) finds nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuzz.fuzz_rows import fuzz

SOAK_S = float(os.environ.get("HALO_FORGE_SOAK_S", "600"))


def broken_rules(seconds: float, seed: int, directory: Path) -> tuple[int, list[str]]:
    """(inputs tried, tracebacks)."""
    traces: list[str] = []
    num_runs, _ = fuzz(seconds, seed, directory, lambda data, trace: traces.append(f"{data[:200]!r}\n{trace}"))
    return num_runs, traces


def test_the_target_runs(tmp_path: Path) -> None:
    num_runs, traces = broken_rules(3, 0, tmp_path)
    assert num_runs > 20
    assert not traces, traces[0]


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_S + 60)
def test_a_long_run_finds_nothing(tmp_path: Path) -> None:
    """Another seed every time, named in the message, so that what is found can be found again."""
    seed = int(os.environ.get("HALO_FORGE_SOAK_SEED", str(os.getpid())))
    num_runs, traces = broken_rules(SOAK_S, seed, tmp_path)
    print(f"{num_runs} inputs in {SOAK_S:g} s, seed {seed}")
    assert not traces, f"seed {seed}, {len(traces)} of {num_runs}: {traces[0]}"
