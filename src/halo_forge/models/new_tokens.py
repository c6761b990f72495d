"""New tokens: into the tokenizer, and rows for them into the embeddings.

A new row starts as the mean of the rows that there were (Hewitt 2021): with random rows every prediction would begin
with new tokens that look likely; with the mean, no old token's probability falls by more than a factor of
1 + new / old.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.chat.tool_format import apply_tool_format
from halo_forge.config.schema import ModelSection
from halo_forge.errors import UsageError
from halo_forge.models.load import load_tokenizer
from halo_forge.models.quiet import quiet_transformers
from halo_forge.runs import Notify, silent


def tokenizer_of(model: ModelSection, notify: Notify = silent) -> PreTrainedTokenizerBase:
    """The tokenizer of the configured model with its new tokens and the wanted way to write tools. Raises
    ModelNotFound, UsageError."""
    tokenizer = load_tokenizer(model.name, model.revision, notify=notify)
    if apply_tool_format(tokenizer, model.tool_format) and model.tool_format == "auto":
        notify("note", {"text": "the chat template knows no tools; they are written in tool_call tags from here on"})
    add_tokens(tokenizer, model.add_tokens, special=False)
    add_tokens(tokenizer, model.add_special_tokens, special=True)
    return tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, special: bool) -> None:
    """Append tokens in the given order. Raises UsageError for one that the tokenizer already has."""
    key = "model.add_special_tokens" if special else "model.add_tokens"
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise UsageError(f"{token!r} is already a token of this model", where=key, fix="remove it from the list")
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])


def new_token_ids(tokenizer: PreTrainedTokenizerBase, model: ModelSection) -> list[int]:
    """Ids of the configured new tokens in a tokenizer that has them."""
    return [tokenizer.convert_tokens_to_ids(token) for token in (*model.add_tokens, *model.add_special_tokens)]


def add_rows(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Give each new token a row of its own in the embeddings and in the output layer: the mean of the rows of all
    tokens before them, taken in float32. Padding rows that a model already has are used first."""
    if not token_ids:
        return
    num_old = min(token_ids)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    if max(token_ids) >= ends[0].weight.shape[0]:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(max(token_ids) + 1, mean_resizing=False)
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    seen: set[int] = set()
    with torch.no_grad():
        for end in ends:
            for tensor in (end.weight, getattr(end, "bias", None)) if end is not None else ():
                if tensor is not None and tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    tensor[list(token_ids)] = tensor[:num_old].float().mean(0).to(tensor.dtype)
