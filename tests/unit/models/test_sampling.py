"""Drawn tokens: the right distribution, the nucleus, and answers that do not know their batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.models.sampling import Sampling, sample_tokens

VOCAB_SIZE = 64


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


PROMPTS = [
    Prompt(tuple(range(3, 3 + length)), frozenset({1, 11, 21})) for length in (1, 9, 4, 17, 4, 6, 2, 30, 12, 5, 3, 8)
]


def drawn(
    model: LlamaForCausalLM, order: list[int], batch_size: int, temperature: float = 1.0, seed: int = 0
) -> dict[int, Generation]:
    keys = tuple(f"{seed}:{index}" for index in order)
    answers = generate(
        model, [PROMPTS[index] for index in order], decode=str, max_new_tokens=20, batch_size=batch_size,
        sampling=Sampling(temperature=temperature, top_p=0.9, keys=keys),
    )  # fmt: skip
    return dict(zip(order, answers, strict=True))


def test_frequencies_are_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    num_draws = 20_000
    uniform = np.random.default_rng(0).random(num_draws).tolist()
    for temperature in (0.5, 1.0, 2.0):
        tokens = sample_tokens(logits.expand(num_draws, -1), uniform, temperature, 1.0)
        found = torch.bincount(tokens, minlength=5) / num_draws
        expected = torch.softmax(logits / temperature, -1)
        assert (found - expected).abs().max() < 4 * 0.5 / num_draws**0.5


def test_the_nucleus_is_the_shortest_that_holds_top_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    uniform = torch.linspace(0, 1 - 1e-9, 101).tolist()
    for top_p, kept in ((0.3, {1}), (0.6, {1, 3}), (0.8, {1, 3, 2}), (1.0, {0, 1, 2, 3})):
        assert set(sample_tokens(logits.expand(101, -1), uniform, 1.0, top_p).tolist()) == kept
    inside = sample_tokens(logits.expand(101, -1), uniform, 1.0, 0.6)
    assert (inside == 1).float().mean().item() == pytest.approx(0.5 / 0.75, abs=0.02)


def test_answers_do_not_depend_on_batch_or_order(llama: LlamaForCausalLM) -> None:
    alone = {index: drawn(llama, [index], 1)[index] for index in range(len(PROMPTS))}
    for batch_size in (2, 5, 12):
        for order in (list(range(12)), list(reversed(range(12))), [7, 3, 0]):
            for index, answer in drawn(llama, order, batch_size).items():
                assert answer == alone[index], (index, batch_size)


def test_another_seed_draws_other_answers(llama: LlamaForCausalLM) -> None:
    first, second = drawn(llama, list(range(12)), 4), drawn(llama, list(range(12)), 4, seed=1)
    assert sum(first[index].token_ids != second[index].token_ids for index in first) > 6
    assert first == drawn(llama, list(range(12)), 4)


def test_very_cold_sampling_is_greedy(llama: LlamaForCausalLM) -> None:
    greedy = generate(llama, PROMPTS, decode=str, max_new_tokens=20, batch_size=5)
    assert list(drawn(llama, list(range(12)), 5, temperature=1e-4).values()) == greedy
