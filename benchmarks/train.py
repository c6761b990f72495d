"""One optimizer step after the other: this package against TRL, on the same tokens, equal before they are timed.

    python benchmarks/train.py --data ../shared/data/gsm8k_train.jsonl --method lora --pairs 5

Contestants, each in a fresh process, turn about, so that what else the machine does slows all of them:

    ours         the training step of `halo-forge sft train`, with the memory settings that the command starts itself
                 with, bfloat16 where this machine is faster with it
    trl_default  SFTTrainer as it comes: batches of 8 (of 5 for 20 rows a step) padded to the longest, recomputation on,
                 bf16 autocast
    trl_tuned    SFTTrainer with packing (rows of 2,048 tokens), without recomputation, bf16 autocast

Where a machine is slower in bfloat16 all run in float32, TRL's defaults too: equal losses need equal precision, and the
comparison is not to win by that.

All train SmolLM2-135M-Instruct on the same rows in the same order with the same labels, AdamW at one rate, and clip at
1; LoRA has rank 16 on all linear layers without dropout. Packed rows shift a few examples between the steps of
trl_tuned, so only the loss of trl_default is comparable step by step. Measured from the second step on: wall seconds,
tokens of the rows as they are (no padding; a prefix counts in every row that has it) and supervised tokens a second,
and the peak of resident memory.

Workloads (--workload): `gsm8k` questions with their answers; `answers` five answers to each question (its own and those
of four other rows); `fewshot` five solved examples before each question, of which the final number alone is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.cli.start import MALLOC_SETTINGS

CONTESTANTS = ("ours", "trl_default", "trl_tuned")
LEARNING_RATE = 2e-5
MAX_LENGTH = 2048
LORA_RANK, LORA_ALPHA = 16, 32
RESULTS = Path(__file__).parent / "results" / "train.json"
PARITY = 0.005
PARITY_TOKENS = 1000
"""Largest difference of losses, relative, over so many supervised tokens or more: both compute in bfloat16 with other
roundings, which average out as 1 / sqrt(tokens). 25 tokens of few-shot rows: float32 5.437, ours 5.423, TRL 5.474."""
MODEL = "smollm2-135m-instruct"


# ------------------------------------------------------------------------------------------------ the rows


def write_rows(data: Path, workload: str, num_rows: int, out: Path) -> None:
    """Token ids and labels of the workload, encoded once for all contestants."""
    from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart
    from halo_forge.models import load_tokenizer

    def conversation(question: str, answer: str) -> Conversation:
        messages = (
            Message(role="user", parts=(TextPart(text=question),)),
            Message(role="assistant", parts=(TextPart(text=answer),)),
        )
        return Conversation(id="row", messages=messages, source=SourceRef(path="rows", line=1))

    source = [json.loads(line) for line in data.read_text().splitlines()]
    pick = np.random.default_rng(0).permutation(len(source))
    rows = [source[int(i)] for i in pick]
    if workload == "gsm8k":
        pairs = [(row["question"], row["answer"]) for row in rows[:num_rows]]
    elif workload == "answers":
        count = num_rows // 5
        pairs = [
            (row["question"], rows[at + count * other]["answer"])
            for at, row in enumerate(rows[:count])
            for other in range(5)
        ]
    else:
        shots = "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows[-5:])
        pairs = [
            (f"{shots}\n\nQuestion: {row['question']}\nAnswer:", row["answer"].rsplit("#### ", 1)[1])
            for row in rows[:num_rows]
        ]
    encoder = ChatEncoder(load_tokenizer(MODEL), max_seq_length=MAX_LENGTH)
    encoded = encoder.encode_batch([conversation(*pair) for pair in pairs])
    np.savez(out, ids=encoded.ids, weights=encoded.loss_weights, starts=encoded.starts)


def read_rows(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, loss weights) of each row."""
    stored = np.load(path)
    starts = stored["starts"].tolist()
    return [(stored["ids"][first:last], stored["weights"][first:last]) for first, last in pairwise(starts)]


# ------------------------------------------------------------------------------------------------ the contestants


def train_ours(rows: list[tuple[np.ndarray, np.ndarray]], method: str, per_step: int, num_steps: int) -> dict[str, Any]:
    import torch

    from halo_forge.chat import Example
    from halo_forge.config.schema import Config
    from halo_forge.models import load_tokenizer
    from halo_forge.models.compute import Compute
    from halo_forge.models.precision import choose_precision
    from halo_forge.train.batches import examples_to_batch, step_batches
    from halo_forge.train.optimizer import make_moments, make_optimizer
    from halo_forge.train.session import (
        choose_objective,
        drops_anything,
        load_training_model,
        micro_batch_tokens,
    )
    from halo_forge.train.step import train_step

    config = Config.model_validate(
        {
            "model": {"name": MODEL},
            "data": {"max_seq_length": MAX_LENGTH},
            "training": {"method": method, "weight_decay": 0.0},
            "lora": {"r": LORA_RANK, "alpha": float(LORA_ALPHA), "dropout": 0.0},
        }
    )
    device = torch.device("cpu")
    compute = Compute(device=device, precision=choose_precision("auto", device).name)
    model = load_training_model(config, compute, load_tokenizer(MODEL))
    examples = [
        Example(input_ids=ids, loss_weights=weights, conversation_id=str(at)) for at, (ids, weights) in enumerate(rows)
    ]
    probe = examples_to_batch(
        [
            Example(input_ids=ids[:9], loss_weights=np.eye(9, dtype=np.float32)[8], conversation_id="probe")
            for ids, _ in rows[:2]
        ]
    )
    objective, _ = choose_objective(model, config, compute, probe, lambda event, fields: None)
    model.train()
    optimizer = make_optimizer(model.parameters(), config.training)
    make_moments(optimizer)
    shares = config.training.prefix_sharing and not drops_anything(model)
    steps, losses, norms = [], [], []
    for step in range(num_steps):
        started = time.perf_counter()
        batches = step_batches(
            examples[step * per_step : (step + 1) * per_step],
            max_tokens=micro_batch_tokens(config, compute),
            examples_per_batch=2,
            share_prefixes=shares,
            trim=config.training.skip_unread,
        )
        result = train_step(objective, optimizer, batches, LEARNING_RATE, 1.0)
        steps.append(time.perf_counter() - started)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    return {"step_s": steps, "losses": losses, "grad_norms": norms, "precision": compute.precision}


def train_trl(
    rows: list[tuple[np.ndarray, np.ndarray]], method: str, per_step: int, num_steps: int, tuned: bool
) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from halo_forge.models import load_tokenizer
    from halo_forge.models.precision import choose_precision
    from halo_forge.models.resolve import resolve_model

    in_bfloat16 = choose_precision("auto", torch.device("cpu")).name == "bfloat16"
    labels = [np.where(weights > 0, ids, -100) for ids, weights in rows]
    data = Dataset.from_dict(
        {"input_ids": [ids.tolist() for ids, _ in rows], "labels": [row.tolist() for row in labels]}
    )
    model = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL), dtype=torch.float32)
    steps: list[float] = []
    losses: list[float] = []
    norms: list[float] = []

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *arguments: Any, **fields: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **fields: Any) -> None:
            steps.append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **fields: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])
                norms.append(logs["grad_norm"])

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *arguments: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as out:
        mean = sum(len(ids) for ids, _ in rows) / len(rows)
        packed = {
            "packing": True,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": max(1, round(per_step * mean / MAX_LENGTH)),
        }
        batch = max(size for size in range(1, 9) if per_step % size == 0)  # 8 is the default
        plain = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": per_step // batch}
        settings = SFTConfig(
            output_dir=out,
            max_steps=num_steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=in_bfloat16,
            max_length=MAX_LENGTH,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            **(packed if tuned else plain),
        )
        lora = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        trainer = InOrder(
            model=model,
            args=settings,
            train_dataset=data,
            processing_class=load_tokenizer(MODEL),
            peft_config=lora if method == "lora" else None,
            callbacks=[Times()],
        )
        sizes = [len(row["input_ids"]) for row in trainer.train_dataset]
        supervised = [sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset]
        per = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        trainer.train()
    return {
        "step_s": steps,
        "losses": losses,
        "grad_norms": norms,
        "precision": "bfloat16" if in_bfloat16 else "float32",
        "step_tokens": [sum(sizes[at : at + per]) for at in range(0, per * num_steps, per)],
        "step_supervised": [sum(supervised[at : at + per]) for at in range(0, per * num_steps, per)],
    }


def one_run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = read_rows(arguments.rows)
    per_step, num_steps = arguments.per_step, arguments.steps
    if arguments.contestant == "ours":
        found = train_ours(rows, arguments.method, per_step, num_steps)
    else:
        found = train_trl(rows, arguments.method, per_step, num_steps, arguments.contestant == "trl_tuned")
    for name, column in (("step_tokens", 0), ("step_supervised", 1)):
        if name not in found:
            found[name] = [
                sum(len(row[0]) if column == 0 else int((row[1] > 0).sum()) for row in rows[at : at + per_step])
                for at in range(0, per_step * num_steps, per_step)
            ]
    timed = sum(found["step_s"][1:])
    return found | {
        "tokens_per_s": sum(found["step_tokens"][1:]) / timed,
        "supervised_per_s": sum(found["step_supervised"][1:]) / timed,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


# ------------------------------------------------------------------------------------------------ the comparison


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    title = " ".join(filter(None, (arguments.workload, arguments.method, arguments.label)))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contestants}
    if arguments.add:
        runs = known[title]["runs"]
        if set(runs) != set(arguments.contestants):
            raise SystemExit(f"the runs to add to are of {', '.join(runs)}")
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.npz"
        write_rows(arguments.data, arguments.workload, arguments.per_step * arguments.steps, rows)
        for pair in range(arguments.pairs):
            for name in arguments.contestants:
                command = [sys.executable, __file__, "--contestant", name, "--rows", str(rows)]
                for key in ("method", "per_step", "steps"):
                    command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
                environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
                if name == "ours":
                    environment["GLIBC_TUNABLES"] = MALLOC_SETTINGS
                done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                found = json.loads(done.stdout.splitlines()[-1])
                runs[name].append(found)
                rate, peak = found["tokens_per_s"], found["peak_bytes"] / 1e9
                print(
                    f"{pair + 1} {name:12s} {rate:7.1f} tokens/s  {peak:.2f} GB  losses {found['losses']}",
                    file=sys.stderr,
                )
            require_parity(runs)
            found = summary(arguments, runs)
            RESULTS.write_text(json.dumps(known | {title: found}, indent=2) + "\n")
    return found


def require_parity(runs: dict[str, list[dict[str, Any]]]) -> None:
    """No speed is told of a training that is another one: same rows, same order, same loss in every step."""
    for name in ("trl_default",) if "trl_default" in runs else ():
        mine, others = runs["ours"][-1], runs[name][-1]
        for one, other, count in zip(mine["losses"], others["losses"], mine["step_supervised"], strict=True):
            if abs(one - other) > PARITY * max(1.0, (PARITY_TOKENS / count) ** 0.5) * other:
                raise SystemExit(f"not the same training: loss {one} of ours, {other} of {name}")


def summary(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ours = runs["ours"]
    contestants = {
        name: {
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in found),
            "supervised_per_s": statistics.median(run["supervised_per_s"] for run in found),
            "peak_gb": statistics.median(run["peak_bytes"] for run in found) / 1e9,
            "losses": found[0]["losses"],
            "grad_norms": found[0]["grad_norms"],
            "step_tokens": found[0]["step_tokens"],
        }
        for name, found in runs.items()
    }
    ratios = {}
    for name, found in runs.items():
        if name == "ours":
            continue
        speed = [one["tokens_per_s"] / other["tokens_per_s"] for one, other in zip(ours, found, strict=True)]
        memory = [one["peak_bytes"] / other["peak_bytes"] for one, other in zip(ours, found, strict=True)]
        ratios[name] = {
            "speed": statistics.median(speed), "lowest": min(speed), "highest": max(speed),
            "memory": statistics.median(memory),
            "largest_loss_difference": max(
                abs(a - b) / b for a, b in zip(ours[0]["losses"], found[0]["losses"], strict=False)
            ),
        }  # fmt: skip
    return {
        "workload": arguments.workload, "method": arguments.method, "examples_per_step": arguments.per_step,
        "steps": arguments.steps, "pairs": len(ours), "contestants": contestants, "ratios": ratios, "runs": runs,
        "cores": os.cpu_count(), "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="GSM8K training rows (JSONL: question, answer)")
    parser.add_argument("--workload", choices=("gsm8k", "answers", "fewshot"), default="gsm8k")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--label", help="under which the results are kept, beside those of other machines")
    parser.add_argument("--add", action="store_true", help="to the pairs of this workload and method in results/")
    parser.add_argument("--per-step", type=int, default=16, help="examples of an optimizer step")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps; the first is not timed")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(one_run(arguments)))
        return
    found = compare(arguments)
    print(json.dumps({name: found[name] for name in ("ratios", "contestants")}, indent=2))


if __name__ == "__main__":
    main()
