"""packed = unpacked = each document alone, in loss and gradient, for several architectures and attentions.

Tolerances are for float32: other blocking of the same products moves the last digits (measured 1e-6 relative).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from halo_forge.chat import Example
from halo_forge.errors import TrainingError
from halo_forge.train import attention as attention_module
from halo_forge.train.attention import DOCUMENT_ATTENTION, set_training_attention, verify_packing
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import model_objective

RELATIVE = 5e-6
VOCAB = 200
ROPED = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ROPED)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**ROPED, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**ROPED, head_dim=16)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**ROPED, head_dim=16)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.08, bos_token_id=0, eos_token_id=0,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, initializer_range=0.08, bos_token_id=0, eos_token_id=0
        )
    ),
}  # fmt: skip


def examples(lengths: tuple[int, ...] = (7, 300, 23, 64)) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for length in lengths:
        weights = (rng.random(length) < 0.5).astype(np.float32) * rng.choice([0.5, 1.0, 2.0], length)
        weights[0], weights[-1] = 0, 1
        ids = rng.integers(0, VOCAB, length).astype(np.int32)
        made.append(Example(input_ids=ids, loss_weights=weights.astype(np.float32), conversation_id=str(length)))
    return made


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return ARCHITECTURES[name]().eval()


def loss_and_gradients(
    model: PreTrainedModel, run: Callable[[], torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = run()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference(model: PreTrainedModel) -> torch.Tensor:
    """Each document alone, eager attention, all logits, torch's own cross entropy."""
    total = torch.zeros(())
    for example in examples():
        ids = torch.from_numpy(example.input_ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total = total + (nll * torch.from_numpy(example.loss_weights[1:])).sum()
    return total


def packed_nll(model: PreTrainedModel, batch: Batch, supervised_only: bool) -> torch.Tensor:
    return model_objective(model, "float32", supervised_logits_only=supervised_only).nll(batch, batch.weights)[0]


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= RELATIVE * gradient.abs().max(), name


# transformers has no SDPA for Gemma 2 (logit soft-capping).
CASES = [(a, b) for a in ARCHITECTURES for b in ("auto", "sdpa", "eager") if (a, b) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_packed_equals_every_document_alone(architecture: str, attention: str) -> None:
    model = build(architecture)
    model.set_attn_implementation("eager")
    expected_loss, expected = loss_and_gradients(model, lambda: reference(model))
    batch = examples_to_batch(examples())
    assert set_training_attention(model, attention, examples_to_batch(examples((9, 12)))) != "unpacked"
    for supervised_only in (True, False):
        loss, gradients = loss_and_gradients(model, lambda only=supervised_only: packed_nll(model, batch, only))
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        assert_equal_gradients(gradients, expected)


def test_changing_one_document_leaves_the_others_bit_for_bit() -> None:
    model = build("llama")
    set_training_attention(model, "document", examples_to_batch(examples((9, 12))))
    first, *rest = examples()
    other_ids = first.input_ids.copy()
    other_ids[:] = (other_ids + 1) % VOCAB
    changed = Example(input_ids=other_ids, loss_weights=first.loss_weights, conversation_id="changed")
    with torch.no_grad():
        one = model(**attention_module.forward_inputs(examples_to_batch([first, *rest]))).logits[0]
        two = model(**attention_module.forward_inputs(examples_to_batch([changed, *rest]))).logits[0]
    boundary = len(first.input_ids)
    assert torch.equal(one[boundary:], two[boundary:])
    assert not torch.equal(one[:boundary], two[:boundary])


def test_auto_takes_document_attention_where_the_model_allows_it() -> None:
    probe = examples_to_batch(examples((9, 12)))
    assert set_training_attention(build("llama"), "auto", probe) == DOCUMENT_ATTENTION
    assert set_training_attention(build("gemma2"), "auto", probe) != DOCUMENT_ATTENTION  # logit soft-capping


def test_a_choice_by_name_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TrainingError, match="soft-capping"):
        set_training_attention(build("gemma2"), "document", examples_to_batch(examples((9, 12))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_proof_sees_a_leak(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Planted bug: attention that ignores document bounds. The start-up proof must refuse it."""
    model = build("llama").to(dtype)
    probe = examples_to_batch(examples((11, 16)))
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    assert verify_packing(model, probe)

    def leaking(module, query, key, value, mask, scaling=None, **_):  # type: ignore[no-untyped-def]
        heads = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1), is_causal=True, scale=scaling
        )
        return out.transpose(1, 2), None

    from transformers import AttentionInterface

    monkeypatch.setitem(AttentionInterface._global_mapping, "leaking", leaking)
    model.set_attn_implementation("leaking")
    assert not verify_packing(model, probe)
