"""The written-out layers give the loss and the gradients of transformers' and peft's own, in float32 and piece by piece
in float64; sharing prefixes, leaving unread positions out and recomputing change nothing.

Tolerances are for float32: the same sums in another order (measured below 3e-6 of a tensor's largest gradient).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from halo_forge.chat import Example
from halo_forge.models.fast import attention as attention_module
from halo_forge.models.fast import head as head_module
from halo_forge.models.fast import ops
from halo_forge.models.fast.attention import BlockAttention, RotaryAttention, attention_blocks, document_blocks
from halo_forge.models.fast.decoder import FastDecoder, NotCovered
from halo_forge.models.fast.head import HeadNll, Softening, Targets
from halo_forge.models.fast.prefixes import shared_layout
from halo_forge.models.quiet import quiet_transformers
from halo_forge.train.batches import Batch, examples_to_batch, step_batches
from halo_forge.train.loss import LogitsNll, fast_objective, model_objective

RELATIVE = 1e-5
VOCAB = 200
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():  # biases and norms start as zeros and ones
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def with_lora(model: PreTrainedModel, targets: list[str] | str = "all-linear", dropout: float = 0.0) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted  # type: ignore[return-value]


def examples(lengths: tuple[int, ...] = (7, 300, 23, 64), prefix: int = 0) -> list[Example]:
    rng = np.random.default_rng(0)
    common = rng.integers(0, VOCAB, prefix)
    made = []
    for length in lengths:
        weights = (rng.random(prefix + length) < 0.5) * rng.choice([0.5, 1.0, 2.0], prefix + length)
        weights[0], weights[-3], weights[-2:] = 0, 1, 0
        ids = np.concatenate([common, rng.integers(0, VOCAB, length)]).astype(np.int32)
        made.append(Example(input_ids=ids, loss_weights=weights.astype(np.float32), conversation_id=str(length)))
    return made


Gradients = dict[str, torch.Tensor]


def own(model: PreTrainedModel | PeftModel, run: Callable[[], torch.Tensor]) -> tuple[float, Gradients]:
    model.zero_grad(set_to_none=True)
    loss = run()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference(model: PreTrainedModel | PeftModel, rows: list[Example]) -> torch.Tensor:
    """Each document alone through the model itself, torch's own cross entropy at every position."""
    total = torch.zeros(())
    for example in rows:
        ids = torch.from_numpy(example.input_ids.astype(np.int64))
        nll = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total = total + (nll * torch.from_numpy(example.loss_weights[1:])).sum()
    return total


def fast(model: PreTrainedModel | PeftModel, batch: Batch, **settings: bool) -> tuple[float, Gradients]:
    decoder = FastDecoder.of(model, torch.float32)
    decoder.recompute = settings.get("recompute", False)
    decoder.skip_unread = settings.get("skip_unread", True)
    objective = fast_objective(decoder, supervised_logits_only=settings.get("supervised_logits_only", True))
    return own(model, lambda: objective.nll(batch, batch.weights)[0])


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients], relative: float = RELATIVE) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= relative * gradient.abs().max(), name


# ------------------------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("name", MODELS)
def test_full_training_has_the_gradients_of_the_model_itself(name: str) -> None:
    rows, model = examples(), build(name)
    expected = own(model, lambda: reference(model, rows))
    assert_same(fast(model, examples_to_batch(rows)), expected)
    assert_same(fast(model, examples_to_batch(rows, trim=True)), expected)
    for switch in ("recompute", "skip_unread", "supervised_logits_only"):
        assert_same(fast(model, examples_to_batch(rows), **{switch: switch == "recompute"}), expected)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["up_proj", "o_proj"]])
@pytest.mark.parametrize("name", ["llama tied", "qwen2", "qwen3"])
def test_lora_has_the_gradients_of_peft(name: str, targets: list[str] | str) -> None:
    rows, model = examples(), with_lora(build(name), targets)
    expected = own(model, lambda: reference(model, rows))
    assert_same(fast(model, examples_to_batch(rows, trim=True)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_that_an_optimizer_changes_is_the_one_that_is_used(dtype: torch.dtype) -> None:
    """After steps on weights, biases and norms the layers still give what the model gives."""
    rows, model = examples(), build("llama biased")
    batch = examples_to_batch(rows)
    decoder = FastDecoder.of(model, dtype)
    objective = fast_objective(decoder)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        objective.refresh()
        optimizer.zero_grad()
        objective.nll(batch, batch.weights)[0].backward()
        optimizer.step()
    objective.refresh()
    with torch.no_grad():
        found = objective.nll(batch, batch.weights)[0].item()
        assert found == pytest.approx(reference(model, rows).item(), rel=1e-5 if dtype == torch.float32 else 0.02)
        assert decoder.agrees(model, [torch.arange(20)])


def test_the_working_copy_follows_the_masters() -> None:
    model = build("llama tied")
    batch = examples_to_batch(examples())
    decoder = FastDecoder.of(model, torch.bfloat16)
    objective = fast_objective(decoder)
    before = objective.nll(batch, batch.weights)[0].item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert objective.nll(batch, batch.weights)[0].item() != before  # norms and embeddings are read in place
    objective.refresh()
    after = objective.nll(batch, batch.weights)[0].item()
    assert after == pytest.approx(reference(model, examples()).item(), rel=0.01)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_is_as_close_to_float32_as_autocast_is() -> None:
    rows = examples((200, 180, 90))
    model = build("llama tied")
    _, exact = own(model, lambda: reference(model, rows))
    batch = examples_to_batch(rows)
    model.set_attn_implementation("eager")
    under_autocast = model_objective(model, "bfloat16")
    one = examples_to_batch(rows[:1])
    _, autocast = own(model, lambda: sum(  # type: ignore[arg-type, return-value]
        under_autocast.nll(b, b.weights)[0] for b in (one, *(examples_to_batch([row]) for row in rows[1:]))
    ))  # fmt: skip
    decoder = FastDecoder.of(model, torch.bfloat16)
    objective = fast_objective(decoder)
    _, found = own(model, lambda: objective.nll(batch, batch.weights)[0])

    def distance(gradients: Gradients) -> float:
        squares = sum(float((gradients[name] - exact[name]).square().sum()) for name in exact)
        return (squares / sum(float(g.square().sum()) for g in exact.values())) ** 0.5

    assert distance(found) <= 1.1 * distance(autocast)


def test_what_it_does_not_cover_is_refused_by_name() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=1, n_head=4))
    with pytest.raises(NotCovered, match=r"no decoder layers|parts of a Llama layer"):
        FastDecoder.of(gpt2, torch.float32)
    sliding = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    with pytest.raises(NotCovered, match="sliding window of 8"):
        FastDecoder.of(sliding, torch.float32)
    hooked = build("llama")
    hooked.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(NotCovered, match="something hangs on its LlamaMLP"):
        FastDecoder.of(hooked, torch.float32)
    for wrapped in ("model.norm", "embed_tokens"):
        with quiet_transformers():
            whole = get_peft_model(
                build("llama"), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[wrapped])
            )
        with pytest.raises(NotCovered, match="is a ModulesToSaveWrapper"):
            FastDecoder.of(whole, torch.float32)
    with quiet_transformers():
        dora = get_peft_model(build("llama"), LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(NotCovered, match="not a plain LoRA"):
        FastDecoder.of(dora, torch.float32)


@pytest.mark.parametrize("bug", ["no rotation", "leak", "wrong norm"])
def test_the_proof_at_the_start_sees_another_network(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen2")
    documents = [torch.arange(5, 25), torch.arange(40, 52)]
    assert FastDecoder.of(model, torch.float32).agrees(model, documents)
    assert FastDecoder.of(model, torch.bfloat16).agrees(model, documents)
    decoder = FastDecoder.of(model, torch.bfloat16)
    if bug == "no rotation":
        monkeypatch.setattr(attention_module, "_rotated", lambda heads, cos, sin, sign: heads.float())
    elif bug == "leak":
        monkeypatch.setattr(
            "halo_forge.models.fast.decoder.document_blocks", lambda lengths: document_blocks([sum(lengths)])
        )
    else:
        model.model.norm.variance_epsilon = 1.0
        decoder = FastDecoder.of(model, torch.bfloat16)
        decoder.norm = torch.nn.RMSNorm(64)
        decoder.norm.variance_epsilon = 1e-6
    assert not decoder.agrees(model, documents)


# ------------------------------------------------------------------------------------------------ shared prefixes


@pytest.mark.parametrize("name", ["llama tied", "qwen3"])
def test_shared_prefixes_change_no_gradient(name: str) -> None:
    rows = examples((7, 150, 23, 64), prefix=40) + examples((30, 9), prefix=90)
    model = build(name)
    expected = own(model, lambda: reference(model, rows))
    batch = examples_to_batch(rows, share_prefixes=True, trim=True)
    assert batch.input_ids.shape[1] < sum(len(row.input_ids) for row in rows) - 150
    assert batch.num_tokens == sum(len(row.input_ids) for row in rows)
    assert_same(fast(model, batch), expected)
    model.set_attn_implementation("halo_forge_document")
    through_model = model_objective(model, "float32")
    assert_same(own(model, lambda: through_model.nll(batch, batch.weights)[0]), expected)


def test_equal_documents_and_documents_inside_others_are_shared() -> None:
    long = examples((60,), prefix=0)[0]
    cut = Example(
        input_ids=long.input_ids[:40], loss_weights=np.r_[np.zeros(39), 1].astype(np.float32), conversation_id="c"
    )
    rows = [long, cut, long]
    model = build("llama")
    expected = own(model, lambda: reference(model, rows))
    batch = examples_to_batch(rows, share_prefixes=True)
    assert batch.input_ids.shape[1] == 60
    assert_same(fast(model, batch), expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=12))
def test_every_document_can_be_read_out_of_the_shared_row(shapes: list[tuple[int, int, int]]) -> None:
    rng = np.random.default_rng(0)
    stems = rng.integers(0, 5, (3, 40))
    documents = [
        np.concatenate([stems[stem][:shared], rng.integers(0, 5, own_tokens)]).astype(np.int32)
        for stem, shared, own_tokens in shapes
    ]
    layout = shared_layout(documents)
    for document, row_of in zip(documents, layout.row_of, strict=True):
        assert layout.input_ids[row_of].tolist() == document.tolist()
        assert layout.position_ids[row_of].tolist() == list(range(len(document)))
    assert len(layout.input_ids) + layout.num_shared == sum(map(len, documents))
    for start, end, seen in zip(layout.starts, layout.ends, layout.seen, strict=True):
        path = [place for first, last in seen for place in range(first, last)]
        assert layout.position_ids[path].tolist() == list(range(len(path)))
        assert layout.position_ids[start] == len(path)
        assert end > start


def test_sharing_is_used_where_it_saves_and_stays_within_the_budget() -> None:
    rows = examples((30,) * 12, prefix=60)
    shared = step_batches(rows, max_tokens=200, examples_per_batch=1, share_prefixes=True)
    plain = step_batches(rows, max_tokens=200, examples_per_batch=1, share_prefixes=False)
    assert len(shared) < len(plain)
    assert all(batch.input_ids.shape[1] <= 200 for batch in shared)
    apart = step_batches(examples((90,) * 6), max_tokens=200, examples_per_batch=1, share_prefixes=True)
    assert all(batch.document_lengths for batch in apart)


# ------------------------------------------------------------------------------------------------ pieces, in float64


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).requires_grad_()


@pytest.mark.parametrize("before", [ops.Before("nothing"), ops.Before("norm", 1e-5), ops.Before("gate")])
def test_gradients_of_the_pieces_are_those_of_finite_differences(before: ops.Before) -> None:
    x, weight, bias = leaf(5, 6), leaf(6), leaf(9)
    assert torch.autograd.gradcheck(lambda x, w: ops.RmsNorm.apply(x, w, 1e-5, torch.float64), (x, weight))
    masters = [leaf(4, 6), leaf(5, 6)]
    joint = torch.cat(masters).detach()
    adapters = [leaf(2, 6), leaf(4, 2), leaf(3, 6), leaf(5, 3)]
    inputs = (leaf(5, 12) if before.kind == "gate" else x, weight if before.kind == "norm" else None)

    def joined(x: torch.Tensor, norm: torch.Tensor | None, bias: torch.Tensor, *masters: torch.Tensor) -> torch.Tensor:
        joint.copy_(torch.cat(masters).detach())
        return ops.JointLinear.apply(x, before, norm, joint.clone(), bias, *masters)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(joined, (*inputs, bias, *masters))
    assert torch.autograd.gradcheck(lambda x, n: ops.JointLinear.apply(x, before, n, joint, None), inputs)
    for dropout in (0.0, 0.3):

        def adapted(
            x: torch.Tensor, norm: torch.Tensor | None, *adapters: torch.Tensor, dropout: float = dropout
        ) -> torch.Tensor:
            torch.manual_seed(0)
            kept = ops.kept_by_dropout(torch.Size([5, 6]), dropout, x.device) if dropout else None
            lora = (ops.AdapterOptions((0.5, 2.0), dropout), kept, *adapters)
            return ops.LoraLinear.apply(x, before, norm, joint, None, *lora)  # type: ignore[no-any-return]

        assert torch.autograd.gradcheck(adapted, (*inputs, *adapters))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_norm_before_a_projection_is_the_norm_by_itself(dtype: torch.dtype) -> None:
    x, weight, joint = leaf(5, 6).detach().to(torch.promote_types(dtype, torch.float32)), leaf(6), leaf(9, 6).to(dtype)
    normed = ops.RmsNorm.apply(x, weight, 1e-5, dtype)
    assert normed.dtype == dtype
    assert torch.equal(ops.JointLinear.apply(x, ops.Before("norm", 1e-5), weight, joint, None), normed @ joint.T)


def test_a_gate_is_silu_times_up() -> None:
    joint, x = leaf(9, 6), leaf(5, 12)
    gate, up = x.chunk(2, 1)
    found = ops.JointLinear.apply(x, ops.Before("gate"), None, joint, None)
    assert torch.allclose(found, (torch.nn.functional.silu(gate) * up) @ joint.T)


def test_adapter_dropout_is_one_mask_on_the_input() -> None:
    x, joint, adapters = leaf(50, 6), leaf(9, 6), [leaf(2, 6), leaf(4, 2), leaf(3, 6), leaf(5, 3)]
    torch.manual_seed(3)
    kept = ops.kept_by_dropout(torch.Size([50, 6]), 0.4, torch.device("cpu"))
    found = ops.LoraLinear.apply(
        x, ops.Before(), None, joint, None, ops.AdapterOptions((0.5, 2.0), 0.4), kept, *adapters
    )
    dropped = x * kept / 0.6
    parts = [dropped @ adapters[0].T @ adapters[1].T * 0.5, dropped @ adapters[2].T @ adapters[3].T * 2.0]
    assert torch.allclose(found, x @ joint.T + torch.cat(parts, 1))
    many = ops.kept_by_dropout(torch.Size([1000, 1003]), 0.05, torch.device("cpu"))
    assert many.shape == (1000, 1003)
    for part in (many, many[:, 0::4], many[:, 3::4], many[::7]):  # evenly over the words' four places
        assert abs(part.double().mean() - 0.95) < 4 * (0.05 * 0.95 / part.numel()) ** 0.5


def test_the_gradient_of_attention_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "BLOCK_TOKENS", 3)
    blocks = attention_blocks([0, 4, 7], [4, 7, 12], [(), ((0, 4),), ((0, 2),)])
    angles = torch.randn(12, 2, dtype=torch.float64).repeat(1, 2)

    def attended(qkv: torch.Tensor) -> torch.Tensor:
        return RotaryAttention.apply(qkv, angles.cos(), angles.sin(), blocks, 4, 2, 0.5)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(attended, (leaf(12, 32),), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v: BlockAttention.apply(q, k, v, blocks, 0.5),
        (leaf(4, 12, 4), leaf(2, 12, 4), leaf(2, 12, 4)),
        fast_mode=True,
    )


def test_attention_over_blocks_is_scaled_dot_product_attention() -> None:
    query, key, value = (torch.randn(heads, 400, 16) for heads in (4, 2, 2))
    blocks = attention_blocks([0, 150, 400 - 90], [150, 310, 400], [(), ((0, 150),), ((0, 40),)])
    found = BlockAttention.apply(query, key, value, blocks, 0.3)
    may_see = torch.zeros(400, 400, dtype=torch.bool)
    may_see[:150, :150], may_see[150:310, :310], may_see[310:, :40] = True, True, True
    may_see[310:, 310:] = True
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=may_see.tril(), scale=0.3, enable_gqa=True
    )[0]
    assert torch.allclose(found.transpose(0, 1), expected, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [2**27, 600])  # of 160 bytes a row: all at once, or three at a time
def test_head_and_logits_give_the_gradient_of_cross_entropy(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "MAX_LOGITS_BYTES", chunk_bytes)
    monkeypatch.setattr(head_module, "ROWS_PER_BLOCK", 3)
    hidden, master = leaf(11, 6), leaf(20, 6)
    rows = torch.tensor([0, 1, 1, 1, 3, 5, 6, 7, 8, 10, 10])  # two rows predict several targets, some none
    targets = torch.randint(20, (11,), generator=torch.Generator().manual_seed(0))
    targets[2] = targets[1]
    weights = torch.rand(11, dtype=torch.float64)

    def expected(hidden: torch.Tensor, master: torch.Tensor) -> torch.Tensor:
        nll = torch.nn.functional.cross_entropy((hidden @ master.T)[rows], targets, reduction="none")
        return 3 * (nll * weights).sum()

    loss, each = HeadNll.apply(hidden, master.detach(), master, Targets(rows, targets, weights))
    alone, _ = HeadNll.apply(hidden.detach(), master.detach(), None, Targets(rows, targets, weights), False)
    logits_loss, logits_each = LogitsNll.apply(hidden @ master.T, Targets(rows, targets, weights))
    reference_loss = expected(hidden, master)
    wanted = torch.autograd.grad(reference_loss, (hidden, master))
    for total in (3 * loss, 3 * logits_loss):
        assert torch.allclose(total, reference_loss)
        for found, want in zip(torch.autograd.grad(total, (hidden, master)), wanted, strict=True):
            assert torch.allclose(found, want)
    assert torch.allclose(alone, loss)
    assert torch.allclose((each * weights).sum(), loss)
    assert torch.allclose(each, logits_each)
    assert not each.requires_grad


def test_chunks_of_bfloat16_logits_add_up_in_the_masters_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "ROWS_PER_BLOCK", 3)
    hidden, master = leaf(11, 6).bfloat16().detach(), leaf(20, 6).float().detach().requires_grad_()
    targets = Targets(torch.arange(11), torch.arange(11), torch.rand(11), one_each=True)
    gradients = []
    for chunk_bytes in (2**27, 150):
        monkeypatch.setattr(head_module, "MAX_LOGITS_BYTES", chunk_bytes)
        loss, _ = HeadNll.apply(hidden, master.detach().bfloat16(), master, targets)
        gradients.append(torch.autograd.grad(loss, master)[0])
    assert gradients[0].dtype == gradients[1].dtype == torch.float32
    assert torch.allclose(*gradients, atol=0.01 * float(gradients[0].abs().max()))


def test_label_smoothing_is_that_of_torch_and_of_transformers() -> None:
    hidden, master = leaf(5, 6), leaf(20, 6)
    rows, targets = torch.arange(5), torch.randint(20, (5,), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(5, dtype=torch.float64)
    softening = Softening(label_smoothing=0.1)
    loss, each = HeadNll.apply(hidden, master.detach(), master, Targets(rows, targets, weights), True, softening)
    cross_entropy = torch.nn.functional.cross_entropy
    logits = hidden @ master.T
    expected = (cross_entropy(logits, targets, reduction="none", label_smoothing=0.1) * weights).sum()
    assert torch.allclose(loss, expected)
    for found, want in zip(
        torch.autograd.grad(loss, (hidden, master)), torch.autograd.grad(expected, (hidden, master)), strict=True
    ):
        assert torch.allclose(found, want)
    assert torch.allclose(each, cross_entropy(logits, targets, reduction="none"))  # what is told stays the plain nll


def test_kl_to_the_base_has_the_gradient_of_the_divergence() -> None:
    hidden, master, base = leaf(5, 6), leaf(20, 6), leaf(5, 6).detach() * 0.5
    rows, targets = torch.tensor([0, 1, 1, 4]), torch.tensor([3, 5, 6, 7])
    weights = torch.rand(4, dtype=torch.float64)
    softening = Softening(label_smoothing=0.2, kl_to_base=0.7)
    loss, _ = HeadNll.apply(hidden, master.detach(), master, Targets(rows, targets, weights), True, softening, base)
    logits, base_logits = (hidden @ master.T)[rows], (base @ master.detach().T)[rows]
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.2)
    divergence = torch.nn.functional.kl_div(
        logits.log_softmax(1), base_logits.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    expected = ((nll + 0.7 * divergence) * weights).sum()
    assert torch.allclose(loss, expected)
    for found, want in zip(
        torch.autograd.grad(loss, (hidden, master)), torch.autograd.grad(expected, (hidden, master)), strict=True
    ):
        assert torch.allclose(found, want)


def test_the_base_is_the_model_without_its_adapter() -> None:
    rows, model = examples(), with_lora(build("llama tied"))
    batch = examples_to_batch(rows)
    softening = Softening(kl_to_base=0.5)
    model.get_base_model().set_attn_implementation("halo_forge_document")
    through_model = model_objective(model, "float32", softening=softening)
    expected = own(model, lambda: through_model.nll(batch, batch.weights)[0])
    plain = own(model, lambda: model_objective(model, "float32").nll(batch, batch.weights)[0])
    objective = fast_objective(FastDecoder.of(model, torch.float32), softening=softening)
    assert_same(own(model, lambda: objective.nll(batch, batch.weights)[0]), expected)
    assert expected[0] > plain[0] + 1e-3
    with torch.no_grad():
        assert objective.nll(batch, batch.weights)[0].item() == pytest.approx(plain[0], rel=1e-5)
