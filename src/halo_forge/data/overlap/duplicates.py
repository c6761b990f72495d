"""Exact duplicates: rows whose prompt and answer have the same plain form.

Workers make the keys, batch by batch; `find_exact` decides over all rows. Of equal rows the first stays: rows are
numbered in the order of the sources in the configuration, then of their files' names, then of their lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ANSWER_START = b"\x1f"  # white space to str.split(), so never in a plain text


def exact_keys(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """uint64 [n, 2]: 128 bits of BLAKE2b over plain prompt (with its system part) and plain answer. Nobody can write
    two different rows with one key."""
    digests = [
        hashlib.blake2b(prompt.encode() + ANSWER_START + answer.encode(), digest_size=16).digest()
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def find_exact(exact: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """int64 [n]: the first row with the same key, or -1 for rows that are the first of theirs or not eligible.

    exact     uint64 [n, 2] of `exact_keys`
    eligible  bool [n]; other rows neither are copies nor have any
    """
    first = np.full(len(exact), -1, np.int64)
    rows = np.flatnonzero(eligible)
    if not len(rows):
        return first
    order = rows[np.lexsort((exact[rows, 1], exact[rows, 0]))]  # stable: equal keys stay in row order
    keys = exact[order]
    is_start = np.ones(len(order), bool)
    is_start[1:] = (keys[1:] != keys[:-1]).any(1)
    leader = order[np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))]
    first[order[~is_start]] = leader[~is_start]
    return first
