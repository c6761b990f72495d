"""Several sampled answers a prompt, and the final number that most of them agree on (Wang et al. 2022).

Base and tuned draw with the same random numbers, prompt by prompt; each sample is kept in the answer cache as soon as
it is complete, like greedy answers, so that a stopped evaluation draws only what is missing. Axes: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from halo_forge.evaluate.answer_cache import AnswerCache, prompt_key
from halo_forge.evaluate.items import Item, decode
from halo_forge.evaluate.measure import Measured, Measuring
from halo_forge.models.generate import Generation, generate
from halo_forge.models.sampling import Sampling
from halo_forge.runs import sha256_json
from halo_forge.texts.final_answers import final_number, marked_number
from halo_forge.texts.numbers import Number, same_number

METRIC = "self_consistency"
TEMPERATURE, TOP_P = 0.7, 1.0
"""As in the paper for most of its models; the whole distribution, so that no tail is cut off for one of the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteScores:
    """base, tuned: metric -> score per item [N], nan where nothing was sampled. inapplicable: why nothing was."""

    base: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    tuned: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)


def sample_answers(
    model: torch.nn.Module, which: str, items: Sequence[Item], path: Path, how: Measuring
) -> list[tuple[str, ...]]:
    """Texts of evaluation.self_consistency answers to each item of text whose reference marks a number, () for others;
    [] where none are asked for. `path`: the cache of this model's answers. Raises Interrupted through how.check."""
    num_samples = how.settings.self_consistency
    if num_samples is None:
        return []
    asked = {
        prompt_key(item.prompt): item.prompt
        for item in items
        if item.prompt is not None and not item.prompt.media and marked_number(item.reference) is not None
    }
    draws = {(key, number): _draw_key(key, number) for key in asked for number in range(num_samples)}
    with AnswerCache(path) as cache:
        missing = [(key, draw) for (key, _), draw in draws.items() if cache.answer(draw) is None]
        counted = count(len(draws) - len(missing) + 1)

        def keep(index: int, generation: Generation) -> None:
            cache.keep(missing[index][1], token_ids=list(generation.token_ids), stopped=generation.stopped)
            title = f"samples of the {which} model"
            how.notify("eval.progress", {"title": title, "done": next(counted), "total": len(draws)})

        generate(
            model, [asked[key] for key, _ in missing],
            decode=lambda token_ids: decode(how.tokenizer, token_ids),
            max_new_tokens=how.settings.max_new_tokens, batch_size=how.settings.batch_size, on_finished=keep,
            check=how.check,
            sampling=Sampling(temperature=TEMPERATURE, top_p=TOP_P, keys=tuple(draw for _, draw in missing)),
        )  # fmt: skip

        def text(key: str, number: int) -> str:
            known = cache.answer(draws[key, number])
            assert known is not None
            return decode(how.tokenizer, known[0])

        texts = {key: tuple(text(key, number) for number in range(num_samples)) for key in asked}
    return [texts.get(prompt_key(item.prompt), ()) if item.prompt is not None else () for item in items]


def _draw_key(key: str, number: int) -> str:
    return sha256_json([key, "self-consistency", TEMPERATURE, TOP_P, number])


def majority(texts: Sequence[str]) -> Number | None:
    """The final number of most texts, however each writes it; of equally many the one that was said first. None where
    no text has a number."""
    numbers: list[Number] = []
    votes: list[int] = []
    for said in map(final_number, texts):
        place = next((at for at, number in enumerate(numbers) if said is not None and same_number(number, said)), None)
        if place is not None:
            votes[place] += 1
        elif said is not None:
            numbers.append(said)
            votes.append(1)
    return numbers[votes.index(max(votes))] if votes else None


def score_votes(items: Sequence[Item], base: Measured, tuned: Measured) -> VoteScores:
    """1 where the majority's number is the reference's."""
    if not any(base.samples) or not any(tuned.samples):
        asked = bool(base.samples)
        reason = "no reference marks a final number" if asked else "evaluation.self_consistency is not set"
        return VoteScores(inapplicable={METRIC: reason})
    scores = [
        {METRIC: np.array([_score(texts, item) for texts, item in zip(side.samples, items, strict=True)])}
        for side in (base, tuned)
    ]
    return VoteScores(base=scores[0], tuned=scores[1])


def _score(texts: tuple[str, ...], item: Item) -> float:
    expected = marked_number(item.reference) if texts else None
    if expected is None:
        return np.nan
    said = majority(texts)
    return float(said is not None and same_number(said, expected))
