"""pass@k: the chance that one of k samples is right, from n samples of which c are (Chen et al. 2021, arXiv 2107.03374,
equation 1): 1 - C(n-c, k) / C(n, k). Unbiased, unlike 1 - (1 - c/n)^k, which is too low."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """For one prompt. ValueError where k samples cannot be drawn from these."""
    if not 0 <= num_passed <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples, {num_passed} of them passed")
    return float(1 - Fraction(comb(num_samples - num_passed, k), comb(num_samples, k)))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    """Over prompts, each (samples, passed); those with fewer than k samples are left out. None where none is left."""
    values = [pass_at_k(num_samples, num_passed, k) for num_samples, num_passed in counts if num_samples >= k]
    return sum(values) / len(values) if values else None
