"""What must hold of duplicates for any rows: order, batches and processes change nothing that they should not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.data.overlap.duplicates import exact_keys, find_exact
from halo_forge.data.overlap.near_duplicates import find_near, fingerprints, gram_set, jaccard
from halo_forge.data.overlap.plain_text import plain

WORDS = [f"w{number}" for number in range(40)]
ANY_TEXT = st.text(max_size=60)


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Texts of 30 to 90 words in a few families, members of which differ in a few words."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        base = [rng.choice(WORDS) for _ in range(rng.randrange(30, 90))]
        for _ in range(draw(st.integers(1, 6))):
            words = list(base)
            for _ in range(rng.randrange(4)):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            texts.append(" ".join(words))
    rng.shuffle(texts)
    return texts


def bands_of(texts: list[str]) -> np.ndarray:
    return fingerprints(texts, [""] * len(texts)).bands


@given(families(), st.sampled_from([0.6, 0.75, 0.85]))
@settings(max_examples=60, deadline=None)
def test_what_stays_has_no_duplicates_and_what_goes_has_one_that_stays(texts: list[str], threshold: float) -> None:
    bands = bands_of(texts)
    everyone = np.ones(len(texts), bool)
    near = find_near(bands, everyone, texts.__getitem__, threshold)
    gone = np.flatnonzero(near.of >= 0)
    assert (near.of[gone] < gone).all()
    assert (near.of[near.of[gone]] == -1).all()
    for row in gone.tolist():
        assert jaccard(gram_set(texts[near.of[row]]), gram_set(texts[row])) >= threshold
    assert near.num_cut == 0
    again = find_near(bands, near.of < 0, texts.__getitem__, threshold)
    assert (again.of == -1).all()
    survivors = [texts[row] for row in np.flatnonzero(near.of < 0)]
    renumbered = find_near(bands_of(survivors), np.ones(len(survivors), bool), survivors.__getitem__, threshold)
    assert (renumbered.of == -1).all()


@given(families())
@settings(max_examples=30, deadline=None)
def test_rows_that_are_not_eligible_change_nothing(texts: list[str]) -> None:
    doubled = [text for text in texts for _ in range(2)]
    eligible = np.tile([True, False], len(texts))
    alone = find_near(bands_of(texts), np.ones(len(texts), bool), texts.__getitem__, 0.7)
    among = find_near(bands_of(doubled), eligible, doubled.__getitem__, 0.7)
    assert (among.of[1::2] == -1).all()
    assert np.where(among.of[::2] >= 0, among.of[::2] // 2, -1).tolist() == alone.of.tolist()


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=30), st.data())
@settings(max_examples=100, deadline=None)
def test_exact_copies_are_those_of_plain_texts(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    copies = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    rows = rows + [(f"  {rows[at][0].upper()}\n", rows[at][1]) for at in copies]
    plain_rows = [(plain(prompt), plain(answer)) for prompt, answer in rows]
    first = find_exact(exact_keys(*map(list, zip(*plain_rows, strict=True))), np.ones(len(rows), bool))  # type: ignore[arg-type]
    for row, said in enumerate(plain_rows):
        earliest = plain_rows.index(said)
        assert first[row] == (earliest if earliest < row else -1)


@given(ANY_TEXT)
@settings(max_examples=300)
def test_plain_text_is_a_fixed_point(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    assert plain(f"\t{text}\n ") == once
    assert once == " ".join(once.split())


@given(st.lists(ANY_TEXT, min_size=1, max_size=12), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_batches_do_not_change_fingerprints(texts: list[str], cut: int) -> None:
    texts = [plain(text) for text in texts]
    whole = fingerprints(texts, texts[::-1])
    parts = [fingerprints(texts[part], texts[::-1][part]) for part in (slice(0, cut), slice(cut, None))]
    assert (whole.bands == np.concatenate([part.bands for part in parts])).all()
    assert (whole.exact == np.concatenate([part.exact for part in parts])).all()


ANOTHER_PROCESS = """
import hashlib, json, sys
from halo_forge.data.overlap.benchmark_items import Benchmark, BenchmarkItem
from halo_forge.data.overlap.contamination import BenchmarkIndex
from halo_forge.data.overlap.near_duplicates import fingerprints
texts = json.load(sys.stdin)
prints = fingerprints(texts, texts[::-1])
items = tuple(BenchmarkItem(id=str(n), prompt=text, answer="") for n, text in enumerate(texts[::3]))
hits = BenchmarkIndex.build([Benchmark(name="b", sha256="", items=items)]).check(texts, texts[::-1])
print(hashlib.sha256(prints.exact.tobytes() + prints.bands.tobytes() + repr(hits).encode()).hexdigest())
"""


@pytest.mark.parametrize("seed", ["1", "31337"])
def test_processes_with_other_hash_seeds_agree(seed: str) -> None:
    rng = random.Random(4)
    texts = [" ".join(rng.choice(WORDS) for _ in range(rng.randrange(60))) for _ in range(120)] + ["naïve 中文", ""]
    from halo_forge.data.overlap.benchmark_items import Benchmark, BenchmarkItem
    from halo_forge.data.overlap.contamination import BenchmarkIndex

    prints = fingerprints(texts, texts[::-1])
    items = tuple(BenchmarkItem(id=str(n), prompt=text, answer="") for n, text in enumerate(texts[::3]))
    hits = BenchmarkIndex.build([Benchmark(name="b", sha256="", items=items)]).check(texts, texts[::-1])
    here = hashlib.sha256(prints.exact.tobytes() + prints.bands.tobytes() + repr(hits).encode()).hexdigest()
    there = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS], input=json.dumps(texts), capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert there.stdout.strip() == here


def test_no_threads_are_started_so_that_workers_may_be_forked() -> None:
    """rensa's thread pool would make a process that is forked afterwards wait for ever."""
    code = """
import os
from halo_forge.data.overlap.near_duplicates import fingerprints
import rensa
before = len(os.listdir("/proc/self/task"))
texts = [f"row {n} has {'many and more words ' * 40}" for n in range(1500)] + [" ".join(map(str, range(100000)))]
fingerprints(texts, [""] * len(texts))
assert len(os.listdir("/proc/self/task")) == before, "threads were started"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
