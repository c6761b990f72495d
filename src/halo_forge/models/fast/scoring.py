"""Log-likelihoods of continuations: contexts once, however many continuations they have; no padding; few logits.

Axes: N tokens of a row, U positions that predict something, S targets, D width, V vocabulary.

Four endings of one context, or a thousand questions behind the same examples, lie in one row behind what they share
(prefixes.py), as shared answers do in training. The vocabulary's logits are made where a continuation's token is
predicted and nowhere else; the last token of a continuation is never read.

A model that the written-out layers do not cover goes through its own forward pass, padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from halo_forge.models.fast.attention import attention_blocks
from halo_forge.models.fast.decoder import FastDecoder, NotCovered
from halo_forge.models.fast.prefixes import pack_families, shared_layout
from halo_forge.models.fast.row import PackedRow, last_readers
from halo_forge.models.forward import keep_going, language_model, padded_attention

MAX_TOKENS_PER_ROW = 4096
LOGITS_PER_CHUNK = 8_000_000
"""Vocabulary logits held at once: 32 MB in float32."""
PROBE_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Continuation:
    """token_ids[start:] are scored, each given all before it; 1 <= start < len(token_ids)."""

    token_ids: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Likelihood:
    """log_likelihood in nats, summed over the scored tokens; is_greedy: each of them was the most likely one."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class _Row:
    """Continuations laid out together. positions int64 [U]: what predicts; rows int64 [S]: which of them, for each
    target; targets int64 [S]; owner int64 [S]: whose target it is."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    row: PackedRow
    positions: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    owner: torch.Tensor


def score(
    model: torch.nn.Module,
    continuations: Sequence[Continuation],
    *,
    max_tokens_per_row: int = MAX_TOKENS_PER_ROW,
    on_scored: Callable[[int, Likelihood], None] | None = None,
    check: Callable[[], None] = keep_going,
    fast: bool = True,
) -> list[Likelihood]:
    """One Likelihood per continuation, in their order. on_scored(index, likelihood) is called as each is known; check
    before each row, and raises Interrupted to stop. fast False takes the model's own forward pass.

    Raises ValueError for a continuation without context or without tokens."""
    if not all(0 < item.start < len(item.token_ids) for item in continuations):
        raise ValueError("a continuation has no context or no tokens")
    found: list[Likelihood] = [Likelihood(0.0, True)] * len(continuations)
    documents = [np.array(item.token_ids[:-1], np.int64) for item in continuations]
    with torch.no_grad():
        decoder = scoring_decoder(model) if fast and continuations else None
        groups = pack_families(documents, max_tokens_per_row)[0] if decoder else _by_length(documents)
        for group in groups:
            check()
            likelihoods = (
                _score_row(decoder, model, [continuations[index] for index in group])
                if decoder
                else _score_padded(language_model(model), [continuations[index] for index in group])
            )
            for index, likelihood in zip(group, likelihoods, strict=True):
                found[index] = likelihood
                if on_scored is not None:
                    on_scored(index, likelihood)
    return found


def scoring_decoder(model: torch.nn.Module) -> FastDecoder | None:
    """The written-out layers of this model, or None where they do not cover it or do not agree with it."""
    inner: Any = language_model(model)
    try:
        decoder = FastDecoder.of(inner, inner.dtype)
    except NotCovered:
        return None
    for projection in decoder.projections():
        projection.dropout = 0.0
        if any(getattr(layer, "disable_adapters", False) for layer in projection.layers):
            projection.adapters = ()
    size = len(inner.get_output_embeddings().weight)
    probes = [torch.arange(length, device=inner.device) * 37 % size for length in (PROBE_TOKENS, PROBE_TOKENS // 3)]
    with padded_attention(inner):
        agrees = decoder.agrees(inner, probes) and _head_is_plain(inner, probes[0])
    return decoder if agrees else None


def _head_is_plain(model: Any, probe: torch.Tensor) -> bool:
    """Whether the logits are the head applied to the last hidden states, not scaled or capped afterwards."""
    hidden = model.get_decoder()(input_ids=probe[None], use_cache=False).last_hidden_state
    logits = model(input_ids=probe[None], use_cache=False).logits
    return torch.equal(model.get_output_embeddings()(hidden), logits)


def _score_row(decoder: FastDecoder, model: torch.nn.Module, continuations: Sequence[Continuation]) -> list[Likelihood]:
    laid = _lay_out(continuations, language_model(model).device)
    hidden = decoder.hidden(laid.input_ids, laid.position_ids, laid.row, laid.positions)
    num_rows = max(1, LOGITS_PER_CHUNK // len(decoder.head.joint))
    log_likelihoods = torch.empty(len(laid.targets), dtype=torch.float64)
    greedy = torch.empty(len(laid.targets), dtype=torch.bool)
    for start in range(0, len(hidden), num_rows):
        mine = (laid.rows >= start) & (laid.rows < start + num_rows)
        logits = decoder.head(hidden[start : start + num_rows], None, True).float()
        rows, targets = laid.rows[mine] - start, laid.targets[mine]
        log_likelihoods[mine.cpu()] = (logits[rows, targets] - logits.logsumexp(1)[rows]).double().cpu()
        greedy[mine.cpu()] = (logits.argmax(1)[rows] == targets).cpu()
    return _summed(log_likelihoods, greedy, laid.owner, len(continuations))


def _lay_out(continuations: Sequence[Continuation], device: torch.device) -> _Row:
    documents = [np.array(item.token_ids[:-1], np.int64) for item in continuations]
    layout = shared_layout(documents)
    predicts = [row_of[item.start - 1 :] for row_of, item in zip(layout.row_of, continuations, strict=True)]
    positions, rows = np.unique(np.concatenate(predicts), return_inverse=True)
    targets = np.concatenate([np.array(item.token_ids[item.start :], np.int64) for item in continuations])
    owner = np.repeat(np.arange(len(continuations)), [len(places) for places in predicts])
    blocks = attention_blocks(layout.starts, layout.ends, layout.seen)
    row = PackedRow(blocks)
    if device.type != "cpu":
        readers = last_readers(blocks, len(layout.input_ids))
        row.last_readers = None if readers is None else torch.from_numpy(readers).to(device)
    arrays = (layout.input_ids, layout.position_ids, positions, rows.reshape(-1), targets)
    input_ids, position_ids, places, row_of_target, wanted = (torch.from_numpy(a).to(device) for a in arrays)
    return _Row(input_ids, position_ids, row, places, row_of_target, wanted, torch.from_numpy(owner))


def _summed(log_likelihoods: torch.Tensor, greedy: torch.Tensor, owner: torch.Tensor, count: int) -> list[Likelihood]:
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, log_likelihoods).tolist()
    misses = torch.zeros(count, dtype=torch.int64).index_add_(0, owner, (~greedy).long()).tolist()
    return [Likelihood(total, missed == 0) for total, missed in zip(sums, misses, strict=True)]


# ------------------------------------------------------------------------------------------ the model's own pass


def _by_length(documents: Sequence[npt.NDArray[np.int64]], max_tokens: int = 2048) -> Iterator[list[int]]:
    """Groups of at most max_tokens with padding (or one document), longest first: memory peaks at once."""
    group: list[int] = []
    for index in sorted(range(len(documents)), key=lambda index: -len(documents[index])):
        if group and len(documents[group[0]]) * (len(group) + 1) > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _score_padded(model: PreTrainedModel, continuations: Sequence[Continuation]) -> list[Likelihood]:
    """Padded on the right, without a mask: attention is causal, so no token sees the padding behind it."""
    longest = max(len(item.token_ids) for item in continuations) - 1
    input_ids = torch.zeros((len(continuations), longest), dtype=torch.int64)
    for row, item in enumerate(continuations):
        input_ids[row, : len(item.token_ids) - 1] = torch.tensor(item.token_ids[:-1])
    first = min(item.start for item in continuations) - 1
    with padded_attention(model):
        kept = torch.arange(first, longest, device=model.device)
        logits = model(input_ids=input_ids.to(model.device), use_cache=False, logits_to_keep=kept).logits
    found = []
    for row, item in enumerate(continuations):
        wanted = torch.tensor(item.token_ids[item.start :], device=model.device)
        own = logits[row, item.start - 1 - first : len(item.token_ids) - 1 - first].float()
        chosen = own[torch.arange(len(wanted), device=model.device), wanted] - own.logsumexp(1)
        found.append(Likelihood(float(chosen.double().sum()), bool((own.argmax(1) == wanted).all())))
    return found
