"""Prompts that begin alike are read once where they do, and answered as transformers answers each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from halo_forge.models.fast.generation import DecodingStep, own_steps
from halo_forge.models.generate import Prompt, generate
from halo_forge.models.sampling import Sampling
from halo_forge.models.shared_prefix import MIN_SAVED_TOKENS, prefixes_not_shared

VOCAB_SIZE = 512
STOPS = frozenset(range(1, VOCAB_SIZE, 24))
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def llama() -> Any:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.set_attn_implementation("sdpa")
    return model


def gpt2() -> Any:
    torch.manual_seed(1)
    sizes = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3)
    return GPT2LMHeadModel(sizes).eval()


def words(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCAB_SIZE, (count,), generator=generator).tolist())


def alike() -> list[Prompt]:
    """One beginning of 50 tokens, two longer ones within it, rests of 1 to 30 tokens, one prompt that is a beginning of
    others, and one that stands there four times."""
    start = words(50, 1)
    topics = [start + words(20, 2), start + words(33, 3)]
    texts = [topic + words(1 + 5 * number, 10 + number) for number in range(6) for topic in topics]
    texts += [start + words(1, 4), topics[0], *[topics[1] + words(9, 5)] * 4]
    return [Prompt(text, STOPS) for text in texts]


def answers(model: Any, prompts: list[Prompt], batch_size: int, **more: Any) -> list[tuple[tuple[int, ...], bool]]:
    found = generate(model, prompts, decode=str, max_new_tokens=30, batch_size=batch_size, **more)
    return [(answer.token_ids, answer.stopped) for answer in found]


def by_transformers(model: Any, prompt: Prompt) -> tuple[tuple[int, ...], bool]:
    ids = torch.tensor([prompt.token_ids])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30,
        eos_token_id=sorted(STOPS), pad_token_id=0,
    )  # fmt: skip
    answer = output[0, ids.shape[1] :].tolist()
    stopped = answer[-1] in STOPS
    return tuple(answer[:-1] if stopped else answer), stopped


@contextmanager
def tokens_read(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each forward pass of more than one column reads, by whichever code."""
    read: list[int] = []

    def counting(forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[-4]
            if ids.shape[1] > 1 or ids.shape[0] == 1:
                read.append(ids.numel())
            return forward(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", counting(model.forward))
        patched.setattr(DecodingStep, "__call__", counting(DecodingStep.__call__))
        yield read


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("fast", [True, False])
def test_answers_are_those_of_each_prompt_by_itself(fast: bool, batch_size: int) -> None:
    model, prompts = llama(), alike()
    expected = [by_transformers(model, prompt) for prompt in prompts]
    assert len({len(answer) for answer, stopped in expected if stopped}) > 3
    with nullcontext() if fast else own_steps():
        assert answers(model, prompts, batch_size) == expected


def test_learned_positions_too() -> None:
    model, prompts = gpt2(), alike()
    assert answers(model, prompts, 4) == [by_transformers(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("fast", [True, False])
def test_what_is_alike_is_read_once(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All prompts in one batch, answers of one token: the beginning once, and what is left of each, padded."""
    model = llama()
    start = words(60, 1)
    prompts = [Prompt(start + words(length, length), frozenset()) for length in (3, 7, 10, 10)]

    def read() -> list[int]:
        with tokens_read(model, monkeypatch) as counts, nullcontext() if fast else own_steps():
            generate(model, prompts, decode=str, max_new_tokens=1 if not fast else 24, batch_size=4)
        return [count for count in counts if count > 24]  # the probe of the written-out step is smaller

    assert read() == [60, 4 * 10]
    with prefixes_not_shared():
        assert read() == [4 * 70]


def test_a_beginning_is_read_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    start = words(60, 1)
    prompts = [Prompt(start + words(4, length), frozenset()) for length in range(6)]
    with tokens_read(model, monkeypatch) as counts, own_steps():
        generate(model, prompts, decode=str, max_new_tokens=1, batch_size=2)
    assert counts == [60, 8, 8, 8]


def test_one_prompt_with_many_samples_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    prompts = [Prompt(text, frozenset()) for text in (words(40, 1), words(40, 2)) for _ in range(4)]
    sampling = Sampling(temperature=1.0, top_p=0.9, keys=tuple("abcdefgh"))
    with tokens_read(model, monkeypatch) as counts, own_steps():
        shared = answers(model, prompts, 4, sampling=sampling)
    assert [count for count in counts if count > 4] == [39, 39]
    with own_steps(), prefixes_not_shared():
        assert answers(model, prompts, 4, sampling=sampling) == shared
    assert len(set(shared)) == 8


def test_short_beginnings_and_other_caches_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    short = words(MIN_SAVED_TOKENS // 3, 1)
    prompts = [Prompt(short + words(5, seed), frozenset()) for seed in range(2, 5)]
    with tokens_read(model, monkeypatch) as counts, own_steps():
        generate(model, prompts, decode=str, max_new_tokens=1, batch_size=3)
    assert counts == [3 * (len(short) + 5)]
    torch.manual_seed(1)
    sizes = {**SIZES, "bos_token_id": 1, "eos_token_id": 2}
    windowed = MistralForCausalLM(MistralConfig(**sizes, sliding_window=16)).eval()
    assert answers(windowed, alike(), 4) == [by_transformers(windowed, prompt) for prompt in alike()]
