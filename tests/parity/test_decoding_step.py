"""The written-out decoding step against the model's own forward pass: equal tokens in float32, or not used at all."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from halo_forge.models.fast import generation
from halo_forge.models.fast.generation import DecodingStep, decoding_step, own_steps
from halo_forge.models.fast.scoring import Continuation, score, scoring_decoder
from halo_forge.models.generate import Prompt, generate

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
VOCAB_SIZE = 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}
STOPS = frozenset(range(1, VOCAB_SIZE, 16))


def build(family: str) -> Any:
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation("sdpa")
    for parameter in model.parameters():  # biases and norms that are not 0 and 1
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return model


def prompts(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [Prompt(tuple(torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist()), STOPS) for n in lengths]


def answers(model: Any, *, fast: bool) -> list[tuple[int, ...]]:
    with nullcontext() if fast else own_steps():
        found = generate(model, prompts(30), decode=str, max_new_tokens=40, batch_size=6)
    return [answer.token_ids for answer in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_models_own(family: str) -> None:
    model = build(family)
    assert decoding_step(model) is not None
    assert answers(model, fast=True) == answers(model, fast=False)


def test_adapters_are_merged_when_on_and_left_out_when_off() -> None:
    model = build("llama")
    base = answers(model, fast=False)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    tuned = answers(adapted, fast=False)
    assert tuned != base
    assert answers(adapted, fast=True) == tuned
    with adapted.disable_adapter():
        assert answers(adapted, fast=True) == base


def test_the_models_weights_are_left_as_they_are() -> None:
    model = build("llama")
    before = [(parameter.data_ptr(), parameter.clone()) for parameter in model.parameters()]
    answers(model, fast=True)
    after = [(parameter.data_ptr(), parameter) for parameter in model.parameters()]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))


def test_what_is_not_covered_or_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding_step(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).eval()) is None
    model = build("llama")
    step = DecodingStep.of(model)
    step.scale *= 1.1
    assert not step.agrees(model)
    monkeypatch.setattr(generation, "usable_bytes", lambda: 0)
    assert decoding_step(model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_are_the_models_own(family: str) -> None:
    model = build(family)
    assert scoring_decoder(model) is not None
    generator = torch.Generator().manual_seed(3)

    def words(count: int) -> list[int]:
        return torch.randint(3, VOCAB_SIZE, (count,), generator=generator).tolist()

    few_shot = words(40)
    items = []
    for question in range(5):
        context = few_shot + words(10 + question)
        items += [Continuation(tuple(context + words(1 + choice)), len(context)) for choice in range(4)]
    items.append(Continuation((5, 6), 1))
    fast, slow = score(model, items, max_tokens_per_row=150), score(model, items, fast=False)
    for one, two in zip(fast, slow, strict=True):
        assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=2e-3)
        assert one.is_greedy == two.is_greedy


def test_a_greedy_continuation_is_seen_as_one_and_adapters_count() -> None:
    model = build("llama")
    prompt = Prompt(tuple(range(3, 30)), frozenset())
    own = generate(model, [prompt], decode=str, max_new_tokens=8, batch_size=1)[0].token_ids
    greedy = Continuation((*prompt.token_ids, *own), len(prompt.token_ids))
    assert score(model, [greedy])[0].is_greedy
    base = score(model, [greedy])[0].log_likelihood
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    assert score(adapted, [greedy])[0].log_likelihood == pytest.approx(
        score(adapted, [greedy], fast=False)[0].log_likelihood, abs=1e-3
    )
    with adapted.disable_adapter():
        assert score(adapted, [greedy])[0].log_likelihood == pytest.approx(base, abs=1e-3)


@pytest.mark.parametrize("fast", [True, False])
def test_a_stop_text_ends_an_answer(fast: bool) -> None:
    """Also one that several tokens make together: here a token's text is its number in brackets."""
    model = build("llama")

    def decode(token_ids: list[int]) -> str:
        return "".join(f"<{token}>" for token in token_ids)

    plain = [Prompt(prompt.token_ids, frozenset()) for prompt in prompts(8)]
    switch = nullcontext if fast else own_steps
    with switch():
        whole = generate(model, plain, decode=decode, max_new_tokens=30, batch_size=4)
    stops = [f"{answer.token_ids[9]}><{answer.token_ids[10]}" for answer in whole]
    asked = [Prompt(p.token_ids, frozenset(), (stop, "never")) for p, stop in zip(plain, stops, strict=True)]
    with switch():
        found = generate(model, asked, decode=decode, max_new_tokens=30, batch_size=4)
    for answer, long, stop in zip(found, whole, stops, strict=True):
        assert answer.stopped
        assert long.text.startswith(answer.text)
        assert stop in answer.text
        assert stop not in decode(list(answer.token_ids[:-1]))
