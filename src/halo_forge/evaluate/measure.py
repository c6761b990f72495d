"""What one model does with the items: likelihoods and answers, from the cache where they are known already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.chat.records import Example
from halo_forge.config.schema import EvaluationSection
from halo_forge.domains.media import Media
from halo_forge.evaluate.answer_cache import AnswerCache, cache_name, example_key, prompt_key
from halo_forge.evaluate.heldout import answer_nll
from halo_forge.evaluate.items import decode
from halo_forge.evaluate.metrics import Answer
from halo_forge.models.forward import Precision, language_model
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.runs import Notify

MAX_TOKENS_PER_BATCH = {"cpu": 2048}
MAX_TOKENS_PER_BATCH_ON_GPU = 16384


class Asking(Protocol):
    """What is measured: an item, a suite's question, an earlier turn. Either part may be missing."""

    @property
    def example(self) -> Example | None: ...
    @property
    def prompt(self) -> Prompt | None: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """nll_sums and num_tokens [N]: nats and count of the reference answer's tokens (nan and 0 where an item has no
    example). answers [N]: None where an item has no prompt. cache: the file that holds all of it. samples [N]: the
    texts of self_consistency.py, [] without them."""

    nll_sums: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int64]
    answers: list[Answer | None]
    dtype: str
    cache: Path
    samples: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How to measure: the same for base and tuned. What the base says is kept in `shared_cache`, for all runs that
    start from it; what the tuned model says in the run's own `cache_directory`."""

    settings: EvaluationSection
    precision: Precision
    tokenizer: PreTrainedTokenizerBase
    cache_directory: Path
    shared_cache: Path
    notify: Notify
    check: Callable[[], None]
    media: Media | None = None


def measure_model(
    model: torch.nn.Module, which: Literal["base", "tuned"], items: Sequence[Asking], how: Measuring
) -> Measured:
    """Likelihoods first (they fail soonest), then answers. Raises Interrupted through how.check; finished work stays
    in the cache."""
    dtype = str(language_model(model).dtype).removeprefix("torch.")
    keyed_on = {"max_new_tokens": how.settings.max_new_tokens, "dtype": dtype, "precision": how.precision}
    directory = how.shared_cache if which == "base" else how.cache_directory
    path = directory / cache_name(model, keyed_on, adapters=which == "tuned")
    with AnswerCache(path) as cache:
        nll_sums, num_tokens = _measure_likelihoods(model, items, cache, how)
        answers = _measure_answers(model, which, items, cache, how)
    return Measured(nll_sums, num_tokens, answers, dtype, path)


def tokens_per_batch(model: PreTrainedModel) -> int:
    return MAX_TOKENS_PER_BATCH.get(model.device.type, MAX_TOKENS_PER_BATCH_ON_GPU)


def _measure_likelihoods(
    model: torch.nn.Module, items: Sequence[Asking], cache: AnswerCache, how: Measuring
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    examples = {example_key(item.example): item.example for item in items if item.example is not None}
    missing = [key for key in examples if cache.nll_sum(key) is None]

    def keep(indices: list[int], sums: npt.NDArray[np.float64]) -> None:
        for index, value in zip(indices, sums.tolist(), strict=True):
            cache.keep(missing[index], nll_sum=value)

    answer_nll(
        model,
        [examples[key] for key in missing],
        max_tokens_per_batch=tokens_per_batch(language_model(model)),
        precision=how.precision,
        on_batch=keep,
        check=how.check,
        media=how.media,
    )
    nll_sums = np.full(len(items), np.nan)
    num_tokens = np.zeros(len(items), dtype=np.int64)
    for index, item in enumerate(items):
        if item.example is not None:
            nll_sums[index] = cache.nll_sum(example_key(item.example))
            num_tokens[index] = item.example.num_supervised_tokens
    return nll_sums, num_tokens


def _measure_answers(
    model: torch.nn.Module, which: str, items: Sequence[Asking], cache: AnswerCache, how: Measuring
) -> list[Answer | None]:
    prompts = {prompt_key(item.prompt): item.prompt for item in items if item.prompt is not None}
    missing = [key for key in prompts if cache.answer(key) is None]
    num_done = len(prompts) - len(missing)

    def tell() -> None:
        how.notify("eval.progress", {"which": which, "done": num_done, "total": len(prompts)})

    def keep(index: int, generation: Generation) -> None:
        nonlocal num_done
        cache.keep(missing[index], token_ids=list(generation.token_ids), stopped=generation.stopped)
        num_done += 1
        tell()

    tell()
    (generate if how.media is None else how.media.generate)(
        model,
        [prompts[key] for key in missing],
        decode=lambda token_ids: decode(how.tokenizer, token_ids),
        max_new_tokens=how.settings.max_new_tokens,
        batch_size=how.settings.batch_size,
        on_finished=keep,
        check=how.check,
    )
    answers: list[Answer | None] = []
    for item in items:
        known = cache.answer(prompt_key(item.prompt)) if item.prompt is not None else None
        if known is None:
            answers.append(None)
            continue
        token_ids, stopped = known
        answers.append(Answer(decode(how.tokenizer, token_ids), len(token_ids), stopped))
    return answers
