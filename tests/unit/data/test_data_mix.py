"""The mix: numbers of rows, which rows, and lambda against its formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.config.schema import SourceEntry
from halo_forge.data.mix import MixPlan, choose_rows, mix_report, plan_mix, token_weights


def entry(name: str = "a", **fields: object) -> SourceEntry:
    return SourceEntry(path=f"{name}.jsonl", name=name, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "entries", "temperature", "expected"),
    [
        ([100, 50], [entry(), entry("b")], 1.0, (100, 50)),  # no shares: everything
        ([100, 50], [entry(share=1), entry("b", share=1)], 1.0, (50, 50)),  # the scarcest limits
        ([1000, 50], [entry(share=0.9), entry("b", share=0.1)], 1.0, (450, 50)),
        ([1000, 5000], [entry(share=90), entry("b", share=10)], 1.0, (1000, 111)),  # shares are relative
        ([1000, 50, 7], [entry(share=3), entry("b", share=1), entry("c")], 1.0, (150, 50, 7)),
        ([1000, 50], [entry(share=3), entry("b", share=1, max_rows=20)], 1.0, (60, 20)),  # the cap limits
        ([1000, 50], [entry(max_rows=10), entry("b")], 1.0, (10, 50)),
        ([1000, 1000], [entry(share=9), entry("b", share=1)], 2.0, (1000, 333)),  # 3 : 1
        ([1000, 1000], [entry(share=9), entry("b", share=1)], 1e9, (1000, 1000)),  # even
        ([1000, 1000], [entry(share=4), entry("b", share=2)], 0.5, (1000, 250)),  # 16 : 4
        ([1000, 0], [entry(share=1), entry("b", share=1)], 1.0, (1000, 0)),  # an empty source limits nothing
        ([10**6, 3], [entry(share=1), entry("b", share=1e6)], 1.0, (1, 3)),  # never rounded away
    ],
)
def test_rows_by_share(
    rows: list[int], entries: list[SourceEntry], temperature: float, expected: tuple[int, ...]
) -> None:
    assert plan_mix(rows, entries, temperature).rows == expected


def test_shares_hold_among_training_rows_when_a_source_is_only_replayed() -> None:
    """85 % of one source is trained and all of the other: 850 to 850."""
    plan = plan_mix([1000, 5000], [entry(share=1), entry("b", share=1, replay=True)], 1.0, [0.85, 1.0])
    assert plan.rows == (1000, 850)
    # the replayed source is the scarce one: 471 rows of the other leave 400 to train on
    assert plan_mix([1000, 400], [entry(share=1), entry("b", share=1, replay=True)], 1.0, [0.85, 1.0]).rows == (
        471,
        400,
    )


def test_the_plan_says_what_it_gives_up() -> None:
    plan = plan_mix([1000, 50, 0], [entry(share=1), entry("b", share=1), entry("c", share=1)])
    assert plan.notes == (
        "c: its share of the mix is void, because it has no usable row",
        "b runs out first, at 50 rows: 950 rows of the other sources are not sampled",
    )
    capped = plan_mix([1000, 50], [entry(share=1), entry("b", share=1, max_rows=20)])
    assert capped.notes == (
        "b limits the mix: its max_rows is reached first, at 20 rows: 980 rows of the other sources are not sampled",
    )


@settings(max_examples=200, deadline=None)
@given(
    sources=st.lists(
        st.tuples(
            st.integers(0, 5000), st.none() | st.floats(1e-3, 1e3), st.none() | st.integers(1, 3000), st.booleans()
        ),
        min_size=1,
        max_size=6,
    ),
    temperature=st.floats(0.2, 20),
)
def test_no_row_is_taken_twice_and_shares_hold(
    sources: list[tuple[int, float | None, int | None, bool]], temperature: float
) -> None:
    entries = [entry(str(at), share=share, max_rows=cap) for at, (_, share, cap, _) in enumerate(sources)]
    available = [rows for rows, _, _, _ in sources]
    taken = plan_mix(available, entries, temperature).rows
    assert all(
        0 <= got <= min(rows, one.max_rows or rows) for got, rows, one in zip(taken, available, entries, strict=True)
    )
    sharing = [at for at, one in enumerate(entries) if one.share is not None and available[at]]
    if sharing:
        limits = [min(available[at], entries[at].max_rows or available[at]) for at in sharing]
        assert any(taken[at] == limit for at, limit in zip(sharing, limits, strict=True)), "a source is used up"
        weights = np.array([float(entries[at].share or 0) for at in sharing]) ** (1 / temperature)
        exact = (
            weights
            / weights.sum()
            * min(limit / part for limit, part in zip(limits, weights / weights.sum(), strict=True))
        )
        for number, at in enumerate(sharing):
            assert abs(taken[at] - max(1.0, exact[number])) <= 0.5 + 1e-6


# ------------------------------------------------------------------------------------------------ which rows

CHOICE = st.lists(st.tuples(st.integers(0, 500), st.integers(-1, 2), st.booleans()), min_size=1, max_size=150)


def choice_arrays(rows: list[tuple[int, int, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys = np.array([(row[0] * 0x9E3779B97F4A7C15) % 2**64 for row in rows], np.uint64)
    return keys, np.array([row[1] for row in rows], np.int32), np.array([row[2] for row in rows])


@settings(max_examples=150, deadline=None)
@given(rows=CHOICE, wanted=st.tuples(*[st.integers(0, 60)] * 3), seed=st.integers(0, 2**32 - 1))
def test_the_choice_is_the_smallest_hashes_whatever_the_order(
    rows: list[tuple[int, int, bool]], wanted: tuple[int, int, int], seed: int
) -> None:
    keys, sources, candidates = choice_arrays(rows)
    chosen = choose_rows(keys, sources, MixPlan(wanted), candidates)
    for source in range(3):
        own = sorted(int(key) for key in keys[(sources == source) & candidates])
        assert sorted(int(key) for key in keys[chosen & (sources == source)]) == own[: wanted[source]]
    assert not chosen[(sources < 0) | ~candidates].any()
    order = np.random.default_rng(seed).permutation(len(keys))
    shuffled = choose_rows(keys[order], sources[order], MixPlan(wanted), candidates[order])
    assert sorted(keys[order][shuffled].tolist()) == sorted(keys[chosen].tolist())


def test_the_smallest_hashes_are_chosen_of_many_rows() -> None:
    rng = np.random.default_rng(4)
    keys = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    sources = rng.integers(0, 3, 3000).astype(np.int32)
    chosen = choose_rows(keys, sources, MixPlan((100, 2000, 7)))
    for source, wanted in enumerate((100, 2000, 7)):
        own = np.sort(keys[sources == source])
        assert np.array_equal(np.sort(keys[chosen & (sources == source)]), own[:wanted])


def test_a_source_that_grows_keeps_what_was_chosen_of_it() -> None:
    rng = np.random.default_rng(5)
    keys = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    sources = np.repeat(np.array([0, 1], np.int32), [2000, 1000])
    before = choose_rows(keys, sources, plan_mix([2000, 1000], [entry(share=1), entry("b", share=1)]))
    more = np.concatenate([keys, rng.integers(0, 2**64, 500, dtype=np.uint64)])
    more_sources = np.concatenate([sources, np.ones(500, np.int32)])
    late_first = np.argsort(more_sources == 0, kind="stable")[::-1]
    after = choose_rows(more, more_sources, plan_mix([2000, 1500], [entry(share=1), entry("b", share=1)]))
    assert before.sum() == 2000
    assert after.sum() == 3000
    assert after[: len(keys)][before].all()
    plan = plan_mix([2000, 1500], [entry(share=1), entry("b", share=1)])
    assert np.array_equal(choose_rows(more[late_first], more_sources[late_first], plan), after[late_first])


# ------------------------------------------------------------------------------------------------ lambda


@pytest.mark.parametrize("objective", ["tokens", "subsets"])
def test_lambda_is_the_formula_in_value_and_gradient(objective: str) -> None:
    """One step over everything with a softmax model of 7 words, float64: the trained objective is held against
    sum_i lambda_i L_i with L_i summed over tokens (`tokens`) or their weighted mean (`subsets`)."""
    rng = np.random.default_rng(11)
    num_words, sizes, lambdas = 7, [40, 400, 9], [2.0, 0.5, 3.0]
    logits = rng.normal(size=num_words)
    targets = [rng.integers(0, num_words, size) for size in sizes]
    own = [rng.choice([0.5, 1.0, 2.0], size) for size in sizes]  # weights that rows and turns ask for

    def nll_and_gradient(words: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
        probability = np.exp(logits) / np.exp(logits).sum()
        gradient = weights.sum() * probability - np.bincount(words, weights, num_words)
        return float((weights * -np.log(probability[words])).sum()), gradient

    factors = token_weights(lambdas, [weights.sum() for weights in own], objective)  # type: ignore[arg-type]
    used = [weights * factor for weights, factor in zip(own, factors, strict=True)]
    loss, gradient = nll_and_gradient(np.concatenate(targets), np.concatenate(used))
    total = sum(weights.sum() for weights in used)
    loss, gradient = loss / total, gradient / total  # what a step of the engine computes

    sums = [nll_and_gradient(words, weights) for words, weights in zip(targets, own, strict=True)]
    if objective == "tokens":
        scale = sum(weight * part.sum() for weight, part in zip(lambdas, own, strict=True))
        wanted = [(value / scale, slope / scale) for value, slope in sums]
    else:
        wanted = [
            (value / part.sum() / sum(lambdas), slope / part.sum() / sum(lambdas))
            for (value, slope), part in zip(sums, own, strict=True)
        ]
    assert loss == pytest.approx(sum(weight * value for weight, (value, _) in zip(lambdas, wanted, strict=True)))
    np.testing.assert_allclose(
        gradient, sum(weight * slope for weight, (_, slope) in zip(lambdas, wanted, strict=True)), rtol=1e-12
    )


def test_without_lambdas_nothing_changes() -> None:
    assert token_weights([1, 1, 1], [5, 50, 500]) == (1.0, 1.0, 1.0)
    assert token_weights([1, 1], [100, 300], "subsets") == (4.0, 400 / 300)
    assert token_weights([1, 1], [100, 0], "subsets") == (1.0, 0.0)


def test_the_report_shows_what_each_source_is_in_the_loss() -> None:
    entries = [entry("domain", share=1, loss_weight=1.0), entry("general", share=1, loss_weight=0.25, replay=True)]
    plan = plan_mix([1000, 900], entries)
    report = mix_report(entries, [1000, 900], plan, [850, 900], [9000, 90_000], [1000, 60_000])
    assert [source.loss_frac for source in report.sources] == pytest.approx([1000 / 16_000, 15_000 / 16_000])
    # the weights it names make the parts of the mean losses 1 : 0.25
    weights = [source.subset_weight or 0.0 for source in report.sources]
    assert weights[1] * 60_000 / (weights[0] * 1000) == pytest.approx(0.25, rel=1e-3)
    words = report.words()
    heads = "source of taken train rows of rows tokens trained tokens lambda of loss"
    assert " ".join(words.splitlines()[0].split()) == heads
    assert "general (replay)" in words
    assert "93.8%" in words
    assert "set loss_weight: domain 1, general 0.00416" in words
    assert json.loads(json.dumps(report.to_dict()))["sources"][1]["num_taken"] == 900


def test_a_balanced_mix_has_no_advice() -> None:
    entries = [entry("a", loss_weight=2.0), entry("b")]
    report = mix_report(entries, [10, 10], plan_mix([10, 10], entries), [10, 10], [100, 100], [50, 50])
    assert report.notes == ()
    alone = mix_report(entries[:1], [10], plan_mix([10], entries[:1]), [0], [0], [0])
    assert alone.sources[0].loss_frac == 0.0
    assert "0.0%" in alone.words()
