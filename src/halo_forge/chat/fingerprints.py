"""Hashes of what turns text into ids. They depend on content alone, never on where it lies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from halo_forge.runs import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the chat template (or of all of them, where a tokenizer has several; of null, where it has none)."""
    return sha256_json(tokenizer.chat_template)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of vocabulary, merges, normaliser, pre-tokeniser and special tokens of a fast tokenizer.

    Truncation and padding are left out: they are settings of a call, and transformers changes them as it goes."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["truncation"] = spec["padding"] = None
    return sha256_json([spec, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}])
