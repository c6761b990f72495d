"""Benchmarks of a model by name, or of a run: its base and its tuned model on the same items, beside its evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from halo_forge.artifacts import EvalReport, TrainedModel
from halo_forge.config import load_config
from halo_forge.errors import UsageError, storage_in_words
from halo_forge.evaluate.bench.records import BENCH, BenchReport
from halo_forge.evaluate.bench.run import BenchSettings, benchmark_pair, run_benchmarks
from halo_forge.evaluate.stage import REPORT, with_benchmarks
from halo_forge.models.compute import recall_compute
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.models.precision import choose_device
from halo_forge.pipeline import model_pair
from halo_forge.report import write_report
from halo_forge.runs import Notify, RunDirectory, StopSignal, read_artifact, silent, write_artifact


def benchmark_model(
    name: str,
    directory: Path,
    settings: BenchSettings,
    *,
    bf16: bool = False,
    tokenizer_from: str | None = None,
    notify: Notify = silent,
) -> BenchReport:
    """A model by itself; what it does is kept in `directory`. Raises HaloForgeError."""
    tokenizer = load_tokenizer(tokenizer_from or name)

    @contextmanager
    def opened() -> Iterator[torch.nn.Module]:
        dtype = torch.bfloat16 if bf16 else torch.float32
        yield load_model(name, dtype=dtype, device=choose_device(), attn_implementation="sdpa", notify=notify).eval()

    with StopSignal() as stop, storage_in_words(directory), RunDirectory.open(directory) as held:
        return run_benchmarks(
            {"tuned": opened}, tokenizer, settings, held.path, model_name=name, notify=notify, check=stop.check
        )


def benchmark_run(run: Path, settings: BenchSettings, notify: Notify = silent) -> BenchReport:
    """Base and tuned of a trained run, in the precision it was trained in. The comparisons join eval/report.json, where
    gate rules read them as `bench.NAME`. Raises UsageError where nothing is trained yet."""
    if not (run / "trained.json").is_file():
        raise UsageError("this run has no trained model", where=str(run), fix="halo-forge run CONFIG trains one")
    config = load_config(run / "config.resolved.yaml", overrides=[f"output.dir={run}"]).config
    with StopSignal() as stop, storage_in_words(run), RunDirectory.open(run) as directory:
        trained = read_artifact(directory.file("trained.json"), TrainedModel)
        compute = recall_compute(directory, config.training.bf16, notify)
        pair = model_pair(config, directory, trained, compute, notify)
        report = benchmark_pair(
            config, directory, trained, pair, tokenizer_of(config.model), settings, notify, stop.check
        )
        pair.close()
        if directory.file(REPORT).is_file():
            kept = read_artifact(directory.file(REPORT), EvalReport)
            write_artifact(directory.file(REPORT), with_benchmarks(kept, directory.file(BENCH)))
        write_report(directory)
    return report
