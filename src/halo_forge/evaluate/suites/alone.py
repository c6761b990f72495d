"""Suites on one model, without a run and without another model to compare it with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from halo_forge.artifacts import Comparison, Measurement, SuiteRun
from halo_forge.config.schema import Config
from halo_forge.errors import UsageError
from halo_forge.evaluate.answer_cache import shared_directory
from halo_forge.evaluate.measure import Measured, Measuring, measure_model
from halo_forge.evaluate.stage import CACHE, memory_told_in_words
from halo_forge.evaluate.statistics import Resampling
from halo_forge.evaluate.suites.stage import (
    Questions,
    SuiteResults,
    compare_suites,
    suite_questions,
    write_suite_answers,
)
from halo_forge.models.compute import recall_compute
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.models.pair import ModelPair
from halo_forge.runs import Notify, RunDirectory, StopSignal, provenance, sha256_json, silent, write_artifact
from halo_forge.suites.suite import Suite

RECORD = "suites.json"


def run_suites(config: Config, suites: Sequence[Suite], notify: Notify = silent) -> SuiteRun:
    """Ask config.model the suites' items; write eval/suites/NAME.jsonl and suites.json into output.dir.

    A run that was stopped goes on where it was: answers are kept in eval/cache. The model is held against itself, so
    that its numbers and intervals are those that it would have in an evaluation; the difference, which is nothing, is
    not recorded. Raises UsageError for the directory of a training run, Interrupted, and what loading a model raises.
    """
    start = time.perf_counter()
    with StopSignal() as stop, RunDirectory.open(Path(config.output.dir)) as run:
        if run.file("run.json").exists():
            raise UsageError(
                "this is the directory of a run", where=str(run.path),
                fix=f"another --output, or halo-forge evaluate {run.path} --set evaluation.suites=[...]",
            )  # fmt: skip
        questions, said = _ask(config, suites, run, notify, stop.check)
        results = compare_suites(questions, said, said, _resampling(config))
        write_suite_answers(run, results)
        record = _record(config, results, said, time.perf_counter() - start)
        write_artifact(run.file(RECORD), record)
        return record


def _ask(
    config: Config, suites: Sequence[Suite], run: RunDirectory, notify: Notify, check: Callable[[], None]
) -> tuple[Questions, Measured]:
    tokenizer = tokenizer_of(config.model, notify)
    questions = suite_questions(suites, tokenizer, config.data.max_seq_length)
    for note in questions.notes:
        notify("note", {"text": note})
    compute = recall_compute(run, config.training.bf16, notify)
    how = Measuring(
        settings=config.evaluation, precision=compute.precision, tokenizer=tokenizer,
        cache_directory=run.file(CACHE), shared_cache=shared_directory(otherwise=run.file(CACHE)),
        notify=notify, check=check,
    )  # fmt: skip
    pair = ModelPair(config.model.name, config.model.revision, Path(), "full", compute, notify)
    with memory_told_in_words(), pair.base() as model:
        return questions, measure_model(model, "base", questions.questions, how)


def _resampling(config: Config) -> Resampling:
    return Resampling(config.evaluation.confidence, config.evaluation.bootstrap_samples, config.training.seed)


def _record(config: Config, results: SuiteResults, said: Measured, time_s: float) -> SuiteRun:
    settings = config.evaluation
    of_suites = [_measured(row, f"suite={report.name}") for report in results.reports for row in report.comparisons
                 if row.tuned.slice == "all"]  # fmt: skip
    return SuiteRun(
        provenance=provenance(
            sha256_json(config.to_dict()), {f"suite {report.name}": report.sha256 for report in results.reports}
        ),
        model_name=config.model.name,
        decoding={
            "strategy": "greedy",
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": settings.batch_size,
            "dtype": said.dtype,
        },
        confidence=settings.confidence,
        suites=tuple(report.model_copy(update={"comparisons": ()}) for report in results.reports),
        measurements=(*(row.tuned for row in results.comparisons), *of_suites),
        time_s=time_s,
    )


def _measured(row: Comparison, slice_name: str) -> Measurement:
    return row.tuned.model_copy(update={"slice": slice_name})
