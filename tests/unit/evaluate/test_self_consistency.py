"""Several sampled answers a prompt: which number wins, what is drawn, and that nothing is drawn twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from halo_forge.config.schema import EvaluationSection
from halo_forge.errors import Interrupted
from halo_forge.evaluate.items import Item
from halo_forge.evaluate.measure import Measured, Measuring
from halo_forge.evaluate.self_consistency import majority, sample_answers, score_votes
from halo_forge.models.generate import Prompt

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("#### 7", "#### 8", "so it is 7.0"), "7"),
        (("\\boxed{1/2}", "#### 0.5", "#### 3", "the answer is 50%"), "1/2"),
        (("#### 8", "#### 7", "#### 7", "#### 8"), "8"),  # equally many: the one that was said first
        (("#### 8", "#### 7", "#### 7.0"), "7"),
        (("no number", "none either"), None),
        (("no number", "#### 3"), "3"),
        ((), None),
    ],
)
def test_the_majority_of_equal_numbers_wins(texts: tuple[str, ...], expected: str | None) -> None:
    found = majority(texts)
    assert (None if found is None else str(found.value)) == expected


def item(name: str, reference: str, prompt: Prompt | None = None) -> Item:
    return Item(id=name, example=None, prompt=prompt or Prompt((1,), frozenset()), reference=reference)


def measured(*samples: tuple[str, ...]) -> Measured:
    num = len(samples)
    return Measured(np.ones(num), np.ones(num, dtype=np.int64), [None] * num, "float32", Path("none"), list(samples))


def test_votes_are_scored_against_the_reference_and_say_nothing_without_a_number() -> None:
    items = [item("a", "#### 7"), item("b", "#### 7"), item("c", "#### seven")]
    base, tuned = measured(("1", "2"), ("7", "7"), ()), measured(("7", "7"), ("none", ""), ())
    scores = score_votes(items, base, tuned)
    assert scores.base["self_consistency"].tolist()[:2] == [0, 1]
    assert scores.tuned["self_consistency"].tolist()[:2] == [1, 0]
    assert math.isnan(scores.tuned["self_consistency"][2])
    off = Measured(np.ones(1), np.ones(1, dtype=np.int64), [None], "float32", Path("none"))
    assert "is not set" in score_votes(items[:1], off, off).inapplicable["self_consistency"]
    assert "no reference" in score_votes(items[2:], measured(()), measured(())).inapplicable["self_consistency"]


@pytest.fixture
def drawing(
    tiny_llama: Callable[..., LlamaForCausalLM], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Callable[..., list[tuple[str, ...]]]:
    model = tiny_llama()
    stop = frozenset({2})
    items = [
        item(f"{number}", "#### 1" if number != 2 else "no number", Prompt((5 + number, 9, 11), stop))
        for number in range(4)
    ]

    def draw(cache: str = "one", num: int = 3, **options: Any) -> list[tuple[str, ...]]:
        settings = EvaluationSection(self_consistency=num, max_new_tokens=6, batch_size=options.pop("batch_size", 4))
        how = Measuring(
            settings=settings, precision="float32", tokenizer=tiny_tokenizer, cache_directory=tmp_path,
            shared_cache=tmp_path, notify=options.pop("notify", lambda event, fields: None),
            check=options.pop("check", lambda: None),
        )  # fmt: skip
        return sample_answers(model, "tuned", items, tmp_path / f"{cache}.jsonl", how)

    return draw


def test_only_rows_with_a_number_are_sampled_and_samples_differ(drawing: Callable[..., Any]) -> None:
    found = drawing()
    assert [len(texts) for texts in found] == [3, 3, 0, 3]
    assert len({text for texts in found for text in texts}) > 3


def test_samples_hang_on_prompt_and_number_alone(drawing: Callable[..., Any]) -> None:
    """Neither on the batch, nor on how many are drawn, nor on whether the drawing was stopped in between."""
    whole = drawing("one")
    assert drawing("two", batch_size=1) == whole
    assert [texts[:2] for texts in whole] == drawing("three", num=2)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Interrupted("told to stop")

    with pytest.raises(Interrupted):
        drawing("four", batch_size=1, check=stop)
    assert drawing("four") == whole


def test_what_was_drawn_is_not_drawn_again(drawing: Callable[..., Any]) -> None:
    told: list[Any] = []
    before = drawing("one")
    assert drawing("one", notify=lambda event, fields: told.append(fields)) == before
    assert told == []
    drawing("one", num=4, notify=lambda event, fields: told.append(fields))
    assert [(fields["done"], fields["total"]) for fields in told] == [(10, 12), (11, 12), (12, 12)]
