"""Every measurement on one GPU, in one script: parity first, then speed, memory and use of the matrix units.

    python benchmarks/gpu.py --dry-run             # what would run, and how long on an H100
    python benchmarks/gpu.py                       # all of it, about 25 minutes; goes on where it was stopped
    python benchmarks/gpu.py --only qwen-0.5b-full # one workload, below 10 minutes
    python benchmarks/gpu.py --tiny                # the same script on a CPU with tiny shapes, one or two minutes

Models have random weights of a published shape, so nothing is downloaded; tokens are random, lengths as stated. A
training workload is timed only after its parity gate: on a model of the same widths with two layers, the loss within
1 % and the gradient of every tensor as close to float32 (each document alone through transformers' own layers) as
autocast's is, within half as much again, or 1 %. Contestants run in fresh processes, turn about:

    ours             the step of `halo-forge sft train`, compiled where there is a GPU
    ours_uncompiled  the same with training.compile: false
    trl_default      SFTTrainer as it comes: rows padded to the longest, recomputation, bf16 autocast over float32
    trl_tuned        SFTTrainer with packing, without recomputation, bf16

All see the same rows in the same order with AdamW at one rate. Packed rows move some examples between the steps of
trl_tuned. Measured from the third step on: tokens of the rows as they are (no padding) a second, peak of allocated
memory, and MFU: necessary operations (6 a weight and token trained, 4 frozen under adapters, the head at trained
positions only, causal attention) over the bf16 rate of an 8192-cubed product measured here.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "gpu.json"
CONTESTANTS = ("ours", "ours_uncompiled", "trl_default", "trl_tuned")
LEARNING_RATE, LORA_RANK, LORA_ALPHA, WARM_STEPS = 1e-5, 16, 32, 2
Rows = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Shape:
    family: str
    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    tied: bool

    def model_config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.family, vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.key_heads,
            tie_word_embeddings=self.tied, max_position_embeddings=8192, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        )  # fmt: skip

    @property
    def body(self) -> int:
        """Weights of all layers' matrices."""
        size = self.width // self.heads
        attention = 2 * self.width * self.heads * size + 2 * self.width * self.key_heads * size
        return self.layers * (attention + 3 * self.width * self.inner)


@dataclass(frozen=True)
class Workload:
    """lengths: "mixed" is log-normal up to max_length, "full" every row max_length tokens; half of each is trained."""

    shape: Shape
    method: str
    lengths: str
    max_length: int
    per_step: int
    steps: int
    micro_batch_tokens: int
    pairs: int
    contestants: tuple[str, ...]
    estimate_s: int
    rows_of_trl: int = 1  # in a micro-batch of trl_default


QWEN = Shape("qwen2", 151_936, 896, 4864, 24, 14, 2, tied=True)
LLAMA = Shape("llama", 128_256, 4096, 14_336, 32, 32, 8, tied=False)
TINY = Shape("qwen2", 320, 64, 96, 2, 4, 2, tied=True)
TRAINING = {
    "qwen-0.5b-full": Workload(QWEN, "full", "mixed", 2048, 64, 6, 16_384, 3, CONTESTANTS, 540, 8),
    "llama-8b-lora": Workload(LLAMA, "lora", "full", 4096, 8, 5, 4096, 2, CONTESTANTS, 560, 2),
}
TINY_TRAINING = {
    "qwen-0.5b-full": Workload(TINY, "full", "mixed", 64, 8, 3, 128, 1, ("ours", "trl_default"), 0, 4),
    "llama-8b-lora": Workload(
        replace(TINY, family="llama", tied=False), "lora", "full", 64, 4, 3, 128, 1, ("ours", "trl_tuned"), 0, 2
    ),
}
ESTIMATES_S = {"machine": 20, "head": 90, "attention": 120}


def workloads(tiny: bool) -> dict[str, Workload]:
    return TINY_TRAINING if tiny else TRAINING


def make_rows(work: Workload) -> Rows:
    """(ids, loss weights) of every step's rows; the second half of each is trained."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(work.per_step * work.steps):
        length = work.max_length
        if work.lengths == "mixed":
            length = int(np.clip(rng.lognormal(math.log(work.max_length / 5), 0.8), work.max_length / 64, length))
        length = max(length, 8)
        weights = np.zeros(length, np.float32)
        weights[length // 2 :] = 1
        rows.append((rng.integers(2, work.shape.vocabulary, length).astype(np.int32), weights))
    return rows


def necessary_operations(work: Workload, rows: Rows) -> float:
    per_weight = 6 if work.method == "full" else 4
    tokens, trained = (sum(len(ids) for ids, _ in rows), sum(float((w > 0).sum()) for _, w in rows))
    head = work.shape.vocabulary * work.shape.width
    attention = 7 * work.shape.width * work.shape.layers * sum(len(ids) ** 2 for ids, _ in rows)
    return per_weight * (work.shape.body * tokens + head * trained) + attention


# ------------------------------------------------------------------------------------------ what is measured on


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of `repeats` calls after three."""
    times = []
    for number in range(3 + repeats):
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def installed(name: str) -> str | None:
    if not importlib.util.find_spec(name):
        return None
    try:
        return version(name)
    except PackageNotFoundError:  # some builds bring it under another name
        return "of unknown version"


def machine(tiny: bool) -> dict[str, Any]:
    """Versions, and what the matrix units give."""
    import torch

    from halo_forge.models.fast.kernels import load_varlen

    size = 256 if tiny else 8192
    one, other = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    taken = milliseconds(lambda: one @ other, 3 if tiny else 20)
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if on_gpu else None,
        "matmul_tflops": 2 * size**3 / taken / 1e9,
        "varlen": load_varlen() is not None,
        "versions": {
            name: installed(name) for name in ("torch", "transformers", "peft", "trl", "flash_attn", "triton")
        },
    }


# ------------------------------------------------------------------------------------------ the head


def head(tiny: bool) -> dict[str, Any]:
    """Loss and gradients of vocabulary logits, [N, D] against [V, D], with a share r of the rows trained."""
    import torch
    import torch.nn.functional as F

    from halo_forge.models.fast import compiled, decoder
    from halo_forge.models.fast.head import HeadNll, Targets

    num, width, vocabulary = (64, 32, 200) if tiny else (8192, 4096, 151_936)
    torch.manual_seed(0)
    weight = (torch.randn(vocabulary, width, device=device()) / width**0.5).to(torch.bfloat16).requires_grad_()
    everything = torch.randn(num, width, device=device()).to(torch.bfloat16)
    tokens = torch.randint(vocabulary, (num,), device=device())
    regions = {"ours_uncompiled": decoder.EAGER}
    if torch.cuda.is_available():
        regions["ours"] = compiled.compiled_regions()
    found: dict[str, Any] = {"rows": num, "width": width, "vocabulary": vocabulary}
    for share in (1.0, 0.5, 0.2):
        hidden = everything[: int(num * share)].clone().requires_grad_()
        count = len(hidden)
        targets = Targets(
            torch.arange(count, device=device()), tokens[:count],
            torch.full((count,), 1 / count, device=device()), one_each=True,
        )  # fmt: skip

        def ours(region: Any, hidden: Any = hidden, targets: Any = targets) -> Any:
            with_region = replace(targets, to_gradient=region.row_gradient)
            return HeadNll.apply(hidden, weight.detach(), weight, with_region)[0]

        ways = {"naive": lambda hidden=hidden, mine=targets.tokens: F.cross_entropy((hidden @ weight.T).float(), mine)}
        ways |= {name: (lambda region=region, ours=ours: ours(region)) for name, region in regions.items()}
        exact = torch.autograd.grad(
            F.cross_entropy(hidden.float() @ weight.float().T, targets.tokens), (hidden, weight)
        )
        found[f"r={share}"] = timed_ways(ways, [hidden, weight], exact, f"the head at r={share}", 2 if tiny else 10)
    return found


# ------------------------------------------------------------------------------------------ attention


def attention(tiny: bool) -> dict[str, Any]:
    """Forward and backward of one layer's attention over a packed row, per kernel."""
    import torch
    import torch.nn.functional as F

    from halo_forge.models.fast import kernels
    from halo_forge.models.fast.attention import BlockAttention, attention_blocks
    from halo_forge.models.fast.row import PackedRow, last_readers

    heads, key_heads, size = (4, 2, 16) if tiny else (32, 8, 128)
    layouts: dict[str, list[int]] = {"8x512": [512] * 8, "64x64": [64] * 64, "1x4096": [4096]}
    if tiny:
        layouts = {"4x32": [32] * 4}
    found: dict[str, Any] = {}
    for name, lengths in (layouts | {"8 answers to one prompt": []}).items():
        prompt, answer = (32, 16) if tiny else (512, 256)
        ends = np.cumsum(lengths or [prompt] + [answer] * 8).tolist()
        starts = [0, *ends[:-1]]
        seen: list[Any] = [()] * len(ends) if lengths else [(), *[((0, prompt),)] * 8]
        blocks, num = attention_blocks(starts, ends, seen), ends[-1]
        row = PackedRow.of_documents(lengths, blocks, device()) if lengths else PackedRow(blocks)
        row.last_readers = torch.from_numpy(last_readers(blocks, num)).to(device())
        torch.manual_seed(0)
        inputs = [
            torch.randn(num, count, size, device=device()).to(torch.bfloat16).requires_grad_()
            for count in (heads, key_heads, key_heads)
        ]

        def by_blocks(inputs: Any = inputs, blocks: Any = blocks) -> Any:
            return BlockAttention.apply(*(part.transpose(0, 1) for part in inputs), blocks, 0.1)

        def by_mask(inputs: Any = inputs, row: Any = row, num: int = num) -> Any:
            places = torch.arange(num, device=device())
            mask = (places[:, None] >= places) & (places[:, None] <= row.last_readers)
            heads = [part.transpose(0, 1)[None] for part in inputs]
            attended = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.1, enable_gqa=True)
            return attended[0].transpose(0, 1)

        ways: dict[str, Callable[[], Any]] = {"sdpa with a mask": by_mask, "blocks": by_blocks}
        if torch.cuda.is_available():
            ways["flex"] = lambda inputs=inputs, row=row: kernels.flex(*inputs, row, 0.1)
            if lengths and kernels.load_varlen() is not None:
                ways["varlen"] = lambda inputs=inputs, row=row: kernels.varlen(*inputs, row, 0.1)
        wide = [part.detach().float().requires_grad_() for part in inputs]
        upstream = torch.randn(num, heads, size, device=device()).to(torch.bfloat16)
        exact = torch.autograd.grad(by_mask(wide), wide, upstream.float())
        weighted = {kind: (lambda way=way, upstream=upstream: (way() * upstream).sum()) for kind, way in ways.items()}
        found[name] = timed_ways(weighted, inputs, exact, f"attention over {name}", 2 if tiny else 20)
    return found


def timed_ways(
    ways: dict[str, Callable[[], Any]], inputs: list[Any], exact: Any, what: str, repeats: int
) -> dict[str, dict[str, float]]:
    """Forward and backward of each, once its gradient is as close to the exact one as that of the first way, which is
    the usual one, is: within half as much again, or 1 %."""
    import torch

    offs: dict[str, float] = {}
    for name, way in ways.items():
        gradients = torch.autograd.grad(way(), inputs)
        offs[name] = max(
            float((one.float() - other.float()).norm() / other.float().norm())
            for one, other in zip(gradients, exact, strict=True)
        )
        usual = next(iter(offs.values()))
        if not offs[name] <= max(0.01, 1.5 * usual):
            raise SystemExit(f"no parity: {what} by {name} is {offs[name]:.4f} off, the usual way {usual:.4f}")
    found = {}
    for name, way in ways.items():
        before = reset_peak()
        taken = milliseconds(lambda way=way: torch.autograd.grad(way(), inputs), repeats)  # type: ignore[misc]
        found[name] = {"ms": taken, "off": offs[name], "extra_gb": (peak_bytes() - before) / 1e9}
    return found


def reset_peak() -> int:
    """Bytes that are held now."""
    import torch

    if not torch.cuda.is_available():
        return peak_bytes()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


# ------------------------------------------------------------------------------------------ training


def settings(work: Workload, contestant: str) -> Any:
    from halo_forge.config.schema import Config

    training: dict[str, Any] = {"method": work.method, "weight_decay": 0.0}
    training["micro_batch_tokens"] = work.micro_batch_tokens
    if contestant == "ours_uncompiled":
        training["compile"] = False
    lora = {"r": LORA_RANK, "alpha": float(LORA_ALPHA), "dropout": 0.0}
    data = {"max_seq_length": work.max_length}
    return Config.model_validate({"model": {"name": "random"}, "data": data, "training": training, "lora": lora})


def random_model(shape: Shape, dtype: Any, attention: str = "sdpa") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device():
        model = AutoModelForCausalLM.from_config(shape.model_config(), dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    return model


def own_model(work: Workload, dtype: Any = None) -> Any:
    import torch

    from halo_forge.models.adapters import add_lora

    if work.method == "full":
        return random_model(work.shape, torch.float32)
    base = random_model(work.shape, dtype or torch.bfloat16)
    return add_lora(base, r=LORA_RANK, alpha=float(LORA_ALPHA), dropout=0.0, target_modules="all-linear", seed=0)


def as_examples(rows: Rows) -> list[Any]:
    from halo_forge.chat import Example

    return [Example(input_ids=ids, loss_weights=w, conversation_id=str(at)) for at, (ids, w) in enumerate(rows)]


def own_objective(model: Any, work: Workload, contestant: str, rows: Rows) -> tuple[Any, str]:
    from halo_forge.models.compute import Compute
    from halo_forge.train.batches import examples_to_batch
    from halo_forge.train.session import choose_objective

    compute = Compute(device=device(), precision="bfloat16")
    short = [(ids[:16], np.arange(len(ids[:16])).clip(max=1).astype(np.float32)) for ids, _ in rows[:2]]
    probe = examples_to_batch(as_examples(short))
    notes: list[str] = []
    config = settings(work, contestant)
    objective, _ = choose_objective(
        model, config, compute, probe.to(device()), lambda _, fields: notes.append(fields["text"])
    )
    model.train()
    return objective, "; ".join(notes)


def parity(work: Workload) -> dict[str, Any]:
    """The gradient of a two-layer model of the same widths, ours and autocast's, against float32, documents alone."""
    import torch

    from halo_forge.train.batches import examples_to_batch
    from halo_forge.train.loss import model_objective

    small = replace(work, shape=replace(work.shape, layers=2))
    rows = [(ids[:300], weights[-min(300, len(ids)) :]) for ids, weights in make_rows(work)[:4]]

    def gradients(objective: Any, batches: list[Any], model: Any) -> tuple[float, dict[str, Any]]:
        model.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss, _ = objective.nll(batch, batch.weights)
            loss.backward()
            total += float(loss.detach())
        return total, {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}

    alone = [examples_to_batch(as_examples([row])).to(device()) for row in rows]
    together = [examples_to_batch(as_examples(rows)).to(device())]
    results = {}
    for name, dtype in (("exact", torch.float32), ("autocast", torch.bfloat16), ("ours", torch.bfloat16)):
        model = own_model(small, torch.bfloat16)
        if name == "exact":
            model.float()
        move_adapters(model)
        if name == "ours":
            objective, notes = own_objective(model, small, "ours", rows)
        else:
            causal = model.get_base_model() if hasattr(model, "get_base_model") else model
            causal.set_attn_implementation("eager")
            objective = model_objective(model, "float32" if dtype is torch.float32 else "bfloat16")
        results[name] = gradients(objective, together if name == "ours" else alone, model)
        del model

    def distances(name: str) -> dict[str, float]:
        exact = results["exact"][1]
        return {key: float((results[name][1][key] - exact[key]).norm() / exact[key].norm()) for key in exact}

    # Tensor by tensor: small gradients, as of keys, would vanish beside those of embeddings. Where autocast itself is
    # far off (a bias of keys has no gradient but rounding) nothing can be told.
    own, usual = distances("ours"), distances("autocast")
    told = {key: (own[key], usual[key]) for key in own if usual[key] < 0.2}
    worst = max(told, key=lambda key: told[key][0] / max(0.01, 1.5 * told[key][1]))
    off = abs(results["ours"][0] - results["exact"][0]) / results["exact"][0]
    passed = off <= 0.01 and told[worst][0] <= max(0.01, 1.5 * told[worst][1]) and len(told) >= len(own) / 2
    return {
        "loss_off": off, "worst": worst, "gradient_off": told[worst][0], "autocast_off": told[worst][1],
        "tensors": len(told), "notes": notes, "passed": passed,
    }  # fmt: skip


def move_adapters(model: Any) -> None:
    """Adapters start at zero: then most of their gradients are zero, too."""
    import torch

    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)


def train_ours(work: Workload, rows: Rows, contestant: str) -> dict[str, Any]:
    from halo_forge.train.batches import step_batches
    from halo_forge.train.optimizer import make_optimizer
    from halo_forge.train.step import train_step

    model = own_model(work)
    objective, notes = own_objective(model, work, contestant, rows)
    config = settings(work, contestant)
    optimizer = make_optimizer(model.parameters(), config.training)
    examples, steps, losses = as_examples(rows), [], []
    for step in range(work.steps):
        synchronize()
        started = time.perf_counter()
        batches = step_batches(
            examples[step * work.per_step : (step + 1) * work.per_step], max_tokens=work.micro_batch_tokens,
            examples_per_batch=1, share_prefixes=True, trim=True,
        )  # fmt: skip
        losses.append(train_step(objective, optimizer, batches, LEARNING_RATE, 1.0).loss)
        synchronize()
        steps.append(time.perf_counter() - started)
    return {"step_s": steps, "losses": losses, "notes": notes}


def train_trl(work: Workload, rows: Rows, tuned: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    steps: list[float] = []
    losses: list[float] = []

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *arguments: Any, **fields: Any) -> None:
            synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **fields: Any) -> None:
            synchronize()
            steps.append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **fields: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    labels = [np.where(weights > 0, ids, -100).tolist() for ids, weights in rows]
    data = Dataset.from_dict({"input_ids": [ids.tolist() for ids, _ in rows], "labels": labels})
    per = work.rows_of_trl
    sizes: dict[str, Any] = {
        "per_device_train_batch_size": per, "gradient_accumulation_steps": max(1, work.per_step // per)
    }  # fmt: skip
    if tuned:
        tokens = sum(len(ids) for ids, _ in rows) / work.steps
        sizes = {
            "packing": True, "gradient_checkpointing": False, "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": max(1, round(tokens / work.max_length)),
        }  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<eos>": 0, "<pad>": 1}, unk_token="<pad>")),
        eos_token="<eos>", pad_token="<pad>",
    )  # fmt: skip
    lora = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    half = tuned and work.method == "lora"  # full training keeps float32 masters, as ours does
    with tempfile.TemporaryDirectory() as out:
        trainer = InOrder(
            model=random_model(work.shape, torch.bfloat16 if half else torch.float32),
            args=SFTConfig(
                output_dir=out, max_steps=work.steps, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
                warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, bf16=True, max_length=work.max_length,
                logging_steps=1, report_to="none", save_strategy="no", use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True, **sizes,
            ),
            train_dataset=data, processing_class=tokenizer, callbacks=[Times()],
            peft_config=lora if work.method == "lora" else None,
        )  # fmt: skip
        lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
        trainer.train()
    per = sizes["per_device_train_batch_size"] * sizes["gradient_accumulation_steps"]
    seen = [sum(lengths[at : at + per]) for at in range(0, per * work.steps, per)]
    return {"step_s": steps, "losses": losses, "step_tokens": seen}


def one_run(name: str, contestant: str, tiny: bool) -> dict[str, Any]:
    work = workloads(tiny)[name]
    rows = make_rows(work)
    if contestant.startswith("ours"):
        found = train_ours(work, rows, contestant)
    else:
        found = train_trl(work, rows, contestant == "trl_tuned")
    of_step = [rows[at : at + work.per_step] for at in range(0, len(rows), work.per_step)]
    seen = found.setdefault("step_tokens", [sum(len(ids) for ids, _ in part) for part in of_step])
    warm = min(WARM_STEPS, work.steps - 1)
    rate = sum(seen[warm:]) / sum(found["step_s"][warm:])
    operations = necessary_operations(work, rows) / sum(len(ids) for ids, _ in rows)
    return found | {"tokens_per_s": rate, "tflops": rate * operations / 1e12, "peak_gb": peak_bytes() / 1e9}


# ------------------------------------------------------------------------------------------ the plan and its results


def in_a_process(arguments: list[str], tiny: bool) -> dict[str, Any]:
    """What a fresh process answers, or {"error": its last line}."""
    command = [sys.executable, __file__, *arguments, *(["--tiny"] if tiny else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {"error": said[-1][:500]}
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def run_training(name: str, known: dict[str, Any], keep: Callable[[], None], tiny: bool) -> None:
    work = workloads(tiny)[name]
    known.setdefault("workload", asdict(work))
    if not known.get("parity", {}).get("passed"):
        known["parity"] = in_a_process(["--worker", name, "--contestant", "parity"], tiny)
        keep()
        say(f"{name} parity {known['parity']}")
        if not known["parity"].get("passed"):
            say(f"{name} is not timed: no parity")
            return
    runs = known.setdefault("runs", {})
    for pair in range(work.pairs):
        for contestant in work.contestants:
            if contestant.startswith("trl") and installed("trl") is None:
                runs[contestant] = [{"error": "trl is not installed: this comparison is left out"}]
                if not pair:
                    say(f"{name} {contestant}: trl is not installed, left out")
                continue
            mine = runs.setdefault(contestant, [])
            if len(mine) > pair:
                continue
            mine.append(in_a_process(["--worker", name, "--contestant", contestant], tiny))
            keep()
            say(f"{name} {pair + 1} {contestant} {mine[-1]}")
    known["summary"] = summary(runs)
    keep()


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median of each contestant, and ours over it pair by pair."""
    found: dict[str, Any] = {}
    for name, mine in runs.items():
        good = [run for run in mine if "error" not in run]
        if not good:
            found[name] = {"error": mine[0]["error"]} if mine else {}
            continue
        found[name] = {
            key: statistics.median(run[key] for run in good) for key in ("tokens_per_s", "tflops", "peak_gb")
        }
        pairs = [
            (a, b) for a, b in zip(runs.get("ours", []), mine, strict=False) if "error" not in a and "error" not in b
        ]
        if name != "ours" and pairs:
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs]
            found[name] |= {"ours_over_it": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            differences = [
                abs(x - y) / abs(y) for x, y in zip(pairs[0][0]["losses"], pairs[0][1]["losses"], strict=False)
            ]
            found[name]["largest_loss_difference"] = max(differences, default=None)
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    names = [*ESTIMATES_S, *TRAINING]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=names, help="one measurement")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: shows that the script runs, measures nothing")
    parser.add_argument("--dry-run", action="store_true", help="print the plan")
    parser.add_argument("--results", type=Path, help="where to keep results; what is there already is not run again")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work = workloads(arguments.tiny)[arguments.worker]
        is_parity = arguments.contestant == "parity"
        print(
            json.dumps(parity(work) if is_parity else one_run(arguments.worker, arguments.contestant, arguments.tiny))
        )
        return
    chosen = [arguments.only] if arguments.only else names
    estimates = ESTIMATES_S | {name: work.estimate_s for name, work in TRAINING.items()}
    if arguments.dry_run:
        for name in chosen:
            print(f"{name:16s} about {estimates[name] / 60:4.1f} minutes on an H100 (estimated, not measured)")
        print(f"{'all':16s} about {sum(estimates[name] for name in chosen) / 60:4.1f} minutes")
        return
    path = arguments.results or (Path(tempfile.mkdtemp()) / "gpu.json" if arguments.tiny else RESULTS)
    if not arguments.tiny and str(device()) == "cpu":
        raise SystemExit("there is no GPU here; --tiny runs the same script on a CPU")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep() -> None:
        path.write_text(json.dumps(results, indent=2) + "\n")

    for name in chosen:
        started = time.perf_counter()
        if name in TRAINING:
            run_training(name, results.setdefault(name, {}), keep, arguments.tiny)
        elif name not in results:
            results[name] = {"machine": machine, "head": head, "attention": attention}[name](arguments.tiny)
        keep()
        say(f"{name}: {time.perf_counter() - started:.0f} s")
    peak = results.get("machine", {}).get("matmul_tflops")
    for name in TRAINING:
        for mine in results.get(name, {}).get("summary", {}).values():
            if peak and "tflops" in mine:
                mine["mfu"] = mine["tflops"] / peak
    keep()
    print(json.dumps({name: found.get("summary", found) for name, found in results.items()}, indent=2))


if __name__ == "__main__":
    main()
