"""The same promises on a GPU: documents stay apart under the varlen kernel, the curve is the CPU's, a resume goes on.

Tolerances: float32 on a GPU sums in another order (and TF32 is off by default for matrix products); bfloat16 carries
eight bits, so a loss of about 5 is known to a hundredth.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.errors import Interrupted
from halo_forge.models.compute import Compute
from halo_forge.train import attention
from training_runs import losses, prepared_run, train_now

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
CADENCE: dict[str, Any] = {"output.save_steps": 3, "eval_steps": 4}


def run(
    tokenizer: PreTrainedTokenizerBase, model: Path, output: Path, device: str, precision: str, **training: Any
) -> Any:
    prepared = prepared_run(tokenizer, model, output, **(CADENCE | {"lora.dropout": 0.0} | training))
    compute = Compute(device=torch.device(device), precision=precision)  # type: ignore[arg-type]
    return prepared, train_now(prepared, compute=compute)


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


def test_the_varlen_kernel_is_used_and_keeps_documents_apart(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 every packed row goes through torch's kernel; `verify_packing` has passed on the way."""
    if attention._VARLEN is None:
        pytest.skip("this torch has no varlen_attn with the signature we call")
    calls = itertools.count()
    real = attention._varlen

    def counted(*args: Any) -> torch.Tensor:
        next(calls)
        return real(*args)

    monkeypatch.setattr(attention, "_varlen", counted)
    run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", "cuda", "bfloat16", max_steps=1)
    assert next(calls) > 0


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
