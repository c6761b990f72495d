"""What training rows must not repeat: the benchmarks of data.decontaminate and the holdout file."""

from __future__ import annotations

from dataclasses import replace

from halo_forge.config.schema import DataSection
from halo_forge.data.overlap.benchmark_items import Benchmark, load_benchmark, load_benchmarks

HOLDOUT = "holdout"


def benchmarks_of(data: DataSection) -> list[Benchmark]:
    """Raises DataError for a benchmark that is not on this machine."""
    found = list(load_benchmarks(data.decontaminate))
    if data.holdout_file:
        found.append(replace(load_benchmark(data.holdout_file), name=HOLDOUT))
    return found
