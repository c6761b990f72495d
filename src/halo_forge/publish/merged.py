"""An adapter folded into its base, and the proof that the result says the same.

The two are computed in float32 over the golden rows' texts and compared at every position. Folding is exact but for
rounding to the type that the base is stored in, so the thresholds are those of the rounding: bfloat16 keeps 8 bits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from halo_forge.artifacts import LORA_METHODS, Record
from halo_forge.errors import DataError, HaloForgeError, UsageError
from halo_forge.publish.manifest import TOKENIZER_NAMES
from halo_forge.publish.proof import in_fresh_process

MAX_MEAN_KL = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 1e-4}
"""Nats per position, by the type that the merged weights are written in."""
MIN_TOP1_AGREEMENT = {"float32": 0.999, "bfloat16": 0.97, "float16": 0.995}
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps through the whole warm afternoon.",
    'def add(a: int, b: int) -> int:\n    """Return the sum."""\n    return a + b\n',
    '{"name": "add", "arguments": [{"name": "a", "type": "int"}], "returns": "int"}',
    "What is the capital of France? Paris. How many apples are left? Seven apples are left.",
    "Zürich, naïve café, 1234567890 !?#$%&()*+,-./:;<=>@[]^_{|}~",
)


class MergeProof(Record):
    """mean_kl and max_kl: KL(adapter || merged) in nats per position; top1_agreement: share of positions at which both
    say the same token. `ok` holds them against the thresholds, which are stated beside them."""

    ok: bool
    dtype: str
    num_positions: int
    mean_kl: float
    max_kl: float
    top1_agreement: float
    max_mean_kl: float
    min_top1_agreement: float


def merge_into(source: Path, target: Path, method: str, texts: Sequence[str] = TEXTS) -> MergeProof:
    """Write the merged model of a version's directory, loadable by plain transformers, and prove it.

    Raises UsageError for a method that cannot be merged, HaloForgeError with the figures where the merged model does
    not say what the adapter says (`target` is then removed).
    """
    if method not in LORA_METHODS:
        raise UsageError(
            "this model has nothing to merge" if method == "full" else "bottleneck adapters cannot be merged",
            where=str(source),
            expected="a LoRA, DoRA or QLoRA adapter",
            fix="export it as it is: --format adapter",
        )
    target.mkdir(parents=True, exist_ok=True)
    try:
        written = in_fresh_process("merge", {"source": str(source), "target": str(target)}, source)
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and (name in TOKENIZER_NAMES or name == "generation_config.json"):
                (target / name).unlink(missing_ok=True)
                shutil.copyfile(path, target / name)
        proof = prove_merged(source, target, written["dtype"], texts)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    if not proof.ok:
        shutil.rmtree(target, ignore_errors=True)
        raise HaloForgeError(
            f"the merged model does not say what the adapter says: mean KL {proof.mean_kl:.2g} nats, the same token at "
            f"{proof.top1_agreement:.2%} of {proof.num_positions} positions",
            where=str(source),
            expected=f"at most {proof.max_mean_kl:g} nats and at least {proof.min_top1_agreement:.1%} in {proof.dtype}",
            fix="use the adapter itself: --format adapter or --format vllm",
        )
    return proof


def prove_merged(source: Path, target: Path, dtype: str, texts: Sequence[str] = TEXTS) -> MergeProof:
    """Hold a merged model that is on disk against its adapter. `texts` are read up to 256 tokens each."""
    if dtype not in MAX_MEAN_KL:
        raise DataError(f"no threshold is known for weights in {dtype}", where=str(target))
    request = {"source": str(source), "target": str(target), "texts": list(texts)}
    found = in_fresh_process("compare_merged", request, target)
    max_mean_kl, min_top1 = MAX_MEAN_KL[dtype], MIN_TOP1_AGREEMENT[dtype]
    # In this form a KL that is not a number is no proof.
    ok = found["mean_kl"] <= max_mean_kl and found["top1_agreement"] >= min_top1
    return MergeProof(ok=ok, dtype=dtype, max_mean_kl=max_mean_kl, min_top1_agreement=min_top1, **found)


def adapter_rank(directory: Path) -> int:
    """The largest rank of an adapter's matrices."""
    config = json.loads((directory / "adapter_config.json").read_bytes())
    return max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])
