"""Duplicates by meaning: rows whose sentence embeddings (MiniLM) point the same way. Optional; it needs torch and a
model of 90 MB, and some milliseconds a row.

Likeness is the cosine of sentence embeddings (`models.sentences`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from halo_forge.data.overlap.near_duplicates import NearDuplicates
from halo_forge.models.sentences import load_encoder, sentence_vectors
from halo_forge.runs import Notify, silent

BLOCK_ROWS = 512
BLOCK_COLUMNS = 2**16


def find_semantic(
    text_of: Callable[[int], str],
    eligible: np.ndarray,
    threshold: float,
    notify: Notify = silent,
    model: str | None = None,
) -> NearDuplicates:
    """Which rows go because an earlier row says the same. As in `find_near` every row that goes is like one that stays,
    the earliest such, and takes no other with it; here every pair is compared, none is cut.

    text_of   row -> its `near_text`
    eligible  bool [n]; other rows neither are duplicates nor have any, and are not embedded
    model     directory or Hub id of an embedding model; None is the MiniLM of the package
    Raises UsageError where the model is not on this machine; it names the command that installs it.
    """
    tokenizer, network = load_encoder(model, "duplicates by meaning", "data.semantic_duplicate_threshold: null")
    rows = np.flatnonzero(eligible)
    notify("note", {"text": f"embedding {len(rows)} rows to find duplicates by meaning"})
    vectors = sentence_vectors([text_of(row) for row in rows.tolist()], tokenizer, network)
    of = np.full(len(eligible), -1, np.int64)
    similarity = np.zeros(len(eligible), np.float32)
    alike, cosine = earliest_alike(vectors, threshold)
    matched = np.flatnonzero(alike >= 0)
    of[rows[matched]] = rows[alike[matched]]
    similarity[rows[matched]] = cosine[matched]
    num_pairs = len(rows) * (len(rows) - 1) // 2
    return NearDuplicates(of=of, similarity=similarity, num_compared=num_pairs, num_cut=0)


def earliest_alike(vectors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n], float32 [n]): the earliest row that stays and whose cosine is at least the threshold, or -1; and
    that cosine. vectors: float32 [n, d] of length 1."""
    of = np.full(len(vectors), -1, np.int64)
    similarity = np.zeros(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, len(vectors))
        kept = np.flatnonzero(of[:start] < 0)
        for column in range(0, len(kept), BLOCK_COLUMNS):
            open_rows = start + np.flatnonzero(of[start:end] < 0)
            candidates = kept[column : column + BLOCK_COLUMNS]
            cosines = vectors[open_rows] @ vectors[candidates].T
            alike = cosines >= threshold
            matched = np.flatnonzero(alike.any(1))
            first = alike[matched].argmax(1)
            of[open_rows[matched]] = candidates[first]
            similarity[open_rows[matched]] = cosines[matched, first]
        within = vectors[start:end] @ vectors[start:end].T
        for row in (start + np.flatnonzero(of[start:end] < 0)).tolist():
            alike_here = (within[row - start, : row - start] >= threshold) & (of[start:row] < 0)
            if alike_here.any():
                of[row] = start + int(alike_here.argmax())
                similarity[row] = within[row - start, of[row] - start]
    return of, similarity
