"""What must hold of contamination for any rows and items: every verdict can be checked by hand from its definition."""

from __future__ import annotations

import random
import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.data.overlap.benchmark_items import Benchmark, BenchmarkItem
from halo_forge.data.overlap.contamination import KINDS, BenchmarkIndex, Hit, _num_common_in_order, words_text
from halo_forge.data.overlap.plain_text import plain

VOCABULARY = [f"{letter}{other}" for letter in "abcdefgh" for other in "aeiou"]


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(length))


@st.composite
def benchmarks_and_rows(draw: st.DrawFn) -> tuple[Benchmark, list[tuple[str, str]]]:
    """Items of 3 to 60 words; rows that quote, edit, embed or ignore them."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    items = tuple(
        BenchmarkItem(
            id=str(number), prompt=sentence(rng, rng.randrange(3, 60)), answer=sentence(rng, rng.randrange(6))
        )
        for number in range(draw(st.integers(1, 6)))
    )
    rows: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(1, 8))):
        words = rng.choice(items).prompt.split()
        kind = draw(st.sampled_from(["quote", "part", "edit", "embed", "other"]))
        if kind == "part":
            start = rng.randrange(len(words))
            words = words[start : start + rng.randrange(1, 20)]
        if kind == "edit":
            for _ in range(rng.randrange(1, 1 + max(1, len(words) // 4))):
                words[rng.randrange(len(words))] = "edited"
        if kind == "embed":
            words = [*sentence(rng, 20).split(), *words, *sentence(rng, 20).split()]
        prompt = sentence(rng, 30) if kind == "other" else " ".join(words)
        rows.append((prompt, sentence(rng, rng.randrange(8))))
    return Benchmark(name="b", sha256="", items=items), rows


def by_definition(hit: Hit, item: BenchmarkItem, row: str) -> bool:
    """Whether the row has what the hit says, told by strings alone."""
    whole = f"{item.prompt} {item.answer}".strip()
    if f" {hit.excerpt} " not in f" {row} " or f" {hit.excerpt} " not in f" {whole} ":
        return False
    length = len(hit.excerpt.split())
    if hit.kind == "exact":
        return hit.excerpt in (item.prompt, whole)
    if hit.kind == "near":
        best = max(_num_common_in_order(text.split(), row.split()) / len(text.split()) for text in (item.prompt, whole))
        return 0.8 <= hit.overlap <= best
    return length >= 13 if hit.kind == "ngram_13" else 8 <= length <= 12


@given(benchmarks_and_rows())
@settings(max_examples=150, deadline=None)
def test_hits_are_what_their_kind_says(case: tuple[Benchmark, list[tuple[str, str]]]) -> None:
    benchmark, rows = case
    index = BenchmarkIndex.build([benchmark])
    hits = index.check([prompt for prompt, _ in rows], [answer for _, answer in rows])
    for (prompt, answer), hit in zip(rows, hits, strict=True):
        row = f"{prompt} {answer}".strip()
        if hit is not None:
            assert hit.kind in KINDS
            assert 0 < hit.overlap <= 1
            assert by_definition(hit, benchmark.items[int(hit.item)], row), (hit, row)
        for item in benchmark.items:
            num_words = len(item.prompt.split())
            if num_words >= 5 and item.prompt == prompt:
                assert hit is not None
                assert hit.kind == "exact"
            if num_words >= 8 and f" {item.prompt} " in f" {row} ":
                assert hit is not None
                assert hit.kind in ("exact", "near")
            words = item.prompt.split()
            runs = {" ".join(words[at : at + 8]) for at in range(num_words - 7)}
            if any(f" {run} " in f" {row} " for run in runs):
                assert hit is not None


@given(benchmarks_and_rows(), st.integers(0, 8), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_batches_and_their_order_change_nothing(
    case: tuple[Benchmark, list[tuple[str, str]]], cut: int, rng: random.Random
) -> None:
    benchmark, rows = case
    index = BenchmarkIndex.build([benchmark])

    def checked(some: list[tuple[str, str]]) -> list[Hit | None]:
        return index.check([prompt for prompt, _ in some], [answer for _, answer in some])

    whole = checked(rows)
    assert checked(rows[:cut]) + checked(rows[cut:]) == whole
    order = list(range(len(rows)))
    rng.shuffle(order)
    assert checked([rows[at] for at in order]) == [whole[at] for at in order]
    assert BenchmarkIndex.build([benchmark]).check(*map(list, zip(*rows, strict=True))) == whole  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=80), min_size=1, max_size=8), st.lists(st.text(max_size=80), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_text_is_taken(items: list[str], rows: list[str]) -> None:
    benchmark = Benchmark(
        name="b",
        sha256="",
        items=tuple(BenchmarkItem(id=str(n), prompt=text, answer="") for n, text in enumerate(items)),
    )
    rows = rows + items
    hits = BenchmarkIndex.build([benchmark]).check([plain(row) for row in rows], [""] * len(rows))
    for row, hit in zip(rows, hits, strict=True):
        if hit is not None and hit.kind == "exact":
            assert words_text(benchmark.items[int(hit.item)].prompt) == words_text(row)
    for item, hit in zip(items, hits[-len(items) :], strict=True):
        if len(words_text(item).split()) >= 5:
            assert hit is not None
            assert hit.kind == "exact"


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_words_are_runs_of_letters_and_digits(text: str) -> None:
    expected = " ".join(re.findall(r"[^\W_]+", plain(text.replace("\0", " "))))
    assert words_text(text) == expected
    assert words_text(unicodedata.normalize("NFD", text)) == expected
    assert words_text(words_text(text)) == expected


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=40))
@settings(max_examples=200)
def test_bit_parallel_subsequence_is_the_textbook_one(words: list[str], others: list[str]) -> None:
    lengths = [0] * (len(others) + 1)
    for word in words:
        previous = lengths
        lengths = [0]
        for place, other in enumerate(others, start=1):
            same = previous[place - 1] + 1 if word == other else 0
            lengths.append(max(same, previous[place], lengths[place - 1]))
    assert _num_common_in_order(words, others) == lengths[-1]
