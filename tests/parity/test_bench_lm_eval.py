"""Our scoring and generation against lm-eval's own `hf` model: the same tasks, the same items, request by request.

The rows are those of ../shared/data/benchmarks; without that tree, or without lm-eval, these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from halo_forge.evaluate.bench.tasks import BENCHMARKS

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "benchmarks"
TREE = Path(os.environ.get("HALO_FORGE_BENCHMARKS", SHARED))
TOLERANCE = 2e-3
"""Nats of one continuation, float32: sums of up to a hundred tokens in another order. Found: 4e-4 at most."""
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"),
    pytest.mark.skipif(not TREE.is_dir(), reason="../shared/data/benchmarks is not here"),
    pytest.mark.filterwarnings("ignore"),  # lm-eval's, nltk's and evaluate's own
]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[tuple[Any, Any]]:
    from halo_forge.models.load import load_model, load_tokenizer

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model(str(smollm2_path), dtype=torch.float32, attn_implementation="sdpa").eval()
    yield model, load_tokenizer(str(smollm2_path))
    torch.set_num_threads(before)


def samples_of(model: Any, names: tuple[str, ...], limit: int, new_tokens: int | None = None) -> dict[str, Any]:
    from halo_forge.evaluate.bench import engine

    with engine.quiet():
        loaded, _ = engine.load_tasks(names, TREE)
        if new_tokens is not None:
            for task in loaded["tasks"].values():
                task.set_config(key="generation_kwargs", value={"max_gen_toks": new_tokens}, update=True)
        return engine.run_tasks(loaded, model, limit=limit, chat_template=False)


def own_model(smollm2: tuple[Any, Any], directory: Path) -> Any:
    from halo_forge.evaluate.answer_cache import AnswerCache
    from halo_forge.evaluate.bench.own_model import OwnModel

    return OwnModel(
        *smollm2, AnswerCache(directory / "cache.jsonl"), batch_size=4, progress=lambda *_: None, check=lambda: None
    )


def test_likelihoods_and_scores_are_those_of_lm_eval(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    names = ("hellaswag", "truthfulqa_mc1", "mmlu_abstract_algebra")
    ours = samples_of(own_model(smollm2, tmp_path), names, 3)
    theirs = samples_of(HFLM(pretrained=smollm2[0], tokenizer=smollm2[1], batch_size=4), names, 3)
    assert ours["results"].keys() == theirs["results"].keys()
    for name in names:
        assert len(ours["samples"][name]) == 3
        for own, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            assert own["arguments"] == other["arguments"]
            for one, two in zip(own["resps"], other["resps"], strict=True):
                assert one[0][0] == pytest.approx(two[0][0], abs=TOLERANCE)
                assert one[0][1] == two[0][1]
            for metric in own["metrics"]:
                assert own[metric] == other[metric]


def test_answers_are_those_of_lm_eval(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    ours = samples_of(own_model(smollm2, tmp_path), ("gsm8k",), 3, new_tokens=40)
    theirs = samples_of(HFLM(pretrained=smollm2[0], tokenizer=smollm2[1], batch_size=1), ("gsm8k",), 3, new_tokens=40)
    for own, other in zip(ours["samples"]["gsm8k"], theirs["samples"]["gsm8k"], strict=True):
        assert own["arguments"][0][0] == other["arguments"][0][0]
        assert own["resps"] == other["resps"]
        assert own["exact_match"] == other["exact_match"]


@contextmanager
def opened(model: Any) -> Iterator[Any]:
    yield model


@pytest.mark.soak
def test_all_six_benchmarks_run(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    from halo_forge.evaluate.bench.run import BenchSettings, run_benchmarks

    settings = BenchSettings(names=tuple(BENCHMARKS), limit=1, tree=TREE)
    model, tokenizer = smollm2
    report = run_benchmarks({"tuned": lambda: opened(model)}, tokenizer, settings, tmp_path, model_name="smollm2")
    found = {row.metric: row for row in report.measurements}
    assert {f"bench.{name}" for name in BENCHMARKS} <= found.keys()
    for name in BENCHMARKS:
        if name not in ("humaneval", "gsm8k"):
            assert found[f"bench.{name}"].status == "measured", found[f"bench.{name}"].note
            assert found[f"bench.{name}"].subsampled
    assert found["bench.mmlu"].n == 57
    lines = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {line["benchmark"] for line in lines} == set(BENCHMARKS)
    assert any(line["benchmark"] == "humaneval" and line["tuned"]["answers"][0] for line in lines)
