"""The file of a base model's results, written by several evaluations at once, torn, and in time forgotten."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from halo_forge.domains import Domain
from halo_forge.evaluate import answer_cache
from halo_forge.evaluate.answer_cache import MAX_SHARED_MODELS, AnswerCache, cache_name, forget_oldest

NUM_RESULTS = 1500


def test_two_writers_and_a_torn_line_harm_nothing(tmp_path: Path) -> None:
    """Two openings of one file, which is all that two processes are to the system, writing at the same time results of
    up to a kilobyte; then the torn line of one that was killed."""
    path = tmp_path / "shared.jsonl"
    start = Barrier(2)

    def write(name: str) -> None:
        with AnswerCache(path) as cache:
            start.wait()
            for number in range(NUM_RESULTS):
                cache.keep(f"{name}{number}", token_ids=list(range(number % 300)), stopped=True)

    writers = [Thread(target=write, args=name) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with open(path, "ab") as file:
        file.write(b'\n{"key": "torn", "token_ids": [1, 2')
    with AnswerCache(path) as cache:
        cache.keep("after", nll_sum=1.5)
    with AnswerCache(path) as found:
        for name in "ab":
            for number in range(NUM_RESULTS):
                assert found.answer(f"{name}{number}") == (list(range(number % 300)), True)
        assert found.answer("torn") is None
        assert found.nll_sum("after") == 1.5


def test_a_torn_line_costs_no_other_writers_result(tmp_path: Path) -> None:
    """The one that goes on had the file open before the other was killed in the middle of a line."""
    path = tmp_path / "shared.jsonl"
    with AnswerCache(path) as cache:
        cache.keep("before", nll_sum=1.0)
        with AnswerCache(path) as other:
            assert other.nll_sum("before") == 1.0  # a result is on the disk as soon as it is known
        with open(path, "ab") as killed:
            killed.write(b'\n{"key": "torn", "nll_s')
        cache.keep("after", nll_sum=2.0)
    with AnswerCache(path) as found:
        assert (found.nll_sum("before"), found.nll_sum("torn"), found.nll_sum("after")) == (1.0, None, 2.0)


def test_the_models_used_longest_ago_are_forgotten_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}.jsonl" for number in range(MAX_SHARED_MODELS + 5)]
    for age, path in enumerate(paths):
        path.write_text("")
        path.with_suffix(".safetensors").write_text("")
        os.utime(path, (1000 + age, 1000 + age))
    forget_oldest(tmp_path, [paths[0], tmp_path / "gone.jsonl"])
    left = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert left == sorted(path.name for path in (paths[0], *paths[6:]))
    assert len(list(tmp_path.glob("*.safetensors"))) == MAX_SHARED_MODELS


def test_answers_of_a_packages_domain_are_kept_as_long_as_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Any
) -> None:
    model = tiny_llama(seed=0)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "their_llama.py"
    code.write_text("answer = 1")
    theirs = Domain(name="theirs", title="Theirs", model_types=("llama",), opens="their_llama:open_llama")
    plain = cache_name(model, {}, adapters=True)
    monkeypatch.setattr(answer_cache, "domain_that_reads", lambda model_type: theirs)
    first = cache_name(model, {}, adapters=True)
    code.write_text("answer = 2")
    assert len({plain, first, cache_name(model, {}, adapters=True)}) == 3
    ours = replace(theirs, opens="halo_forge.domains.vlm:open_vision")
    monkeypatch.setattr(answer_cache, "domain_that_reads", lambda model_type: ours)
    assert cache_name(model, {}, adapters=True) == plain
