"""What was forgotten, on general texts: against KL and perplexity worked out over the whole vocabulary in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from halo_forge.artifacts import EvalReport
from halo_forge.chat import Example
from halo_forge.config.schema import EvaluationSection, GateSection
from halo_forge.errors import Interrupted
from halo_forge.evaluate import retention
from halo_forge.evaluate.compare import compare_retention
from halo_forge.evaluate.measure import Measuring
from halo_forge.evaluate.retention import Retention, base_predictions, general_examples, kl_of, measure_retention
from halo_forge.evaluate.statistics import Resampling
from halo_forge.gate.judge import judge_rules

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

Build = Callable[..., "LlamaForCausalLM"]


@pytest.fixture
def texts(tiny_tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    return general_examples(tiny_tokenizer, 512)


@pytest.fixture
def how(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Measuring:
    return Measuring(
        settings=EvaluationSection(), precision="float32", tokenizer=tiny_tokenizer, cache_directory=tmp_path,
        shared_cache=tmp_path, notify=lambda event, fields: None, check=lambda: None,
    )  # fmt: skip


def measured(base: Any, tuned: Any, texts: list[Example], how: Measuring) -> Retention:
    said = base_predictions(base, texts, how.cache_directory / "base.jsonl", how)
    return measure_retention(tuned, texts, said, how.cache_directory / "tuned.jsonl", how)


def by_hand(base: Any, tuned: Any, text: Example) -> tuple[float, float, float]:
    """(KL, nll of base, nll of tuned), one text, the whole vocabulary, float64."""
    ids = torch.from_numpy(text.input_ids.astype(np.int64))
    places = torch.from_numpy(np.flatnonzero(text.loss_weights > 0))
    with torch.no_grad():
        p, q = (model(input_ids=ids[None]).logits[0].double().log_softmax(1)[places - 1] for model in (base, tuned))
    picked = (torch.arange(len(places)), ids[places])
    return float((p.exp() * (p - q)).sum()), float(-p[picked].sum()), float(-q[picked].sum())


def test_the_suite_is_whole_and_of_both_kinds(texts: list[Example]) -> None:
    assert len(texts) == 40
    shares = [float((text.loss_weights > 0).mean()) for text in texts]
    assert all(share < 0.8 for share in shares[:24])  # a question is read, its answer counts
    assert all(share > 0.9 for share in shares[24:])


def test_it_is_the_kl_and_the_perplexity(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Build, texts: list[Example], how: Measuring
) -> None:
    monkeypatch.setattr(retention, "NUM_LIKELIEST", 10_000)  # more than the vocabulary has
    base, tuned = tiny_llama(seed=0), tiny_llama(seed=7)
    found = measured(base, tuned, texts, how)
    for index in (0, 5, 23, 24, 39):
        expected = by_hand(base, tuned, texts[index])
        assert (found.kl[index], found.base_nll[index], found.tuned_nll[index]) == pytest.approx(expected, rel=1e-5)
        assert found.num_tokens[index] == texts[index].num_supervised_tokens


def test_fewer_tokens_give_a_lower_bound_that_rises_to_it(tiny_llama: Build) -> None:
    torch.manual_seed(0)
    p, logits = (torch.randn(6, 512) * 3).log_softmax(1), torch.randn(6, 512) * 3
    whole = (p.exp() * (p - logits.log_softmax(1))).sum(1)
    bounds = []
    for width in (8, 64, 256, 512):
        top = p.topk(width)
        bounds.append(kl_of(top.indices.int().numpy(), top.values.numpy(), logits).float())
    for less, more in pairwise(bounds):
        assert (less <= more + 1e-5).all()
    assert torch.allclose(bounds[-1], whole, rtol=1e-5)
    assert torch.allclose(bounds[2], whole, rtol=0.02)


def test_a_model_is_no_distance_from_itself(tiny_llama: Build, texts: list[Example], how: Measuring) -> None:
    found = measured(tiny_llama(seed=0), tiny_llama(seed=0), texts, how)
    assert np.abs(found.kl).max() < 1e-5
    assert (found.base_nll == found.tuned_nll).all()


def test_both_are_kept_and_told_apart(tiny_llama: Build, texts: list[Example], how: Measuring) -> None:
    """The second time no model is asked; another base is not taken for the first one."""
    base, tuned = tiny_llama(seed=0), tiny_llama(seed=7)
    first = measured(base, tuned, texts, how)
    broken = tiny_llama(seed=0)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    again = measured(broken, broken, texts, how)
    assert (again.kl == first.kl).all()
    assert (again.base_nll == first.base_nll).all()
    (how.cache_directory / "base.safetensors").unlink()
    assert (measured(tiny_llama(seed=3), tuned, texts, how).kl != first.kl).all()
    (how.cache_directory / "base.safetensors").write_bytes(b"torn")
    assert (measured(base, tuned, texts, how).kl == first.kl).all()
    fewer = measured(base, tuned, texts[:30], how)
    assert (fewer.kl == first.kl[:30]).all()


def test_it_stops_when_told_to(tiny_llama: Build, texts: list[Example], how: Measuring) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    told = Measuring(
        settings=how.settings, precision="float32", tokenizer=how.tokenizer, cache_directory=how.cache_directory,
        shared_cache=how.shared_cache, notify=how.notify, check=stop,
    )  # fmt: skip
    with pytest.raises(Interrupted):
        base_predictions(tiny_llama(seed=0), texts, how.cache_directory / "base.jsonl", told)
    assert not (how.cache_directory / "base.safetensors").exists()


def test_a_logit_scale_after_the_head_is_measured_too(
    tiny_llama: Build, texts: list[Example], how: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model's own forward pass, text by text: the same numbers as in batches."""
    base, tuned = tiny_llama(seed=0), tiny_llama(seed=7)
    batched = measured(base, tuned, texts, how)
    for path in how.cache_directory.iterdir():
        path.unlink()
    monkeypatch.setattr(retention, "logits_are_head_of_hidden", lambda model, example: False)
    assert measured(base, tuned, texts, how).kl == pytest.approx(batched.kl, rel=1e-4)


def test_comparisons_have_intervals_and_the_gate_reads_them() -> None:
    generator = np.random.default_rng(0)
    num_tokens = generator.integers(5, 40, size=40)
    base = 2.0 * num_tokens
    general = Retention(base, base + 0.3 * num_tokens, 0.2 * num_tokens + generator.uniform(0, 1, 40), num_tokens)
    rows = compare_retention(general, Resampling())
    perplexity, kl = rows
    assert perplexity.base.value == pytest.approx(np.exp(2.0))
    assert perplexity.tuned.value == pytest.approx(np.exp(2.3))
    assert (perplexity.losses, perplexity.delta.n) == (40, 40)
    assert kl.base.value == 0.0
    assert kl.tuned.low is not None
    assert kl.tuned.high is not None
    assert 0.2 < kl.tuned.low < general.kl.sum() / num_tokens.sum() < kl.tuned.high < 0.3
    report = EvalReport.model_construct(comparisons=rows, confidence=0.95)
    for limit, verdict in ((0.5, "PASS"), (0.1, "FAIL")):
        section = GateSection.model_validate({"rules": [{"metric": "general_kl", "max": limit}]})
        assert judge_rules(section, report)[0] == verdict


def test_what_is_not_finite_is_failed_and_no_text_is_not_measured() -> None:
    ones = np.ones(3)
    rows = compare_retention(Retention(ones, np.array([1.0, np.nan, 1.0]), ones, np.array([1, 1, 1])), Resampling())
    assert [row.tuned.status for row in rows] == ["failed", "measured"]
    assert [row.tuned.status for row in compare_retention(None, Resampling())] == ["not_measured"] * 2
