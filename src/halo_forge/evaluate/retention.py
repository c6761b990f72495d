"""What is left of what the base could do: 40 general texts of our own, read by base and tuned.

general_perplexity   exp of the mean nll of their tokens (of questions, the answer's): what is still known
general_kl           KL(base || tuned) in nats a token, at the same places: how far predictions moved, whichever way

Base and tuned are never both in memory, so the base leaves its NUM_LIKELIEST likeliest tokens at each place behind and
the mass of all others as one: a lower bound of the KL over the whole vocabulary, by the data processing inequality.

Axes: N texts, S supervised places of all texts in order, K likeliest tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import ChatEncoder, Conversation, Example, Message, SourceRef, TextPart
from halo_forge.errors import RowError
from halo_forge.evaluate.answer_cache import AnswerCache, example_key
from halo_forge.evaluate.heldout import (
    batch_logits,
    batches_by_length,
    logits_are_head_of_hidden,
    single_logits,
    token_nll,
)
from halo_forge.evaluate.measure import Measuring, tokens_per_batch
from halo_forge.models.forward import computing_in, language_model, padded_attention
from halo_forge.runs import sha256_bytes, sha256_json, write_atomic

TEXTS = "general_texts.jsonl"
NUM_LIKELIEST = 256
SMALLEST_MASS = 1e-9
"""Below, what is left beside the likeliest tokens is rounding."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the base says of the general texts: nll_sums [N] in nats; token_ids and log_probs [S, K]."""

    nll_sums: npt.NDArray[np.float64]
    token_ids: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Retention:
    """Sums over the tokens of each text [N], in nats."""

    base_nll: npt.NDArray[np.float64]
    tuned_nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int64]


@cache
def _texts() -> bytes:
    return (resources.files("halo_forge.evaluate") / TEXTS).read_bytes()


def general_texts_sha256() -> str:
    return sha256_bytes(_texts())


def general_examples(tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> list[Example]:
    """The texts that fit, as this tokenizer and its template write them; a question's answer is what counts."""
    encoder = ChatEncoder(tokenizer, max_seq_length=max_seq_length, train_on="last_assistant", overlong="drop")
    examples = []
    for line, row in enumerate(map(json.loads, _texts().splitlines()), start=1):
        said = (
            [("document", row["text"])] if "text" in row else [("user", row["question"]), ("assistant", row["answer"])]
        )
        messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in said)  # type: ignore[arg-type]
        conversation = Conversation(id=sha256_json(row), messages=messages, source=SourceRef(path=TEXTS, line=line))
        with suppress(RowError):
            examples.append(encoder.encode(conversation).example)
    return examples


def base_predictions(model: torch.nn.Module, examples: Sequence[Example], answers: Path, how: Measuring) -> Predictions:
    """From the file beside the base's `answers` where it is of these examples, else computed and written there."""
    path, key = answers.with_suffix(".safetensors"), _key(examples)
    with suppress(OSError, SafetensorError, KeyError):
        kept = load_file(path)
        if bytes(kept.pop("key")).decode() == key:
            return Predictions(**kept)
    starts = _starts(examples)
    nll = np.zeros(starts[-1])
    width = min(NUM_LIKELIEST, int(language_model(model).config.get_text_config().vocab_size))
    token_ids = np.zeros((starts[-1], width), dtype=np.int32)
    log_probs = np.zeros((starts[-1], width), dtype=np.float32)
    for places, targets, logits in _logits(model, examples, how):
        nll[places] = token_nll(logits, targets).cpu().numpy()
        found = logits.float().log_softmax(1).topk(width)
        token_ids[places], log_probs[places] = found.indices.cpu().numpy(), found.values.cpu().numpy()
    sums = np.add.reduceat(nll, starts[:-1])
    stored = {"nll_sums": sums, "token_ids": token_ids, "log_probs": log_probs}
    write_atomic(path, save(stored | {"key": np.frombuffer(key.encode(), dtype=np.uint8)}))
    return Predictions(**stored)


def measure_retention(
    model: torch.nn.Module, examples: Sequence[Example], base: Predictions, answers: Path, how: Measuring
) -> Retention:
    """The tuned model on the same texts. `answers`: its cache, asked first and added to."""
    starts = _starts(examples)
    keys = [sha256_json([example_key(example), sha256_bytes(base.log_probs.tobytes())]) for example in examples]
    with AnswerCache(answers) as kept:
        if any(kept.retention(key) is None for key in keys):
            nll, kl = np.zeros(starts[-1]), np.zeros(starts[-1])
            for places, targets, logits in _logits(model, examples, how):
                nll[places] = token_nll(logits, targets).cpu().numpy()
                kl[places] = kl_of(base.token_ids[places], base.log_probs[places], logits).cpu().numpy()
            sums = zip(
                np.add.reduceat(nll, starts[:-1]).tolist(), np.add.reduceat(kl, starts[:-1]).tolist(), strict=True
            )
            for key, (nll_sum, kl_sum) in zip(keys, sums, strict=True):
                kept.keep(key, nll_sum=nll_sum, kl_sum=kl_sum)
        found = np.array([kept.retention(key) for key in keys])
    return Retention(base.nll_sums, found[:, 0], found[:, 1], np.diff(starts))


def kl_of(token_ids: npt.NDArray[np.int32], log_probs: npt.NDArray[np.float32], logits: torch.Tensor) -> torch.Tensor:
    """KL [.] in nats from the base's likeliest tokens [., K] to the model of these logits [., V], all other tokens
    taken as one."""
    base = torch.from_numpy(log_probs).to(logits.device).double()
    ids = torch.from_numpy(token_ids.astype(np.int64)).to(logits.device)
    tuned = logits.float().log_softmax(1).gather(1, ids).double()
    divergence = (base.exp() * (base - tuned)).sum(1)
    if ids.shape[1] < logits.shape[1]:
        left = (1 - base.exp().sum(1)).clamp(min=SMALLEST_MASS)
        divergence += left * (left.log() - (1 - tuned.exp().sum(1)).clamp(min=SMALLEST_MASS).log())
    return divergence


def _logits(
    model: torch.nn.Module, examples: Sequence[Example], how: Measuring
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]]:
    """(places [.], targets [.], logits [., V]) of all supervised places, in pieces."""
    inner, starts = language_model(model), _starts(examples)
    with torch.no_grad(), padded_attention(inner), computing_in(how.precision, inner):
        is_plain = logits_are_head_of_hidden(inner, examples[0])
        for indices in batches_by_length([len(example.input_ids) for example in examples], tokens_per_batch(inner)):
            how.check()
            places = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in indices])
            batch = [examples[index] for index in indices]
            pieces: Any = (
                ((targets, logits) for _, targets, logits in batch_logits(inner, batch))
                if is_plain
                else (single_logits(inner, example) for example in batch)
            )
            for targets, logits in pieces:
                yield places[: len(targets)], targets, logits
                places = places[len(targets) :]


def _starts(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """[N + 1]: where the supervised places of each example begin, and where the last one's end."""
    return np.cumsum([0, *(example.num_supervised_tokens for example in examples)])


def _key(examples: Sequence[Example]) -> str:
    return sha256_json([NUM_LIKELIEST, *(example_key(example) for example in examples)])
