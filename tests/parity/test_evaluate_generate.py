"""Batched greedy answers against `model.generate(do_sample=False)` of each prompt by itself, token for token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from halo_forge.errors import Interrupted
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.models.kv_cache import slot_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCAB_SIZE = 512
MAX_NEW_TOKENS = 24
STOPS = frozenset(range(1, VOCAB_SIZE, 10))
"""As stop tokens, a tenth of the vocabulary ends the answers of a random model early, at many different lengths."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def chaotic_llama(seed: int = 0) -> LlamaForCausalLM:
    """Weights large enough that the answer hangs on every token of the prompt: a wrong mask or position shows."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def random_prompts(count: int, stop_token_ids: frozenset[int] = STOPS, *, longest: int = 30) -> list[Prompt]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        Prompt(tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()), stop_token_ids)
        for length in lengths
    ]


def by_generate(model: PreTrainedModel, prompt: Prompt, max_new_tokens: int) -> tuple[tuple[int, ...], bool]:
    """(answer without the stop token, stopped) from transformers."""
    input_ids = torch.tensor([prompt.token_ids])
    output = model.generate(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False, max_new_tokens=max_new_tokens,
        eos_token_id=sorted(prompt.stop_token_ids), pad_token_id=0,
    )  # fmt: skip
    answer = output[0, input_ids.shape[1] :].tolist()
    stopped = bool(answer) and answer[-1] in prompt.stop_token_ids
    return tuple(answer[:-1] if stopped else answer), stopped


def show(token_ids: list[int]) -> str:
    return " ".join(map(str, token_ids))


def assert_same_answers(
    model: PreTrainedModel, prompts: list[Prompt], batch_size: int, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Generation]:
    answers = generate(model, prompts, decode=show, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert (answer.token_ids, answer.stopped) == by_generate(model, prompt, max_new_tokens)
        assert answer.text == show(list(answer.token_ids))
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_answers_equal_generate_at_any_batch_size(batch_size: int) -> None:
    model = chaotic_llama(seed=1)
    answers = assert_same_answers(model, random_prompts(22), batch_size)
    lengths = {len(answer.token_ids) for answer in answers if answer.stopped}
    assert len(lengths) > 3  # rows finished at different steps, or the test shows nothing
    assert any(not answer.stopped for answer in answers)


def test_each_prompt_has_its_own_stop_tokens() -> None:
    model = chaotic_llama(seed=1)
    prompts = random_prompts(8, longest=6) + random_prompts(9, frozenset(range(2, VOCAB_SIZE, 10)))
    assert_same_answers(model, prompts, 4)


def test_long_answers_and_many_refills() -> None:
    """Columns are dropped at the left and buffers grow at the right many times over."""
    model = chaotic_llama(seed=2)
    prompts = random_prompts(14, frozenset(range(1, VOCAB_SIZE, 60)), longest=60)
    assert_same_answers(model, prompts, 3, max_new_tokens=100)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_adapters_on_and_off(attention: str) -> None:
    model = chaotic_llama(seed=3)
    model.set_attn_implementation(attention)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    prompts = random_prompts(9)
    tuned = generate(adapted, prompts, decode=show, max_new_tokens=MAX_NEW_TOKENS, batch_size=4)
    expected = [by_generate(adapted, prompt, MAX_NEW_TOKENS) for prompt in prompts]
    assert [(answer.token_ids, answer.stopped) for answer in tuned] == expected
    with adapted.disable_adapter():
        base = generate(adapted, prompts, decode=show, max_new_tokens=MAX_NEW_TOKENS, batch_size=4)
    assert base == generate(chaotic_llama(seed=3), prompts, decode=show, max_new_tokens=MAX_NEW_TOKENS, batch_size=4)
    assert base != tuned


def test_a_model_whose_cache_cannot_take_new_rows() -> None:
    """Sliding-window layers forget: such a model answers in plain batches, and just as exactly."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=12, max_position_embeddings=256, initializer_range=0.3, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    assert slot_cache(config) is None
    assert slot_cache(chaotic_llama().config) is not None
    assert_same_answers(model, random_prompts(11), 4)


def test_the_end_of_the_context_ends_an_answer() -> None:
    """Learned positions: one step too far is an index error."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=2, n_positions=40, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    prompts = [Prompt(tuple(range(3, 3 + length)), frozenset({1})) for length in (36, 40, 2, 10)]
    answers = generate(model, prompts, decode=show, max_new_tokens=20, batch_size=3)
    assert [len(answer.token_ids) for answer in answers] == [4, 0, 20, 20]
    assert not any(answer.stopped for answer in answers)
    assert answers[0].token_ids == by_generate(model, prompts[0], 4)[0]
    # One row that is done among many that are not is fed along, and must not run out of positions.
    prompts = [Prompt(tuple(range(3, 3 + length)), frozenset({1})) for length in (38, 2, 3, 4, 5, 6, 7, 8)]
    lengths = [len(row.token_ids) for row in generate(model, prompts, decode=show, max_new_tokens=20, batch_size=8)]
    assert lengths == [2] + [20] * 7


def test_stopping_keeps_what_was_finished() -> None:
    model = chaotic_llama(seed=1)
    prompts = random_prompts(12)
    kept: dict[int, Generation] = {}
    steps = 0

    def stop_later() -> None:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        generate(
            model, prompts, decode=show, max_new_tokens=MAX_NEW_TOKENS, batch_size=3,
            on_finished=lambda index, answer: kept.update({index: answer}), check=stop_later,
        )  # fmt: skip
    assert 0 < len(kept) < 12
    for index, answer in kept.items():
        assert (answer.token_ids, answer.stopped) == by_generate(model, prompts[index], MAX_NEW_TOKENS)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        generate(chaotic_llama().train(), random_prompts(1, frozenset()), decode=show, max_new_tokens=1, batch_size=1)


def test_nothing_to_answer() -> None:
    assert generate(chaotic_llama(), [], decode=show, max_new_tokens=4, batch_size=2) == []
    with pytest.raises(ValueError, match="no tokens"):
        generate(chaotic_llama(), [Prompt((), frozenset())], decode=show, max_new_tokens=4, batch_size=2)


def test_the_real_model(smollm2_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    stops = frozenset({smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")})
    questions = ["What is 2 + 2?", "Say yes.", "Name the capital of France and of Spain.", "Hi"]

    def prompt_of(question: str) -> Prompt:
        message: list[dict[str, Any]] = [{"role": "user", "content": question}]
        encoded = smollm2_tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return Prompt(tuple(encoded["input_ids"]), stops)

    answers = assert_same_answers(model, [prompt_of(question) for question in questions], 3, max_new_tokens=10)
    assert any(answer.stopped for answer in answers)
