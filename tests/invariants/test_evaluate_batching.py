"""The likelihood of an answer depends on the model and the answer alone: not on the batch, padding or chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from halo_forge.chat.records import Example
from halo_forge.errors import Interrupted
from halo_forge.evaluate.heldout import answer_nll, batches_by_length
from halo_forge.models.generate import Prompt, generate

VOCAB_SIZE = 128
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def llama(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation=attention)).eval()


def gemma2() -> Gemma2ForCausalLM:
    """Caps its logits after the head."""
    torch.manual_seed(0)
    config = Gemma2Config(
        **SMALL, final_logit_softcapping=5.0, attn_logit_softcapping=None, query_pre_attn_scalar=8,
        sliding_window=16, attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def cohere() -> CohereForCausalLM:
    """Scales its logits after the head."""
    torch.manual_seed(0)
    settings = {name: value for name, value in SMALL.items() if name != "head_dim"}
    return CohereForCausalLM(CohereConfig(**settings, logit_scale=0.25)).eval()


def examples(count: int = 17) -> list[Example]:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        length = int(generator.integers(2, 40))
        weights = (generator.random(length) < 0.5).astype(np.float32) * generator.choice([0.25, 1.0, 3.0])
        weights[0], weights[-1] = 0.0, 1.0
        input_ids = generator.integers(1, VOCAB_SIZE, size=length).astype(np.int32)
        rows.append(Example(input_ids=input_ids, loss_weights=weights.astype(np.float32), conversation_id=str(number)))
    return rows


def reference_nll(model: PreTrainedModel, example: Example) -> float:
    """One example, all logits, in float64: what the number is by definition."""
    input_ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        log_probs = model(input_ids=input_ids).logits[0].double().log_softmax(-1)
    positions = np.flatnonzero(example.loss_weights > 0)
    return -float(sum(log_probs[t - 1, input_ids[0, t]] for t in positions))


@pytest.mark.parametrize("build", [llama, gemma2, cohere])
def test_the_number_is_its_definition(build: Callable[[], PreTrainedModel]) -> None:
    model, rows = build(), examples()
    nll_sums, num_tokens = answer_nll(model, rows, max_tokens_per_batch=120)
    np.testing.assert_allclose(nll_sums, [reference_nll(model, row) for row in rows], rtol=2e-6)
    assert num_tokens.tolist() == [row.num_supervised_tokens for row in rows]
    assert (nll_sums.dtype, num_tokens.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_batch_size_changes_nothing(attention: str) -> None:
    model, rows = llama(attention), examples()
    longest = max(len(row.input_ids) for row in rows)
    one, three, eight = (
        answer_nll(model, rows, max_tokens_per_batch=longest * size)[0] / [row.num_supervised_tokens for row in rows]
        for size in (1, 3, 8)
    )
    np.testing.assert_allclose(three, one, atol=1e-6, rtol=0)
    np.testing.assert_allclose(eight, one, atol=1e-6, rtol=0)


def test_company_and_order_change_nothing() -> None:
    model, rows = llama(), examples()
    whole, _ = answer_nll(model, rows, max_tokens_per_batch=4096)
    backwards, _ = answer_nll(model, rows[::-1], max_tokens_per_batch=100)
    alone = [answer_nll(model, [row])[0][0] for row in rows]
    np.testing.assert_allclose(backwards[::-1], whole, rtol=2e-6)
    np.testing.assert_allclose(alone, whole, rtol=2e-6)


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = llama(), examples()
    whole, _ = answer_nll(model, rows)
    monkeypatch.setattr("halo_forge.evaluate.heldout.LOGITS_PER_CHUNK", 3 * VOCAB_SIZE)
    np.testing.assert_allclose(answer_nll(model, rows)[0], whole, rtol=2e-6)


def test_weights_steer_training_and_not_measurement() -> None:
    model, rows = llama(), examples(4)
    heavy = [
        Example(input_ids=row.input_ids, loss_weights=row.loss_weights * 7, conversation_id=row.conversation_id)
        for row in rows
    ]
    np.testing.assert_array_equal(answer_nll(model, heavy)[0], answer_nll(model, rows)[0])


def test_logits_are_computed_at_supervised_positions_alone() -> None:
    model, rows = llama(), examples()
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    answer_nll(model, rows, max_tokens_per_batch=200)
    num_probed = 2 * min(4, len(rows[0].input_ids))
    assert sum(seen) == num_probed + sum(row.num_supervised_tokens for row in rows)


def test_attention_that_is_given_no_mask_is_not_used() -> None:
    """What was registered for packed training would read padding as text; the model gets it back afterwards."""

    def maskless(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
    ) -> tuple[torch.Tensor, None]:
        raise AssertionError("evaluation must not call this")

    AttentionInterface.register("maskless_for_a_test", maskless)
    model, rows = llama(), examples(5)
    prompts = [Prompt(tuple(row.input_ids.tolist()), frozenset({1})) for row in rows]
    expected, _ = answer_nll(model, rows)
    answers = generate(model, prompts, decode=str, max_new_tokens=5, batch_size=2)
    model.set_attn_implementation("maskless_for_a_test")
    np.testing.assert_array_equal(answer_nll(model, rows)[0], expected)
    assert generate(model, prompts, decode=str, max_new_tokens=5, batch_size=2) == answers
    assert model.config._attn_implementation == "maskless_for_a_test"


def test_bfloat16_is_close_and_says_what_it_computed_in() -> None:
    model, rows = llama(), examples()
    full, num_tokens = answer_nll(model, rows)
    half, _ = answer_nll(model, rows, precision="bfloat16")
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half / num_tokens, full / num_tokens, atol=0.2)
    assert model.dtype == torch.float32


def test_stopping_keeps_the_batches_that_were_done() -> None:
    model, rows = llama(), examples()
    kept: dict[int, float] = {}
    calls = 0

    def stop_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        answer_nll(
            model, rows, max_tokens_per_batch=80, check=stop_third,
            on_batch=lambda indices, sums: kept.update(zip(indices, sums.tolist(), strict=True)),
        )  # fmt: skip
    assert 0 < len(kept) < len(rows)
    whole, _ = answer_nll(model, rows)
    for index, value in kept.items():
        assert value == pytest.approx(whole[index], rel=2e-6)


def test_batches_hold_every_row_once_within_the_limit() -> None:
    lengths = [5, 1, 40, 7, 7, 3, 12]
    batches = list(batches_by_length(lengths, 20))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= 20
    assert batches[0] == [2]
    assert list(batches_by_length([], 20)) == []
