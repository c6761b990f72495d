"""Likelihood of held-out answers: nats per supervised token, for each example by itself.

Axes: B examples of a batch, T tokens of the longest, S supervised positions, D hidden size, V vocabulary.

Right-padded batches of similar lengths and no mask: attention is causal, so no token ever sees the padding after it,
and an example's number does not depend on what shares its batch. Vocabulary logits are computed at the S supervised
positions alone, a chunk at a time, in float32 from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from halo_forge.chat.records import Example
from halo_forge.domains.documents import documents
from halo_forge.domains.media import Media
from halo_forge.models.forward import Precision, computing_in, keep_going, language_model, padded_attention

LOGITS_PER_CHUNK = 16_000_000
"""Vocabulary logits held at once: 64 MB in float32."""
PROBE_TOKENS = 4


def answer_nll(
    model: torch.nn.Module,
    examples: Sequence[Example],
    *,
    max_tokens_per_batch: int = 2048,
    precision: Precision = "float32",
    on_batch: Callable[[list[int], npt.NDArray[np.float64]], None] | None = None,
    check: Callable[[], None] = keep_going,
    media: Media | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(nll_sum float64 [N] in nats, num_tokens int64 [N]) over the supervised tokens of each example.

    Every token with a positive loss weight counts once: weights steer training, not measurement. A batch holds at
    most max_tokens_per_batch tokens with padding (a longer example is a batch by itself). on_batch(indices, nll_sums)
    is called after each batch; check is called before each and raises Interrupted to stop.
    """
    inner = language_model(model)
    nll_sums = np.zeros(len(examples), dtype=np.float64)
    num_tokens = np.array([example.num_supervised_tokens for example in examples], dtype=np.int64)
    with torch.no_grad(), padded_attention(inner), computing_in(precision, inner):
        head_is_plain = bool(examples) and media is None and logits_are_head_of_hidden(inner, examples[0])
        for indices in batches_by_length([len(example.input_ids) for example in examples], max_tokens_per_batch):
            check()
            batch = [examples[index] for index in indices]
            if media is not None:
                sums = _nll_with_media(model, batch, media)
            elif head_is_plain:
                sums = _batch_nll(inner, batch)
            else:
                sums = [_single_nll(inner, example) for example in batch]
            nll_sums[indices] = sums
            if on_batch is not None:
                on_batch(indices, nll_sums[indices])
    return nll_sums, num_tokens


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that longest x count <= max_tokens; longest first, so that memory peaks at once."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = max(longest, lengths[index])
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def _nll_with_media(model: torch.nn.Module, batch: Sequence[Example], media: Media) -> list[float]:
    """What the model's domain computes, for all at once where it keeps documents of one row apart."""
    device = language_model(model).device
    sums: list[float] = []
    for group in [batch] if media.packs else [[example] for example in batch]:
        row = documents(group, media, device)
        nll = token_nll(media.logits(model, row), row.targets)
        sums += [float(part.sum()) for part in nll.split([example.num_supervised_tokens for example in group])]
    return sums


def _batch_nll(model: PreTrainedModel, batch: Sequence[Example]) -> Sequence[float]:
    """nll sums [B]: hidden states of the whole batch, logits of its supervised positions."""
    sums = torch.zeros(len(batch), dtype=torch.float64, device=model.device)
    for rows, targets, logits in batch_logits(model, batch):
        sums.index_add_(0, rows, token_nll(logits, targets))
    return sums.tolist()


def batch_logits(
    model: PreTrainedModel, batch: Sequence[Example]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(example of the batch, target, logits [., V]) of its supervised positions, a chunk at a time, in their order."""
    device = model.device
    input_ids = torch.zeros((len(batch), max(len(example.input_ids) for example in batch)), dtype=torch.int64)
    rows, positions = [], []
    for row, example in enumerate(batch):
        input_ids[row, : len(example.input_ids)] = torch.from_numpy(example.input_ids.astype(np.int64))
        supervised = np.flatnonzero(example.loss_weights > 0)
        rows.append(np.full(len(supervised), row))
        positions.append(supervised)
    row_of = torch.from_numpy(np.concatenate(rows)).to(device)
    position_of = torch.from_numpy(np.concatenate(positions)).to(device)
    input_ids = input_ids.to(device)
    # The token at position t is predicted by the hidden state at t - 1.
    hidden = _hidden_states(model, input_ids)[row_of, position_of - 1]  # [S, D]
    size = max(1, LOGITS_PER_CHUNK // _vocabulary_size(model))
    for part in zip(row_of.split(size), input_ids[row_of, position_of].split(size), hidden.split(size), strict=True):
        yield part[0], part[1], model.get_output_embeddings()(part[2])


def single_logits(model: PreTrainedModel, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(targets [S], logits [S, V]) of one example by the model's own forward pass, which also covers logits that are
    scaled or capped after the head."""
    input_ids = torch.from_numpy(example.input_ids.astype(np.int64)).to(model.device)
    supervised = torch.from_numpy(np.flatnonzero(example.loss_weights > 0)).to(model.device)
    logits = model(input_ids=input_ids[None], use_cache=False, logits_to_keep=supervised - 1).logits[0]
    return input_ids[supervised], logits


def _single_nll(model: PreTrainedModel, example: Example) -> float:
    targets, logits = single_logits(model, example)
    return float(token_nll(logits, targets).sum())


def token_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target), float64 [S], from logits [S, V]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()


def _hidden_states(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    return model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state


def _vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def logits_are_head_of_hidden(model: PreTrainedModel, example: Example) -> bool:
    """Whether this family's logits are its output head applied to the last hidden states and nothing more. Tried, not
    assumed: some scale or cap them afterwards, and would be measured wrong."""
    input_ids = torch.from_numpy(example.input_ids[:PROBE_TOKENS].astype(np.int64))[None].to(model.device)
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    expected = model(input_ids=input_ids, use_cache=False).logits
    return torch.equal(head(_hidden_states(model, input_ids)), expected)
