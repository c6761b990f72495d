"""How far the plan's memory is from what a run takes: predicted and measured, side by side.

    python benchmarks/plan.py

SmolLM2-135M-Instruct on examples/docstring_json.jsonl, 32 rows a step, three steps, one thread, every run in a fresh
process; adapters with dropout 0.05. Measured is the highest resident memory of the process up to the end of training
(`trained.json`), predicted the training step of `halo-forge plan`. The allocator's constants of
train/planning/memory.py are fitted to this table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "plan.json"
COMMAND = [str(Path(sys.executable).parent / "halo-forge")]


def settings(method: str, tokens: int, recompute: bool) -> list[str]:
    values = {
        "training.method": method,
        "training.micro_batch_tokens": tokens,
        "training.gradient_checkpointing": str(recompute).lower(),
        "training.max_steps": 3,
        "training.bf16": "true",
        "training.preflight": "false",
        "evaluation.enabled": "false",
        "evaluation.sample_prompts": 0,
        "data.validation_split": 0,
    }
    flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["--data", str(REPOSITORY / "examples" / "docstring_json.jsonl"), *flags]


def measure(method: str, tokens: int, recompute: bool) -> dict[str, object]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as work:
        common = [*settings(method, tokens, recompute), "--output", f"{work}/run"]
        plan = subprocess.run([*COMMAND, "plan", *common, "--json"], capture_output=True, text=True, env=environment)
        if plan.returncode not in (0, 6):
            raise SystemExit(plan.stderr[-2000:])
        run = subprocess.run([*COMMAND, "sft", "train", *common], capture_output=True, text=True, env=environment)
        trained = Path(work) / "run" / "trained.json"
        if not trained.exists():
            raise SystemExit(run.stderr[-2000:])
        measured = json.loads(trained.read_text())["peak_memory_bytes"]
    predicted = json.loads(plan.stdout)["phases"]
    step = next(phase for phase in predicted if phase["name"] == "training step")
    total = sum(step["parts"].values())
    return {
        "method": method, "micro_batch_tokens": tokens, "recomputed": recompute, "measured_mb": round(measured / 1e6),
        "predicted_mb": round(total / 1e6), "ratio": round(total / measured, 2),
        "parts_mb": {name: round(value / 1e6) for name, value in step["parts"].items()},
    }  # fmt: skip


def main() -> None:
    rows = []
    for method in ("lora", "full"):
        for tokens in (512, 1024, 2048):
            for recompute in (False, True):
                rows.append(measure(method, tokens, recompute))
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
