"""What is learnt against what is forgotten: SmolLM2-135M-Instruct on GSM8K by several methods and switches.

    python benchmarks/forgetting.py --data ../shared/data/gsm8k_train.jsonl \\
        --replay ../shared/data/benchmarks/truthfulqa/truthful_qa/multiple_choice/validation.parquet

Every variant trains on the same 64 task rows for the same 16 steps of 4, with one seed. Replay adds as many questions
of TruthfulQA with their right answers: each step then has 8 rows, about half of the task. Measured by `evaluate`: the
perplexity of 32 held-out solutions (task) and of the general texts, and KL(base || tuned) on these (retention).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halo_forge.artifacts import Comparison
from halo_forge.config import load_config
from halo_forge.pipeline import run

RESULTS = Path(__file__).parent / "results" / "forgetting.json"
MODEL = "smollm2-135m-instruct"
NUM_TRAIN, NUM_HOLDOUT, ROWS_PER_STEP, SEED = 64, 32, 4, 0
HIGH, LOW = 2e-4, 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "full, 2e-4": {"method": "full", "learning_rate": HIGH},
    "full, 1e-5": {"method": "full", "learning_rate": LOW},
    "full, 2e-4, l2_to_start 1": {"method": "full", "learning_rate": HIGH, "l2_to_start": 1.0},
    "full, 2e-4, replay": {"method": "full", "learning_rate": HIGH},
    "lora, 5e-4": {"method": "lora", "learning_rate": 5e-4},
    "lora, 5e-4, kl_to_base 1": {"method": "lora", "learning_rate": 5e-4, "kl_to_base": 1.0},
}
METRICS = ("perplexity", "general_perplexity", "general_kl")


def write_rows(data: Path, replay: Path, out: Path) -> None:
    """task.jsonl, holdout.jsonl and general.jsonl: rows drawn with the seed."""
    import pyarrow.parquet

    lines = data.read_text().splitlines()
    picks = np.random.default_rng(SEED).permutation(len(lines))[: NUM_TRAIN + NUM_HOLDOUT]
    chosen = [lines[int(pick)] for pick in picks]
    (out / "task.jsonl").write_text("\n".join(chosen[:NUM_TRAIN]) + "\n")
    (out / "holdout.jsonl").write_text("\n".join(chosen[NUM_TRAIN:]) + "\n")
    table = pyarrow.parquet.read_table(replay).to_pylist()
    picks = np.random.default_rng(SEED).permutation(len(table))[:NUM_TRAIN]
    general = [table[int(pick)] for pick in picks]
    with open(out / "general.jsonl", "w") as file:
        for row in general:
            right = row["mc1_targets"]["choices"][row["mc1_targets"]["labels"].index(1)]
            file.write(json.dumps({"question": row["question"], "answer": right}) + "\n")


def train_and_measure(name: str, rows: Path) -> dict[str, Any]:
    with_replay = "replay" in name
    sources: list[dict[str, Any]] = [{"path": str(rows / "task.jsonl"), "name": "task"}]
    if with_replay:
        sources.append({"path": str(rows / "general.jsonl"), "name": "general", "replay": True})
    training = VARIANTS[name] | {
        "per_device_train_batch_size": ROWS_PER_STEP * (2 if with_replay else 1), "gradient_accumulation_steps": 1,
        "num_train_epochs": 1, "seed": SEED, "bf16": True, "preflight": False,
    }  # fmt: skip
    values: dict[str, Any] = {f"training.{key}": value for key, value in training.items()} | {
        "model.name": MODEL, "data.sources": sources, "data.holdout_file": str(rows / "holdout.jsonl"),
        "data.validation_split": 0.0, "data.max_seq_length": 1024, "lora.dropout": 0.0,
        "evaluation.max_prompts": 1, "evaluation.max_new_tokens": 1, "evaluation.sample_prompts": 0,
        "output.dir": str(rows / f"run-{list(VARIANTS).index(name)}"),
    }  # fmt: skip
    started = time.perf_counter()
    config = load_config(flags={key: (value, "benchmark") for key, value in values.items()})
    result = run(config, until="evaluate")
    assert result.report is not None
    assert result.trained is not None
    compared = {row.metric: row for row in result.report.comparisons}
    return {
        "steps": result.trained.num_steps, "tokens": result.trained.num_tokens,
        "train_loss": result.trained.train_loss, "time_s": time.perf_counter() - started,
        **{metric: figures(compared[metric]) for metric in METRICS},
    }  # fmt: skip


def figures(row: Comparison) -> dict[str, Any]:
    return {
        side: {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        for side, found in (("base", row.base), ("tuned", row.tuned), ("change", row.delta))
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows of the table in docs/methods.md."""

    def told(side: dict[str, Any]) -> str:
        return f"{side['value']:.3g} ({side['low']:.3g} to {side['high']:.3g})"

    base = next(iter(found.values()))
    lines = [f"| base | {told(base['perplexity']['base'])} | {told(base['general_perplexity']['base'])} | 0 |"]
    lines += [
        f"| {name} | " + " | ".join(told(row[metric]["tuned"]) for metric in METRICS) + " |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


def keep(found: dict[str, dict[str, Any]], threads: int) -> None:
    """Variants that were not run again keep their figures."""
    known = json.loads(RESULTS.read_text())["variants"] if RESULTS.exists() else {}
    settings = {
        "model": MODEL, "seed": SEED, "train_rows": NUM_TRAIN, "holdout_rows": NUM_HOLDOUT,
        "rows_per_step": ROWS_PER_STEP, "threads": threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(settings | {"variants": known | found}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="GSM8K training rows (JSONL: question, answer)")
    parser.add_argument("--replay", type=Path, required=True, help="TruthfulQA, multiple choice (Parquet)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        write_rows(arguments.data, arguments.replay, Path(work))
        for name in arguments.variants:
            found[name] = train_and_measure(name, Path(work))
            print(table({name: found[name]}).splitlines()[-1], f"{found[name]['time_s']:.0f} s", flush=True)
    keep(found, torch.get_num_threads())
    print(table(found))


if __name__ == "__main__":
    main()
