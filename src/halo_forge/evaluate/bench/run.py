"""Benchmarks of one model, or of a run's base and tuned one: items, outcomes, comparisons; resumable."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import TrainedModel
from halo_forge.config.schema import Config
from halo_forge.errors import HaloForgeError, UsageError
from halo_forge.evaluate.answer_cache import AnswerCache, cache_name
from halo_forge.evaluate.bench import engine
from halo_forge.evaluate.bench.code_tests import sandbox_tests
from halo_forge.evaluate.bench.compare import compare_outcomes, measure_outcome, score_lines
from halo_forge.evaluate.bench.outcome import ItemAnswer, Outcome, failed, outcome_of
from halo_forge.evaluate.bench.records import BENCH, REPORT, BenchReport, BenchRun
from halo_forge.evaluate.bench.tasks import Benchmark, benchmark_named
from halo_forge.evaluate.statistics import Resampling
from halo_forge.metrics import TREE_VARIABLE
from halo_forge.models.forward import keep_going, language_model
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    sha256_bytes,
    sha256_json,
    silent,
    write_artifact,
    write_atomic,
)

ITEMS, SCORES, CACHE = "items.jsonl", "scores.jsonl", "cache"
Opened = Callable[[], AbstractContextManager[torch.nn.Module]]


class ModelPair(Protocol):
    """The two models, one at a time, in eval mode on their device. Both context managers may be entered again."""

    def base(self) -> AbstractContextManager[torch.nn.Module]: ...

    def tuned(self) -> AbstractContextManager[torch.nn.Module]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """names  benchmarks, or tasks of lm-eval
    limit   at most this many items of each task (of each subject of a group); None: all
    tree    local rows, looked at before the Hub; chat_template: prompts as the model's template writes a user's turn
    """

    names: tuple[str, ...]
    limit: int | None = None
    tree: Path | None = None
    batch_size: int = 16
    chat_template: bool = False
    resampling: Resampling = field(default_factory=Resampling)


def benchmark_pair(
    config: Config,
    run: RunDirectory,
    trained: TrainedModel,
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    settings: BenchSettings | None = None,
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> BenchReport:
    """Base and tuned of a run, into its eval/bench. settings: those of `evaluation.benchmarks` where none are given."""
    of_config = config.evaluation
    settings = settings or BenchSettings(
        names=tuple(of_config.benchmarks), tree=benchmark_tree(), batch_size=of_config.batch_size
    )
    resampling = Resampling(of_config.confidence, of_config.bootstrap_samples, config.training.seed)
    return run_benchmarks(
        {"base": models.base, "tuned": models.tuned}, tokenizer, replace(settings, resampling=resampling),
        run.file(BENCH), model_name=str(run.file(trained.final_model)), weights_sha256=trained.weights_sha256,
        notify=notify, check=check,
    )  # fmt: skip


def benchmark_tree() -> Path | None:
    """Where $HALO_FORGE_BENCHMARKS says that the rows lie, or None for the Hub. UsageError where nothing is there."""
    named = os.environ.get(TREE_VARIABLE)
    if named and not Path(named).is_dir():
        where = f"{TREE_VARIABLE}={named}"
        raise UsageError("there is no such tree of benchmarks", where=where, fix="halo-forge bench mirror DIRECTORY")
    return Path(named) if named else None


def run_benchmarks(
    sides: Mapping[str, Opened],
    tokenizer: PreTrainedTokenizerBase,
    settings: BenchSettings,
    directory: Path,
    *,
    model_name: str,
    weights_sha256: str = "",
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> BenchReport:
    """Run every benchmark on each side ("tuned", and "base" where there is one) and write report.json, items.jsonl
    and scores.jsonl (bench/compare.py) into `directory`.

    Likelihoods and answers are kept in directory/cache as soon as they are known: the same command goes on after any
    kill. A benchmark that breaks is `failed` with its reason, and the others go on. Raises UsageError without lm-eval.
    """
    start = time.perf_counter()
    version = engine.require_lm_eval()
    benchmarks = [benchmark_named(name) for name in dict.fromkeys(settings.names)]
    outcomes: dict[str, dict[str, Outcome]] = {}
    notes: dict[str, None] = {}
    dtype = ""
    for side, opened in sides.items():
        with opened() as model, AnswerCache(_cache_path(model, directory, adapters=side == "tuned")) as cache:
            dtype = str(language_model(model).dtype).removeprefix("torch.")
            outcomes[side] = {
                benchmark.name: _run_one(benchmark, side, model, tokenizer, cache, settings, (notify, check, notes))
                for benchmark in benchmarks
            }
    lines = [line for benchmark in benchmarks for line in _item_lines(benchmark, outcomes)]
    items = "".join(lines)
    report = BenchReport(
        provenance=provenance(sha256_json(_settings_record(settings)), {ITEMS: sha256_bytes(items.encode())}),
        model=model_name, engine=f"lm-eval {version}", limit=settings.limit, chat_template=settings.chat_template,
        dtype=dtype,
        runs=tuple(_run_record(benchmark, outcomes["tuned"][benchmark.name]) for benchmark in benchmarks),
        measurements=tuple(_all(measure_outcome, benchmarks, outcomes, ("tuned",), settings)),
        comparisons=tuple(_all(compare_outcomes, benchmarks, outcomes, ("base", "tuned"), settings))
        if "base" in sides else (),
        items=ITEMS, weights_sha256=weights_sha256, notes=tuple(notes), time_s=time.perf_counter() - start,
    )  # fmt: skip
    write_atomic(directory / ITEMS, items)
    write_atomic(directory / SCORES, score_lines(benchmarks, outcomes["tuned"], weights_sha256))
    write_artifact(directory / REPORT, report)
    return report


def _run_one(
    benchmark: Benchmark,
    side: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    cache: AnswerCache,
    settings: BenchSettings,
    told: tuple[Notify, Callable[[], None], dict[str, None]],
) -> Outcome:
    from halo_forge.evaluate.bench.own_model import OwnModel

    notify, check, notes = told
    start = time.perf_counter()

    def progress(done: int, total: int) -> None:
        notify("eval.progress", {"which": f"{side} {benchmark.name}", "done": done, "total": total})

    own = OwnModel(model, tokenizer, cache, batch_size=settings.batch_size, progress=progress, check=check)
    try:
        with engine.quiet():
            loaded, differences = engine.load_tasks(benchmark.tasks, settings.tree)
            notes |= dict.fromkeys(differences)
            results = engine.run_tasks(loaded, own, limit=settings.limit, chat_template=settings.chat_template)
        outcome = outcome_of(results, *sandbox_tests())
    except (HaloForgeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a task of lm-eval, its rows or its rules raise
        outcome = failed(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        notify("note", {"text": f"{side} {benchmark.name} broke: {outcome.problems[None][1]}"})
    outcome.time_s = time.perf_counter() - start
    return outcome


def _cache_path(model: torch.nn.Module, directory: Path, *, adapters: bool) -> Path:
    dtype = str(language_model(model).dtype)
    return directory / CACHE / cache_name(model, {"benchmarks": 1, "dtype": dtype}, adapters=adapters)


def _settings_record(settings: BenchSettings) -> dict[str, Any]:
    return {
        "names": list(settings.names), "limit": settings.limit, "batch_size": settings.batch_size,
        "chat_template": settings.chat_template,
    }  # fmt: skip


def _all(
    function: Callable[..., Iterable[Any]],
    benchmarks: list[Benchmark],
    outcomes: Mapping[str, Mapping[str, Outcome]],
    sides: tuple[str, ...],
    settings: BenchSettings,
) -> Iterable[Any]:
    for benchmark in benchmarks:
        own = [outcomes[side][benchmark.name] for side in sides]
        is_subsampled = any(outcome.num_items < outcome.num_total for outcome in own)
        yield from function(benchmark, *own, settings.resampling, is_subsampled=is_subsampled)


def _run_record(benchmark: Benchmark, outcome: Outcome) -> BenchRun:
    return BenchRun(
        name=benchmark.name, tasks=outcome.versions, num_items=outcome.num_items, num_total=outcome.num_total,
        num_fewshot=outcome.num_fewshot, time_s=outcome.time_s,
    )  # fmt: skip


def _item_lines(benchmark: Benchmark, outcomes: Mapping[str, Mapping[str, Outcome]]) -> Iterable[str]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for side, own in outcomes.items():
        for item in own[benchmark.name].items:
            line = found.setdefault(
                (item.task, item.id),
                {"benchmark": benchmark.name, "task": item.task, "id": item.id, "prompt": item.prompt,
                 "target": item.target},
            )  # fmt: skip
            known = line.setdefault(side, {"answers": item.answers, "scores": {}})
            known["scores"] |= _plain_scores(item)
    for line in found.values():
        yield json.dumps(line, allow_nan=False) + "\n"


def _plain_scores(item: ItemAnswer) -> dict[str, float]:
    return {name: value for name, value in item.scores.items() if value == value}
