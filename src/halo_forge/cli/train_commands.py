"""Commands that train: `run`, `demo`, `sft train`, `sft datasets`, and one `sft` per domain."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from halo_forge.cli.launch_options import with_processes
from halo_forge.cli.on_hand import require_on_hand
from halo_forge.cli.running import (
    VERDICT_EXIT,
    ConfigOption,
    DryRunOption,
    FreshOption,
    JsonOption,
    ResumeOption,
    SetOption,
    given,
    importing,
    print_json,
    told_in_words,
)
from halo_forge.config import ResolvedConfig, load_config
from halo_forge.errors import UsageError
from halo_forge.launch import Launch

ModelFlag = Annotated[str | None, typer.Option("--model", "-m", help="Hub id or local directory of the base model.")]
DatasetFlag = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Short name (`halo-forge sft datasets`) or Hub id of a data set.")
]
DataFlag = Annotated[str | None, typer.Option("--data", help="Local rows: JSONL, JSON, CSV, Parquet or text.")]
OutputFlag = Annotated[str | None, typer.Option("--output", "-o", help="Run directory.", metavar="DIRECTORY")]
EpochsFlag = Annotated[float | None, typer.Option(help="Passes over the training rows.")]
MaxSamplesFlag = Annotated[int | None, typer.Option(help="Read at most this many rows.")]


@told_in_words
@with_processes
def run_command(
    config: Annotated[Path, typer.Argument(help="YAML configuration.", metavar="CONFIG")],
    overrides: SetOption = None,
    until: Annotated[str, typer.Option(help="Last stage: data, train, evaluate, gate or publish.")] = "publish",
    resume: ResumeOption = None,
    fresh: FreshOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    launch: Launch | None = None,
) -> None:
    """The whole pipeline from one file: data, training, evaluation, gate, release, report.

    Exit code 0 = passed, 4 = the gate failed, 5 = the evidence is insufficient.
    """
    if until not in ("data", "train", "evaluate", "gate", "publish"):
        raise UsageError(f"no stage {until!r}", where="--until", expected="data, train, evaluate, gate or publish")
    resolved = load_config(config, overrides=overrides or ())
    how = How(resume=resume, fresh=fresh, dry_run=dry_run, as_json=as_json, gate_exit=True, launch=launch)
    execute(resolved, until, how)


@told_in_words
def demo_command(
    output: Annotated[str, typer.Option("--output", "-o", help="Run directory.")] = "runs/demo",
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Five minutes on a laptop: a real 135M model learns to turn Python stubs into JSON, and has to prove it."""
    resolved = load_config(demo_config(), flags=given({"--output": ("output.dir", output)}))
    execute(resolved, "publish", How(fresh=fresh, as_json=as_json, gate_exit=True))


def demo_config() -> Path:
    """configs/demo.yaml of the checkout; the demo's rows lie beside it in examples/."""
    here = Path("configs/demo.yaml")
    if here.is_file():
        return here
    raise UsageError(
        "the demo runs in a checkout of halo-forge",
        where=str(here.absolute()),
        expected="configs/demo.yaml and examples/ in the current directory",
        fix="git clone the repository and run `make demo` there",
    )


@told_in_words
@with_processes
def sft_train_command(
    config: ConfigOption = None,
    dataset: DatasetFlag = None,
    data: DataFlag = None,
    model: ModelFlag = None,
    output: OutputFlag = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    epochs: EpochsFlag = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per device in a micro-batch.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(help="Micro-batches per optimizer step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup_ratio: Annotated[float | None, typer.Option(help="Share of steps with a rising rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="Gradient clipping.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Rank of the adapters.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Adapters are scaled by alpha / rank.")] = None,
    lora_dropout: Annotated[float | None, typer.Option()] = None,
    no_lora: Annotated[bool, typer.Option("--no-lora", help="Train every weight.")] = False,
    save_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    eval_steps: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    save_total_limit: Annotated[int | None, typer.Option(help="Checkpoints to keep.")] = None,
    early_stopping_patience: Annotated[
        int | None, typer.Option(help="Turn early stopping on: validations without improvement before it stops.")
    ] = None,
    max_samples: MaxSamplesFlag = None,
    validation_split: Annotated[float | None, typer.Option(help="Share of rows to validate on.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Longest example in tokens.")] = None,
    no_gradient_checkpointing: Annotated[
        bool, typer.Option("--no-gradient-checkpointing", help="Keep activations: faster, more memory.")
    ] = False,
    seed: Annotated[int | None, typer.Option()] = None,
    overrides: SetOption = None,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
    launch: Launch | None = None,
) -> None:
    """Fine-tune, compare with the base model on unseen rows, and write the report.

    The same command goes on where a stopped one left off.
    """
    flags = given(
        {
            "--dataset": ("data.dataset", dataset),
            "--data": ("data.train_file", data),
            "--model": ("model.name", model),
            "--output": ("output.dir", output),
            "--epochs": ("training.num_train_epochs", epochs),
            "--batch-size": ("training.per_device_train_batch_size", batch_size),
            "--gradient-accumulation": ("training.gradient_accumulation_steps", gradient_accumulation),
            "--learning-rate": ("training.learning_rate", learning_rate),
            "--warmup-ratio": ("training.warmup_ratio", warmup_ratio),
            "--weight-decay": ("training.weight_decay", weight_decay),
            "--max-grad-norm": ("training.max_grad_norm", max_grad_norm),
            "--lora-rank": ("lora.r", lora_rank),
            "--lora-alpha": ("lora.alpha", lora_alpha),
            "--lora-dropout": ("lora.dropout", lora_dropout),
            "--no-lora": ("training.method", "full" if no_lora else None),
            "--save-steps": ("output.save_steps", save_steps),
            "--eval-steps": ("training.eval_steps", eval_steps),
            "--save-total-limit": ("output.save_total_limit", save_total_limit),
            "--early-stopping-patience": ("training.early_stopping_patience", early_stopping_patience),
            "--max-samples": ("data.max_samples", max_samples),
            "--validation-split": ("data.validation_split", validation_split),
            "--max-seq-length": ("data.max_seq_length", max_seq_length),
            "--no-gradient-checkpointing": (
                "training.gradient_checkpointing", False if no_gradient_checkpointing else None,
            ),
            "--seed": ("training.seed", seed),
        }
    )  # fmt: skip
    resolved = load_config(config, overrides=overrides or (), flags=flags)
    execute(resolved, "gate", How(resume=resume, fresh=fresh, dry_run=dry_run, as_json=as_json, launch=launch))


@told_in_words
def sft_datasets_command(as_json: JsonOption = False) -> None:
    """List the data sets that have a short name."""
    from halo_forge.data import DATASETS

    if as_json:
        print_json([entry.to_dict() for entry in DATASETS])
        return
    rows = [("Domain", "Short name", "Hugging Face id", "Size")]
    rows += [(entry.domain, entry.name, entry.hub_id, entry.size) for entry in DATASETS]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nhalo-forge sft train --dataset NAME --model MODEL --output DIRECTORY")


def domain_command(name: str) -> Any:
    """The `sft` command of one domain: the same training with the domain's defaults."""
    from halo_forge.domains import get_domain

    @told_in_words
    @with_processes
    def sft(
        config: ConfigOption = None,
        model: ModelFlag = None,
        dataset: DatasetFlag = None,
        data: DataFlag = None,
        output: OutputFlag = None,
        epochs: EpochsFlag = None,
        max_samples: MaxSamplesFlag = None,
        resume: ResumeOption = None,
        dry_run: DryRunOption = False,
        overrides: SetOption = None,
        fresh: FreshOption = False,
        as_json: JsonOption = False,
        launch: Launch | None = None,
    ) -> None:
        domain = get_domain(name)
        flags = given(
            {
                "--model": ("model.name", model),
                "--dataset": ("data.dataset", dataset),
                "--data": ("data.train_file", data),
                "--output": ("output.dir", output),
                "--epochs": ("training.num_train_epochs", epochs),
                "--max-samples": ("data.max_samples", max_samples),
            }
        )
        resolved = load_config(config, overrides=overrides or (), flags=flags, preset=domain.defaults, preset_name=name)
        execute(resolved, "gate", How(resume=resume, fresh=fresh, dry_run=dry_run, as_json=as_json, launch=launch))

    sft.__doc__ = (
        f"Fine-tune with the defaults of the {name} domain.\n\n`halo-forge domains` says what it reads and trains."
    )
    return sft


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """gate_exit: the gate's verdict is the exit code."""

    resume: Path | None = None
    fresh: bool = False
    dry_run: bool = False
    as_json: bool = False
    gate_exit: bool = False
    launch: Launch | None = None


def execute(resolved: ResolvedConfig, until: str, how: How) -> None:
    """Run the pipeline with a live display; print the result; exit with the gate's code where asked to."""
    require_a_source(resolved)
    require_on_hand(resolved.config)
    from rich.console import Console

    from halo_forge.cli.console import Reporter

    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    for notice in resolved.notices:
        reporter("note", {"text": notice})
    with importing():
        from halo_forge import pipeline

    try:
        if how.dry_run:
            num_processes = how.launch.num_processes if how.launch else 1
            plan = pipeline.plan(resolved, num_processes=num_processes, notify=reporter)
            reporter.close()
            print_json(plan) if how.as_json else print(plan.words())
            return
        result = pipeline.run(
            resolved, until=until, fresh=how.fresh, resume_from=how.resume, launch=how.launch, notify=reporter
        )
    finally:
        reporter.close()
    if how.as_json:
        print_json(dataclasses.asdict(result))
    else:
        print(closing_words(result), file=sys.stdout)
    if how.gate_exit and result.decision is not None:
        raise typer.Exit(int(VERDICT_EXIT[result.decision.verdict]))


def require_a_source(resolved: ResolvedConfig) -> None:
    if not resolved.config.data.names_rows:
        raise UsageError(
            "no rows to train on",
            expected="data.train_file, data.dataset or data.sources in the configuration, or --data FILE, or "
            "--dataset NAME",
            fix="halo-forge sft datasets lists data sets by name",
        )


def closing_words(result: Any) -> str:
    lines = []
    if result.decision is not None:
        lines.append(f"verdict: {result.decision.verdict}")
    if result.release is not None:
        lines.append(f"released: {result.release.name} v{result.release.version} in {result.release.path}")
    if result.trained is not None:
        lines.append(f"model: {result.directory / result.trained.final_model}")
    if result.page is not None:
        lines.append(f"report: {result.page}")
    if result.release is None and result.decision is not None and result.decision.verdict == "PASS":
        lines.append(f"next: halo-forge publish {result.directory}")
    return "\n".join(lines)
