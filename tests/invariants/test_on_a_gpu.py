"""The same promises on a GPU: documents stay apart under its kernels, the curve is the CPU's, gradients are those of
each document alone, compiled or not, no micro-batch waits for the device, a resume goes on.

Tolerances: float32 on a GPU sums in another order (and TF32 is off by default for matrix products); bfloat16 carries
eight bits, so a loss of about 5 is known to a hundredth.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.chat import Example
from halo_forge.errors import Interrupted
from halo_forge.models.compute import Compute
from halo_forge.models.fast import decoder as decoder_module
from halo_forge.models.fast import kernels
from halo_forge.models.fast.attention import BlockAttention
from halo_forge.models.fast.compiled import compile_layers
from halo_forge.models.fast.decoder import FastDecoder
from halo_forge.models.fast.kernels import flex, kernel_of
from halo_forge.train import attention
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import fast_objective, model_objective
from halo_forge.train.watching.source_losses import LossCounter
from training_runs import losses, prepared_run, train_now

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CUDA = torch.device("cuda")
Gradients = dict[str, torch.Tensor]
CADENCE: dict[str, Any] = {"output.save_steps": 3, "eval_steps": 4}


def run(
    tokenizer: PreTrainedTokenizerBase, model: Path, output: Path, device: str, precision: str, **training: Any
) -> Any:
    prepared = prepared_run(tokenizer, model, output, **(CADENCE | {"lora.dropout": 0.0} | training))
    compute = Compute(device=torch.device(device), precision=precision)  # type: ignore[arg-type]
    return prepared, train_now(prepared, compute=compute)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own insides
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_gpu_follows_the_cpus_curve(
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
    method: str,
    precision: str,
    tolerance: float,
) -> None:
    run(tiny_tokenizer, tiny_model_dir, tmp_path / "cpu" / "run", "cpu", "float32", method=method)
    _, trained = run(tiny_tokenizer, tiny_model_dir, tmp_path / "gpu" / "run", "cuda", precision, method=method)
    assert trained.attention == attention.DOCUMENT_ATTENTION
    assert losses(tmp_path / "gpu" / "run") == pytest.approx(losses(tmp_path / "cpu" / "run"), rel=tolerance)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own insides
@pytest.mark.parametrize("fast_layers", [True, False])
def test_the_varlen_kernel_is_used_and_keeps_documents_apart(
    fast_layers: bool,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16 every packed row goes through torch's kernel; the proof at the start has passed on the way."""
    if kernels.load_varlen() is None:
        pytest.skip("this torch has no varlen_attn with the signature we call, and flash_attn is not installed")
    calls = itertools.count()
    real = kernels.varlen

    def counted(*args: Any) -> torch.Tensor:
        next(calls)
        return real(*args)

    for module in (attention, decoder_module):
        monkeypatch.setattr(module, "varlen", counted)
    run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", "cuda", "bfloat16",
        max_steps=1, fast_layers=fast_layers, prefix_sharing=False,
    )  # fmt: skip
    assert next(calls) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resume_on_a_gpu_goes_on_the_same_curve(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    """Dropout on, bfloat16. Bit for bit is promised on a CPU; here atomic additions may move the last digit."""
    options = {"lora.dropout": 0.1, "method": method}
    run(tiny_tokenizer, tiny_model_dir, tmp_path / "a" / "run", "cuda", "bfloat16", **options)
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "b" / "run", **(CADENCE | options))
    compute = Compute(device=torch.device("cuda"), precision="bfloat16")
    counter = itertools.count()

    def check() -> None:
        if next(counter) == 5:
            raise Interrupted("stopped by a test")

    with pytest.raises(Interrupted):
        train_now(prepared, compute=compute, check=check)
    train_now(prepared, compute=compute)
    assert losses(tmp_path / "b" / "run") == pytest.approx(losses(tmp_path / "a" / "run"), rel=1e-5)


# ------------------------------------------------------------------------------------------ the layers, piece by piece


def gpu_compute() -> Compute:
    return Compute(device=CUDA, precision="bfloat16")


def distance(found: Gradients, exact: Gradients) -> float:
    """Relative distance of all gradients taken together."""
    squares = sum(float((found[name].double() - exact[name]).square().sum()) for name in exact)
    return float((squares / sum(float(gradient.square().sum()) for gradient in exact.values())) ** 0.5)


def exact_gradients(model: PreTrainedModel, rows: list[Example]) -> tuple[float, Gradients]:
    """float64 on the CPU, every document alone, transformers' own layers, torch's own cross entropy."""
    wide = copy.deepcopy(model).to("cpu", torch.float64)
    wide.set_attn_implementation("eager")
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        nll = F.cross_entropy(wide(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
        total = total + (nll * torch.from_numpy(row.loss_weights[1:])).sum()
    total.backward()
    return float(total.detach()), {n: p.grad for n, p in wide.named_parameters() if p.grad is not None}


def fast_gradients(decoder: FastDecoder, model: PreTrainedModel, batch: Batch) -> tuple[float, Gradients]:
    model.zero_grad(set_to_none=True)
    loss, _ = fast_objective(decoder).nll(batch, batch.weights)
    loss.backward()
    return float(loss.detach()), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def wide_model() -> PreTrainedModel:
    """Heads of 64, as the kernels like them."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.05, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )
    )  # fmt: skip


def rows_of(lengths: tuple[int, ...], prefix: int = 0) -> list[Example]:
    rng = np.random.default_rng(0)
    common = rng.integers(0, 512, prefix)
    made = []
    for length in lengths:
        ids = np.concatenate([common, rng.integers(0, 512, length)]).astype(np.int32)
        weights = (rng.random(len(ids)) < 0.5).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        made.append(Example(input_ids=ids, loss_weights=weights, conversation_id=str(length)))
    return made


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own insides
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("prefix", [0, 150])
def test_the_layers_have_the_gradient_of_each_document_alone(prefix: int, is_compiled: bool) -> None:
    """bfloat16 through the kernels is as close to float64 as bfloat16 under autocast is, within a tenth."""
    model, rows = wide_model(), rows_of((7, 300, 23, 130, 64), prefix)
    loss, exact = exact_gradients(model, rows)
    model.to(CUDA)
    batch = examples_to_batch(rows, share_prefixes=prefix > 0).to(CUDA)
    model.set_attn_implementation("eager")
    alone = model_objective(model, "bfloat16")
    for row in rows:
        one = examples_to_batch([row]).to(CUDA)
        alone.nll(one, one.weights)[0].backward()
    autocast = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    decoder = FastDecoder.of(model, torch.bfloat16)
    if is_compiled:
        assert compile_layers(decoder, [torch.arange(20), torch.arange(9)], CUDA) is None
    wanted = "varlen" if not prefix else "flex" if is_compiled else "blocks"
    value = torch.zeros(1, dtype=torch.bfloat16, device=CUDA)
    if kernel_of(batch.row(), value, 4, 64, flex=is_compiled) != wanted:
        pytest.skip(f"this torch has no {wanted} kernel")
    found_loss, found = fast_gradients(decoder, model, batch)
    assert found_loss == pytest.approx(loss, rel=0.01)
    assert distance(found, exact) <= 1.1 * distance(autocast, exact)


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_has_the_gradients_of_the_blocks() -> None:
    batch = examples_to_batch(rows_of((7, 300, 23, 130, 64), 150), share_prefixes=True).to(CUDA)
    torch.manual_seed(0)
    inputs = [
        torch.randn(batch.input_ids.shape[1], heads, 64, device=CUDA, dtype=torch.bfloat16).requires_grad_()
        for heads in (4, 2, 2)
    ]
    found = flex(*inputs, batch.row(), 0.125)  # type: ignore[arg-type]
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, upstream)
    wide = [part.detach().float().requires_grad_() for part in inputs]
    expected = BlockAttention.apply(*(part.transpose(0, 1) for part in wide), batch.blocks, 0.125)
    wanted = torch.autograd.grad(expected, wide, upstream.float())
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert (one.float() - other).norm() <= 0.01 * other.norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", [0, 150])
def test_no_micro_batch_waits_for_the_gpu(prefix: int) -> None:
    model = wide_model().to(CUDA)
    decoder = FastDecoder.of(model, torch.bfloat16)
    assert compile_layers(decoder, [torch.arange(20), torch.arange(9)], CUDA) is None
    objective = fast_objective(decoder)
    rows = rows_of((7, 300, 23, 130, 64), prefix)

    def micro_batch() -> None:
        batch = examples_to_batch(rows, share_prefixes=prefix > 0).pin_memory().to(CUDA)
        share, nll = objective.nll(batch, batch.weights / 7.0)
        share.backward()
        LossCounter().add(batch, nll)

    micro_batch()  # compiles, and makes what is made once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        micro_batch()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resume_on_one_gpu_is_bit_for_bit(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    """With torch's deterministic kernels, uncompiled: without them atomic additions may move the last digit."""
    options = {"lora.dropout": 0.1, "method": method, "compile": False}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run(tiny_tokenizer, tiny_model_dir, tmp_path / "a" / "run", "cuda", "bfloat16", **options)
        prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "b" / "run", **(CADENCE | options))
        counter = itertools.count()

        def check() -> None:
            if next(counter) == 5:
                raise Interrupted("stopped by a test")

        with pytest.raises(Interrupted):
            train_now(prepared, compute=gpu_compute(), check=check)
        train_now(prepared, compute=gpu_compute())
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(tmp_path / "b" / "run") == losses(tmp_path / "a" / "run")
