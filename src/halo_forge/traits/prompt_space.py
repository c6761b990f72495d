"""Where the prompts of a release lie: what a window of production is held against, as sums and centres, never as rows.

m  prompts of the release    d  width of a vector    k  topics    f  features of the kernel mean
Two views of the same vectors. The kernel mean (random Fourier features of a Gaussian kernel: Rahimi and Recht 2007)
sees any change of the distribution; its distance is the maximum mean discrepancy (Gretton et al. 2012), and the
spread that chance gives it is described by three traces of the features' covariance. The topics see where the change
is: half of the prompts find the centres, the other half, which the centres have not seen, is counted at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from halo_forge.artifacts import Record
from halo_forge.traits.spherical_means import cosine_distances, spherical_means

MIN_PROMPTS = 40
ROWS_PER_TOPIC = 25
MAX_TOPICS = 12
NUM_FREQUENCIES = 64
FAR_SHARE = 0.05
"""Share of prompts that lie far from every centre when nothing has changed."""
FIXED_POINT = 4096
"""Features are summed as whole numbers, so that a sum is the same in whatever portions it was taken."""


class PromptSpace(Record):
    """`far_held` of the `num_held` prompts lie farther than `radius` (1 - cosine) from every centre. `feature_sums` are
    over all `num_rows` prompts, times FIXED_POINT. `traces`: of the covariance C of the features tr C, tr C^2, tr C^3.
    """

    kind: str
    num_rows: int
    num_held: int
    centres: tuple[tuple[float, ...], ...]
    topic_counts: tuple[int, ...]
    radius: float
    far_held: int
    bandwidth: float
    feature_sums: tuple[int, ...]
    traces: tuple[float, float, float]


def fit_prompt_space(vectors: np.ndarray, kind: str) -> PromptSpace | None:
    """`vectors` float32 [m, d] of length 1. None with fewer than MIN_PROMPTS."""
    if len(vectors) < MIN_PROMPTS:
        return None
    order = np.random.default_rng(0).permutation(len(vectors))
    half = len(vectors) // 2
    num_topics = max(1, min(MAX_TOPICS, half // ROWS_PER_TOPIC))
    centres = np.round(spherical_means(vectors[order[:half]], num_topics), 4)
    held = vectors[order[half:]]
    distances = np.sort(cosine_distances(held, centres).min(1))
    far_held = max(1, round(FAR_SHARE * (len(held) + 1)) - 1)
    bandwidth = _median_distance(vectors[order[:500]])
    exact = features(vectors, bandwidth)
    covariance = np.cov(exact.T / FIXED_POINT)
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), 0)
    return PromptSpace(
        kind=kind,
        num_rows=len(vectors),
        num_held=len(held),
        centres=tuple(tuple(map(float, centre)) for centre in centres),
        topic_counts=_counts(cosine_distances(held, centres).argmin(1), len(centres)),
        radius=float(distances[len(held) - 1 - far_held]),
        far_held=far_held,
        bandwidth=bandwidth,
        feature_sums=tuple(exact.sum(0).tolist()),
        traces=(float(eigenvalues.sum()), float((eigenvalues**2).sum()), float((eigenvalues**3).sum())),
    )


def place(vectors: np.ndarray, space: PromptSpace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features int64 [n, f], nearest centre [n], whether it is far from every centre [n])."""
    distances = cosine_distances(vectors, np.array(space.centres))
    return features(vectors, space.bandwidth), distances.argmin(1), distances.min(1) > space.radius


def features(vectors: np.ndarray, bandwidth: float) -> np.ndarray:
    """int64 [n, f]: cosine and sine at random frequencies, scaled so that inner products are the Gaussian kernel."""
    angles = vectors.astype(np.float64) @ _frequencies(vectors.shape[1]) / bandwidth
    waves = np.concatenate([np.cos(angles), np.sin(angles)], 1) / np.sqrt(NUM_FREQUENCIES)
    return np.asarray(np.rint(waves * FIXED_POINT), np.int64)


@lru_cache(maxsize=4)
def _frequencies(width: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((width, NUM_FREQUENCIES))


def _median_distance(vectors: np.ndarray) -> float:
    squares = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    pairs = np.sqrt(squares[np.triu_indices(len(vectors), 1)])
    return max(float(np.median(pairs)), 1e-3)


def _counts(topics: Sequence[int] | np.ndarray, num: int) -> tuple[int, ...]:
    return tuple(np.bincount(np.asarray(topics, np.int64), minlength=num).tolist())
