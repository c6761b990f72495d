"""Base, SFT and one round of rejection sampling on a small task, with every number measured.

    python examples/rejection_sampling/run.py [--directory runs/rejection_sampling]

40 labelled rows, 120 prompts whose answers are thrown away, 80 held-out rows. The tuned model answers each prompt
four times, a verifier that reads the prompt alone keeps one right answer of each, and the base model is trained again
on labels and kept answers. More rows are more steps, so a control trains on the labels alone for as many steps. The
epochs were set before the held-out rows were looked at. A stopped run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from halo_forge.artifacts import Comparison, EvalReport, Measurement, PreparedData, TrainedModel
from halo_forge.evaluate.released import compare_versions, read_scores
from halo_forge.evaluate.statistics import Resampling
from halo_forge.runs import read_artifact

HERE = Path(__file__).resolve().parent
ROWS = HERE.parent / "docstring_json.jsonl"
SCHEMA = HERE.parent / "docstring_json.schema.json"
VERIFIER = f"python:{HERE.parent / 'verify_stub.py'}"
NUM_LABELLED, NUM_PROMPTS, NUM_HELD_OUT = 40, 120, 80
BATCH_SIZE, SFT_EPOCHS, ROUND_EPOCHS = 8, 3, 2
METRICS = ("schema_valid", "json_match", "exact_match")


def halo_forge(*arguments: str | Path) -> dict[str, Any]:
    """Run the command as a user would; what it answers with --json."""
    command = [str(Path(sys.executable).with_name("halo-forge")), *map(str, arguments), "--json"]
    print("$ halo-forge", *command[1:-1], file=sys.stderr)
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def write_files(directory: Path) -> tuple[Path, Path, Path]:
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    labelled, prompts, held_out = (directory / f"{name}.jsonl" for name in ("labelled", "prompts", "held_out"))
    labelled.write_text("".join(lines[:NUM_LABELLED]), encoding="utf-8")
    held_out.write_text("".join(lines[-NUM_HELD_OUT:]), encoding="utf-8")
    asked = (json.loads(line)["messages"][:1] for line in lines[NUM_LABELLED : NUM_LABELLED + NUM_PROMPTS])
    prompts.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in asked), encoding="utf-8")
    return labelled, prompts, held_out


def train(rows: Path, held_out: Path, output: Path, epochs: int) -> None:
    halo_forge(
        "sft", "train", "--data", rows, "--model", "smollm2-135m-instruct", "--output", output, "--epochs", str(epochs),
        "--learning-rate", "5e-4", "--batch-size", str(BATCH_SIZE), "--gradient-accumulation", "1",
        "--lora-dropout", "0", "--validation-split", "0", "--set", f"data.holdout_file={held_out}",
        "--set", f"evaluation.json_schema={SCHEMA}", "--set", "evaluation.max_new_tokens=80",
        "--set", "evaluation.sample_prompts=0", "--set", "lora.target_modules=all-linear",
    )  # fmt: skip


def table_row(stage: str, run: Path, side: str = "tuned") -> str:
    report = read_artifact(run / "eval" / "report.json", EvalReport)
    measured = {row.metric: getattr(row, side) for row in report.comparisons if row.slice == "all"}
    rows, steps = "", ""
    if side == "tuned":
        rows = str(read_artifact(run / "data" / "manifest.json", PreparedData).splits["train"].rows)
        steps = str(read_artifact(run / "trained.json", TrainedModel).num_steps)
    return f"| {stage} | {rows} | {steps} | {' | '.join(_share(measured[name]) for name in METRICS)} |"


def _share(measured: Measurement) -> str:
    return f"{100 * measured.value:.1f} % ({100 * measured.low:.0f} to {100 * measured.high:.0f})"


def changes(before: Path, after: Path) -> str:
    """What one run gained on another, item by item."""
    report = read_artifact(after / "eval" / "report.json", EvalReport)
    compared = compare_versions(
        read_scores(after / "eval" / "scores.jsonl"), read_scores(before / "eval" / "scores.jsonl"), report,
        Resampling(),
    )  # fmt: skip
    overall = {row.metric: row for row in compared if row.slice == "all"}
    said = [f"{name} {_change(overall[name])}" for name in METRICS]
    return f"{before.name} -> {after.name}: " + "; ".join(said)


def _change(row: Comparison) -> str:
    delta = row.delta
    figures = f"{100 * delta.value:+.1f} points ({100 * delta.low:+.1f} to {100 * delta.high:+.1f})"
    return f"{figures}, {row.wins} won, {row.losses} lost, p = {row.p_value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/rejection_sampling"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    labelled, prompts, held_out = write_files(directory)
    train(labelled, held_out, directory / "sft", SFT_EPOCHS)
    kept, both = directory / "kept.jsonl", directory / "round1.jsonl"
    drawn = halo_forge(
        "generate", "--run", directory / "sft", "--prompts", prompts, "--samples", "4", "--temperature", "0.8",
        "--max-new-tokens", "80", "--verifier", VERIFIER, "--keep", "best", "--output", kept,
    )  # fmt: skip
    both.write_text(labelled.read_text(encoding="utf-8") + kept.read_text(encoding="utf-8"), encoding="utf-8")
    train(both, held_out, directory / "round1", ROUND_EPOCHS)
    per_epoch = NUM_LABELLED // BATCH_SIZE
    num_steps = read_artifact(directory / "round1" / "trained.json", TrainedModel).num_steps
    train(labelled, held_out, directory / "control", max(1, round(num_steps / per_epoch)))
    print("| stage | rows | steps | " + " | ".join(f"`{name}`" for name in METRICS) + " |")
    print("|---|---|---|" + "---|" * len(METRICS))
    print(table_row("base", directory / "sft", "base"))
    print(table_row("SFT on the labels", directory / "sft"))
    print(table_row("one round of rejection sampling", directory / "round1"))
    print(table_row("control: the labels alone, as many steps", directory / "control"))
    rates = ", ".join(f"pass@{k} {100 * float(rate):.1f} %" for k, rate in drawn["pass_at_k"].items())
    print(f"\n{drawn['samples']} samples of {NUM_PROMPTS} prompts, {drawn['passed']} passed ({rates})")
    for before in ("sft", "control"):
        print(changes(directory / before, directory / "round1"))


if __name__ == "__main__":
    main()
