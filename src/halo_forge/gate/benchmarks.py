"""Published benchmarks by name, what guessing scores on them, and when a score of 0 means that the benchmark broke.

A benchmark is broken when its number tells about the measurement and not about the model:

1. whoever ran it says so: status `failed`, for instance when no item ran or no answer could be extracted;
2. its score is exactly 0 where guessing alone would score more: with chance c and n items a guesser gets all of them
   wrong with probability (1 - c)^n, and below one in a thousand that is no model's doing;
3. both models score exactly 0: then nothing can be lost, and "no worse than before" holds for whatever broke too.

1 and 2 decide nothing about any rule. 3 keeps a rule on a change from passing; it may still fail.
"""

from __future__ import annotations

import re

from halo_forge.artifacts import Measurement
from halo_forge.metrics import BENCH_PREFIX

CHANCE = {
    "mmlu": 0.25, "mmlu_pro": 0.1, "hellaswag": 0.25, "truthfulqa_mc1": 0.2, "arc_easy": 0.25, "arc_challenge": 0.25,
    "winogrande": 0.5, "piqa": 0.5, "boolq": 0.5, "openbookqa": 0.25, "commonsense_qa": 0.2, "sciq": 0.25, "copa": 0.5,
    "gsm8k": 0.0, "humaneval": 0.0, "mbpp": 0.0, "ifeval": 0.0, "truthfulqa": 0.0,
}  # fmt: skip
"""Benchmark -> share of items that guessing gets right; 0 where answers are generated. truthfulqa alone may be mc1, mc2
or generated, so nothing is said about it."""
BROKEN_BELOW_PROBABILITY = 1e-3


def benchmark_of(metric: str) -> str | None:
    """The published benchmark of a metric of `bench run`: of bench.mmlu, bench.mmlu_stem, bench.gsm8k.exact_match. None
    for any other metric, whatever a user calls it."""
    if not metric.startswith(BENCH_PREFIX):
        return None
    parts = re.split(r"[_./:@,]", metric.removeprefix(BENCH_PREFIX))
    names = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in CHANCE), None)


def why_broken(measured: Measurement) -> str | None:
    """Why this score of 0 is the benchmark's own fault, or None."""
    benchmark = benchmark_of(measured.metric)
    if benchmark is None or measured.value != 0 or measured.direction != "higher":
        return None
    chance = CHANCE[benchmark]
    if not chance or (1 - chance) ** measured.n >= BROKEN_BELOW_PROBABILITY:
        return None
    return (
        f"{measured.metric} is 0 on {measured.n} items where guessing gets {chance:.0%} right: the benchmark broke, "
        "it does not say how good the model is"
    )


def nothing_to_lose(reference: Measurement, tuned: Measurement) -> bool:
    """Whether both scores are exactly 0 where more is better."""
    return tuned.direction == "higher" and tuned.value == 0 and reference.value == 0
