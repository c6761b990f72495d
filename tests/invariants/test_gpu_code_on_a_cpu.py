"""What a GPU would run, as far as a CPU can tell: masks, gradients around the kernels, the head in large chunks, that
no micro-batch waits for the device, and compiled = uncompiled.

The kernels themselves are replaced by dense attention here (FlexAttention's forward pass runs on a CPU and is held
against the block products); tests/invariants/test_on_a_gpu.py runs the real ones where there is a GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from halo_forge.chat import Example
from halo_forge.models.fast import compiled, kernels
from halo_forge.models.fast import decoder as decoder_module
from halo_forge.models.fast import head as head_module
from halo_forge.models.fast.attention import Block, BlockAttention, RotaryAttention, attention_blocks
from halo_forge.models.fast.decoder import EAGER, FastDecoder, Regions
from halo_forge.models.fast.head import HeadNll, Softening, Targets
from halo_forge.models.fast.kernels import FLEX_BLOCK, block_mask, flex, kernel_of, rotated_heads
from halo_forge.models.fast.prefixes import shared_layout
from halo_forge.models.fast.row import PackedRow, last_readers
from halo_forge.models.quiet import quiet_transformers
from halo_forge.train import attention as attention_module
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import fast_objective, model_objective
from halo_forge.train.neftune import with_noise
from halo_forge.train.watching.source_losses import LossCounter

RELATIVE = 1e-5
VOCAB = 200
CPU = torch.device("cpu")
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}
Gradients = dict[str, torch.Tensor]


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]()


def with_lora(model: PreTrainedModel, dropout: float = 0.0) -> PeftModel:
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet_transformers():
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
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


def own(model: PreTrainedModel | PeftModel, run: Callable[[], torch.Tensor]) -> tuple[float, Gradients]:
    model.zero_grad(set_to_none=True)
    loss = run()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients], relative: float = RELATIVE) -> None:
    assert found[0] == pytest.approx(expected[0], rel=relative)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= relative * gradient.abs().max(), name


def dense_mask(blocks: tuple[Block, ...], num_tokens: int) -> torch.Tensor:
    """bool [N, N]: what the blocks say, pair by pair."""
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for block in blocks:
        keys = [place for start, end in block.spans for place in range(start, end)]
        for query in range(block.start, block.end):
            mask[query, [key for key in keys if key <= query]] = True
    return mask


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow, scale: float
) -> torch.Tensor:
    """The kernels' part: from [N, heads, E] over the mask that their own inputs describe."""
    places = torch.arange(len(query))
    if row.lengths:
        assert row.starts is not None
        document = torch.bucketize(places, row.starts[1:], right=True)
        mask = (places[:, None] >= places) & (document[:, None] == document)
    else:
        assert row.last_readers is not None
        mask = (places[:, None] >= places) & (places[:, None] <= row.last_readers)
    heads = [part.transpose(0, 1)[None] for part in (query, key, value)]
    return F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)


@pytest.fixture
def gpu_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the branches that a GPU takes, with dense attention for the kernels."""
    for module in (decoder_module, attention_module):
        monkeypatch.setattr(module, "kernel_of", lambda row, *_, **__: "varlen" if row.lengths else "flex")
        monkeypatch.setattr(module, "varlen", dense_attention)
    monkeypatch.setattr(decoder_module, "flex", dense_attention)
    monkeypatch.setattr(head_module, "_is_on_gpu", lambda hidden: True)
    monkeypatch.setattr(head_module, "GPU_LOGITS_BYTES", 70 * VOCAB * 4)  # several chunks


def sent(batch: Batch) -> Batch:
    """As on its way to a GPU."""
    return batch._with_last_readers()


# ------------------------------------------------------------------------------------------ masks

TREES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 150), st.integers(1, 200)), min_size=1, max_size=8)


def tree_blocks(shapes: list[tuple[int, int, int]]) -> tuple[tuple[Block, ...], int]:
    rng = np.random.default_rng(0)
    stems = rng.integers(0, 5, (3, 150))
    documents = [
        np.concatenate([stems[stem][:shared], rng.integers(0, 5, tail)]).astype(np.int32)
        for stem, shared, tail in shapes
    ]
    layout = shared_layout(documents)
    return attention_blocks(layout.starts, layout.ends, layout.seen), len(layout.input_ids)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_two_comparisons_say_what_the_blocks_say(shapes: list[tuple[int, int, int]]) -> None:
    blocks, num_tokens = tree_blocks(shapes)
    last = last_readers(blocks, num_tokens)
    assert last is not None
    places = np.arange(num_tokens)
    found = (places[:, None] >= places) & (places[:, None] <= last)
    assert np.array_equal(found, dense_mask(blocks, num_tokens).numpy())


def test_a_row_that_two_comparisons_cannot_say_is_left_to_the_blocks() -> None:
    blocks = attention_blocks([0, 4, 7], [4, 7, 12], [(), (), ((0, 4),)])  # the last sees past the second
    assert last_readers(blocks, 12) is None


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_the_squares_of_flex_attention_hold_the_mask(shapes: list[tuple[int, int, int]]) -> None:
    """A square that is left out has no pair, a whole one has them all, and the rest asks `mask_mod`."""
    blocks, num_tokens = tree_blocks(shapes)
    last = last_readers(blocks, num_tokens)
    mask = block_mask(torch.from_numpy(last))  # type: ignore[arg-type]
    padded = -(-num_tokens // FLEX_BLOCK) * FLEX_BLOCK
    places = torch.arange(padded, dtype=torch.int32)
    zero = torch.zeros((), dtype=torch.int32)
    expected = torch.eye(padded, dtype=torch.bool)
    expected[:num_tokens, :num_tokens] = dense_mask(blocks, num_tokens)
    assert torch.equal(mask.mask_mod(zero, zero, places[:, None], places[None]), expected)
    squares = expected.view(padded // FLEX_BLOCK, FLEX_BLOCK, -1, FLEX_BLOCK).transpose(1, 2).flatten(2)
    for kind, wanted in (("full_kv", squares.all(2)), ("kv", squares.any(2) & ~squares.all(2))):
        counts, columns = getattr(mask, f"{kind}_num_blocks")[0, 0], getattr(mask, f"{kind}_indices")[0, 0]
        found = torch.zeros_like(wanted)
        for query, (count, listed) in enumerate(zip(counts.tolist(), columns.tolist(), strict=True)):
            found[query, listed[:count]] = True
        assert torch.equal(found, wanted)
    transposed = mask.q_num_blocks[0, 0] + mask.full_q_num_blocks[0, 0]  # for the backward pass
    assert torch.equal(transposed.long(), squares.any(2).sum(0))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shapes", [[(0, 140, 30), (0, 140, 200), (0, 60, 90), (1, 0, 128)], [(0, 0, 5)]])
def test_flex_attention_is_attention_over_blocks(
    shapes: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(kernels, "flex_attention_function", lambda: flex_attention)
    blocks, num_tokens = tree_blocks(shapes)
    torch.manual_seed(0)
    query, key, value = (torch.randn(num_tokens, heads, 16) for heads in (4, 2, 2))
    row = PackedRow(blocks, last_readers=torch.from_numpy(last_readers(blocks, num_tokens)))  # type: ignore[arg-type]
    found = flex(query, key, value, row, 0.3)
    expected = BlockAttention.apply(*(part.transpose(0, 1) for part in (query, key, value)), blocks, 0.3)
    assert torch.allclose(found, expected, atol=1e-5)
    assert row.block_mask is not None  # kept for the next layer


def test_each_kernel_is_chosen_for_what_it_can_do() -> None:
    class OnGpu:
        is_cuda = True

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    plain = PackedRow.of_documents([3, 4], (), CPU)
    shared = PackedRow((), last_readers=torch.zeros(7, dtype=torch.int32))
    odd = PackedRow(())
    half: Any = OnGpu(torch.bfloat16)
    wide: Any = OnGpu(torch.float32)
    has_varlen = kernels.load_varlen() is not None
    assert kernel_of(plain, half, 4, 64, flex=True) == ("varlen" if has_varlen else "blocks")
    assert kernel_of(shared, half, 4, 64, flex=True) == "flex"
    assert kernel_of(shared, half, 4, 64, flex=False) == "blocks"
    assert kernel_of(odd, half, 4, 64, flex=True) == "blocks"
    for row in (plain, shared):
        assert kernel_of(row, wide, 4, 64, flex=True) == "blocks"
        assert kernel_of(row, torch.zeros(1, dtype=torch.bfloat16), 4, 64, flex=True) == "blocks"
    many = PackedRow.of_documents([200] * 1000, (), CPU)  # 328,000 padded tokens x 64 heads x 128 > 2^31
    assert kernel_of(many, half, 64, 128, flex=True) == "blocks"


# ------------------------------------------------------------------------------------------ gradients


def test_rotated_heads_have_the_gradient_of_the_written_out_rotation() -> None:
    qkv = torch.randn(12, 32, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(12, 2, dtype=torch.float64).repeat(1, 2)
    blocks = attention_blocks([0, 7], [7, 12], [(), ((0, 3),)])

    def plain(qkv: torch.Tensor) -> torch.Tensor:
        query, key, value = rotated_heads(qkv, angles.cos(), angles.sin(), 4, 2)
        heads = (part.transpose(0, 1) for part in (query, key, value))
        return BlockAttention.apply(*heads, blocks, 0.5).reshape(12, -1)  # type: ignore[no-any-return]

    written_out = RotaryAttention.apply(qkv, angles.cos(), angles.sin(), blocks, 4, 2, 0.5)
    upstream = torch.randn_like(written_out)
    (expected,) = torch.autograd.grad(written_out, qkv, upstream)
    found = plain(qkv)
    assert torch.allclose(found, written_out)
    assert torch.allclose(torch.autograd.grad(found, qkv, upstream)[0], expected)


@pytest.mark.parametrize("prefix", [0, 40])
@pytest.mark.parametrize("name", ["llama tied", "qwen3"])
def test_the_gpu_path_has_the_gradient_of_the_cpu_path(name: str, prefix: int, request: pytest.FixtureRequest) -> None:
    model = with_lora(build(name)) if name == "qwen3" else build(name)
    batch = sent(examples_to_batch(examples(prefix=prefix), share_prefixes=prefix > 0, trim=True))
    assert (batch.last_readers is None) == (prefix == 0)
    objective = fast_objective(FastDecoder.of(model, torch.float32))
    expected = own(model, lambda: objective.nll(batch, batch.weights)[0])
    request.getfixturevalue("gpu_code")
    assert_same(own(model, lambda: objective.nll(batch, batch.weights)[0]), expected)


def test_transformers_layers_reach_the_varlen_kernel(request: pytest.FixtureRequest) -> None:
    model = build("qwen3")
    model.set_attn_implementation(attention_module.DOCUMENT_ATTENTION)
    batch = examples_to_batch(examples())
    objective = model_objective(model, "float32")
    expected = own(model, lambda: objective.nll(batch, batch.weights)[0])
    request.getfixturevalue("gpu_code")
    assert_same(own(model, lambda: objective.nll(batch, batch.weights)[0]), expected)


@pytest.mark.parametrize("chunk_rows", [16, 1000])
@pytest.mark.parametrize(
    "softening", [Softening(), Softening(label_smoothing=0.2), Softening(label_smoothing=0.1, kl_to_base=0.7)]
)
def test_the_head_in_large_chunks_is_the_head_in_small_ones(
    chunk_rows: int, softening: Softening, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, master, base = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((41, 6), (20, 6), (41, 6))
    )
    rows = torch.arange(41).repeat_interleave(torch.arange(41) % 4)  # none to three targets each
    targets = torch.randint(20, (len(rows),), generator=generator)
    targets[1] = targets[2] = targets[3] = 5  # several of them equal
    all_targets = Targets(rows, targets, torch.rand(len(rows), dtype=torch.float64, generator=generator))
    base_hidden = base if softening.kl_to_base else None

    def run() -> tuple[torch.Tensor, ...]:
        one, other = hidden.clone().requires_grad_(), master.clone().requires_grad_()
        loss, nll = HeadNll.apply(one, master, other, all_targets, True, softening, base_hidden)
        return loss.detach(), nll, *torch.autograd.grad(3 * loss, (one, other))

    expected = run()
    monkeypatch.setattr(head_module, "_is_on_gpu", lambda hidden: True)
    monkeypatch.setattr(head_module, "GPU_LOGITS_BYTES", chunk_rows * 20 * 8)
    for found, wanted in zip(run(), expected, strict=True):
        assert torch.allclose(found, wanted)


@pytest.mark.parametrize("chunk_rows", [16, 1000])
def test_one_target_for_each_row_is_the_same_head(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(41, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    master = torch.randn(20, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = Targets(
        torch.arange(41), torch.randint(20, (41,), generator=generator),
        torch.rand(41, dtype=torch.float64, generator=generator), one_each=True,
    )  # fmt: skip
    loss, nll = HeadNll.apply(hidden, master.detach(), master, targets)
    expected = (loss, nll, *torch.autograd.grad(loss, (hidden, master)))
    monkeypatch.setattr(head_module, "_is_on_gpu", lambda hidden: True)
    monkeypatch.setattr(head_module, "GPU_LOGITS_BYTES", chunk_rows * 20 * 8)
    calls = []

    def counted(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(arguments[0]))
        return head_module.one_target_each_to_gradient(*arguments)

    loss, nll = HeadNll.apply(hidden, master.detach(), master, replace(targets, to_gradient=counted))
    assert sum(calls) == 41
    for found, wanted in zip((loss, nll, *torch.autograd.grad(loss, (hidden, master))), expected, strict=True):
        assert torch.allclose(found, wanted)


# ------------------------------------------------------------------------------------------ no waiting

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_consecutive"}


class Waits(TorchDispatchMode):
    """Counts the operations for whose answer a program waits, if the tensors lie on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        mask_index = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or mask_index or counted:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """tolist and torch.tensor never reach the dispatcher as such: they are counted where they are called."""
    waits = Waits()
    with monkeypatch.context() as patch, waits:
        for place, name in ((torch.Tensor, "tolist"), (torch.Tensor, "numpy"), (torch, "tensor")):
            real = getattr(place, name)

            def counted(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
                waits.found.append(name)
                return real(*args, **kwargs)

            patch.setattr(place, name, counted)
        yield waits.found


def micro_batch(objective: Any, batch: Batch) -> None:
    """What `train_step` does for each."""
    share, nll = objective.nll(batch, batch.weights / 7.0)
    share.backward()
    LossCounter().add(batch, nll)


@pytest.mark.usefixtures("gpu_code")
@pytest.mark.parametrize("case", ["plain", "shared", "dropout", "smoothing and kl", "recompute", "all logits", "full"])
def test_no_micro_batch_waits_for_the_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama tied")
    if case != "full":
        model = with_lora(model, dropout=0.1 if case == "dropout" else 0.0)  # type: ignore[assignment]
    decoder = FastDecoder.of(model, torch.float32)
    decoder.recompute = case == "recompute"
    softening = Softening(0.1, 0.5) if case == "smoothing and kl" else Softening()
    objective = fast_objective(decoder, supervised_logits_only=case != "all logits", softening=softening)
    batch = sent(examples_to_batch(examples(prefix=40 if case == "shared" else 0), share_prefixes=case == "shared"))
    micro_batch(objective, batch)  # tables that are made once
    with counted_waits(monkeypatch) as found:
        micro_batch(objective, batch)
    assert found == []


def test_waiting_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the CPU asks how many targets a piece has."""
    objective = fast_objective(FastDecoder.of(build("llama tied"), torch.float32))
    batch = examples_to_batch(examples())
    with counted_waits(monkeypatch) as found:
        micro_batch(objective, batch)
    assert "tolist" in found
    with counted_waits(monkeypatch) as found:
        _ = batch.weights[batch.weights > 0]
        _ = float(batch.weights[0])
    assert "_local_scalar_dense" in found
    assert "index" in found or "nonzero" in found


@pytest.mark.usefixtures("gpu_code")
def test_noise_on_embeddings_waits_for_nothing_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counts lie in the CPU's memory: made and repeated there, sent after."""
    model = build("llama tied")
    objective = with_noise(fast_objective(FastDecoder.of(model, torch.float32)), model, 5.0)
    with counted_waits(monkeypatch) as found:
        micro_batch(objective, sent(examples_to_batch(examples())))
    assert sorted(set(found)) == ["repeat_interleave", "tensor"]


# ------------------------------------------------------------------------------------------ compiled

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here for torch.compile")


@needs_compiler
@pytest.mark.parametrize(
    "method", [pytest.param("full", marks=pytest.mark.soak), pytest.param("lora with dropout", marks=pytest.mark.soak)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own tracing
def test_compiled_layers_have_the_gradient_of_uncompiled_ones(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also for other lengths, which must not compile anything again."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled, "compiled_regions", compiled.compiled_regions.__wrapped__)
    model = build("llama tied") if method == "full" else with_lora(build("llama tied"), dropout=0.3)
    model.train()
    decoder = FastDecoder.of(model, torch.float32)
    dropouts = [projection.dropout for projection in decoder.projections()]
    documents = [torch.arange(5, 25), torch.arange(40, 52)]
    assert compiled.compile_layers(decoder, documents, CPU) is None
    assert [projection.dropout for projection in decoder.projections()] == dropouts
    assert decoder.regions.are_compiled
    objective, regions = fast_objective(decoder), decoder.regions
    num_graphs = None
    for lengths in ((7, 300, 23, 64), (50,), (30, 40, 50)):
        batch = examples_to_batch(examples(lengths))
        results = []
        for one in (EAGER, regions):
            decoder.regions = one
            torch.manual_seed(1)
            results.append(own(model, lambda batch=batch: objective.nll(batch, batch.weights)[0]))  # type: ignore[misc]
        assert_same(results[1], results[0])
        compiled_so_far = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert num_graphs in (None, compiled_so_far)
        num_graphs = compiled_so_far
    assert not torch._dynamo.utils.counters["graph_break"]


def broken(*_: Any) -> Any:
    raise RuntimeError("no such compiler\nwith details")


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        (Regions(before=broken), "RuntimeError: no such compiler"),
        (
            Regions(before=lambda *arguments: 2 * decoder_module.before_attention(*arguments)),
            "loss and gradient norm are",
        ),
    ],
)
def test_where_compiling_fails_the_layers_stay_as_they_were(
    regions: Regions, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compiled_regions", lambda: regions)
    decoder = FastDecoder.of(build("llama tied"), torch.float32)
    said = compiled.compile_layers(decoder, [torch.arange(5, 25), torch.arange(40, 52)], CPU)
    assert said is not None
    assert said.startswith(reason)
    assert "\n" not in said
    assert decoder.regions is EAGER
