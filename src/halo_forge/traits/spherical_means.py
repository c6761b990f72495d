"""k-means on the sphere (Dhillon and Modha 2001), without any chance in it.

m vectors of length 1    d their width    k centres
"""

from __future__ import annotations

import numpy as np

NUM_ROUNDS = 12


def spherical_means(vectors: np.ndarray, num: int) -> np.ndarray:
    """float [k, d]: the middles of at most `num` groups of vectors [m, d], started from rows that lie far from each
    other (Gonzalez 1985)."""
    chosen = [int(cosine_distances(vectors, vectors.mean(0, keepdims=True))[:, 0].argmin())]
    while len(chosen) < num:
        chosen.append(int(cosine_distances(vectors, vectors[chosen]).min(1).argmax()))
    centres = vectors[chosen]
    for _ in range(NUM_ROUNDS):
        nearest = cosine_distances(vectors, centres).argmin(1)
        sums = np.stack([vectors[nearest == place].sum(0) for place in range(num)])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), centres)
    return np.asarray(centres)


def cosine_distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """float [m, k]: 1 - cosine, for vectors of length 1."""
    return np.asarray(1 - vectors @ centres.T.astype(np.float64))
