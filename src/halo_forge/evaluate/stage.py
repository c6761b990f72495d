"""Base and tuned on the same frozen rows: likelihoods, answers, scores, and what the difference is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import Comparison, EvalReport, PreparedData, TrainedModel
from halo_forge.config.schema import Config
from halo_forge.domains.media import Media, open_media
from halo_forge.errors import OutOfMemory
from halo_forge.evaluate.answer_cache import forget_oldest, shared_directory
from halo_forge.evaluate.baseline import baseline_metrics
from halo_forge.evaluate.bench.engine import require_lm_eval
from halo_forge.evaluate.bench.records import BENCH, kept_comparisons
from halo_forge.evaluate.bench.run import ModelPair, benchmark_pair, benchmark_tree
from halo_forge.evaluate.call_scores import turn_records
from halo_forge.evaluate.compare import Comparing, compare_metrics, not_compared
from halo_forge.evaluate.flips import flip_lines
from halo_forge.evaluate.item_scores import SCORES, score_lines
from halo_forge.evaluate.items import Asked, Item, conversations_to_items, read_holdout
from halo_forge.evaluate.measure import Asking, Measured, Measuring, measure_model
from halo_forge.evaluate.metrics import METRICS, Answer, Given, OwnScorer, load_scorers
from halo_forge.evaluate.metrics.formats import compile_pattern
from halo_forge.evaluate.metrics.transcripts import Normalising
from halo_forge.evaluate.retention import (
    Retention,
    base_predictions,
    general_examples,
    general_texts_sha256,
    measure_retention,
)
from halo_forge.evaluate.score import Scored, score_items
from halo_forge.evaluate.self_consistency import sample_answers
from halo_forge.evaluate.slices import slice_items
from halo_forge.evaluate.statistics import Resampling
from halo_forge.evaluate.suites.stage import compare_suites, split_measured, suite_questions, write_suite_answers
from halo_forge.metrics import BENCH_PREFIX
from halo_forge.models.forward import keep_going
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    sha256_file,
    sha256_json,
    silent,
    write_artifact,
    write_atomic,
    write_json,
)
from halo_forge.suites.suite import load_suites
from halo_forge.texts.final_answers import final_number
from halo_forge.texts.json_schema import load_schema

REPORT, ANSWERS, FLIPS, CACHE = "eval/report.json", "eval/answers.jsonl", "eval/flips.jsonl", "eval/cache"
ALWAYS_MEASURED = ("perplexity", "exact_match", "token_f1", "stop_rate", "answer_length")


def evaluate(
    config: Config,
    run: RunDirectory,
    prepared: PreparedData,
    trained: TrainedModel,
    models: ModelPair,
    tokenizer: PreTrainedTokenizerBase,
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> EvalReport:
    """Measure base and tuned on the run's holdout, on evaluation.suites and evaluation.benchmarks. Writes
    eval/report.json last; before it answers, flips, scores, suites/ and bench/ in eval/, and baseline_metrics.json.

    An interrupted evaluation goes on where it stopped, and one that is repeated computes nothing anew: what the tuned
    model says is kept in eval/cache, what the base says in the cache that all runs share. The holdout may be empty.
    check   raises Interrupted when the process should stop; asked before every batch and every decoding step
    Raises DataError for a changed holdout, UsageError for a bad schema, expression or scorer, OutOfMemory.
    """
    start = time.perf_counter()
    given, own = check_evaluation(config)
    conversations, suites = read_holdout(run, prepared), load_suites(config.evaluation.suites)
    report = _report(config, prepared, trained, own)
    if config.evaluation.benchmarks:
        memory_told_in_words()(benchmark_pair)(config, run, trained, models, tokenizer, notify=notify, check=check)
    if not conversations and not suites:
        notify("note", {"text": "the holdout is empty: nothing is measured"})
        report = report.model_copy(update={"comparisons": _nothing_compared(config, own)})
        run.file(SCORES).unlink(missing_ok=True)
        return _write(config, run, trained, report, ("", ""), start)
    how = _measuring(config, run, trained, tokenizer, notify, check)
    asked = conversations_to_items(conversations, config, prepared, tokenizer, how.media)
    questions = suite_questions(suites, tokenizer, prepared.max_seq_length)
    items = asked.items
    for note in (*asked.notes, *questions.notes):
        notify("note", {"text": note})
    base, tuned, general = _measure_both(models, asked, questions.questions, prepared, how)
    wanted, earlier = _wanted_metrics(config), (base.earlier.answers, tuned.earlier.answers)
    scored = score_items(items, base.items, tuned.items, _as_heard(given, config, how.media), own, earlier)
    sliced = slice_items(items, config.evaluation.slices)
    resampling = Resampling(config.evaluation.confidence, config.evaluation.bootstrap_samples, config.training.seed)
    comparing = Comparing(resampling, sliced.masks, asked.is_subsampled)
    of_holdout = compare_metrics(scored, base.items, tuned.items, general, comparing, wanted=wanted)
    of_suites = compare_suites(questions, base.suites, tuned.suites, resampling, wanted)
    report = report.model_copy(
        update={
            "num_items": len(items),
            "num_scored": sum(item.prompt is not None for item in items),
            "comparisons": (*of_holdout, *of_suites.comparisons),
            "suites": of_suites.reports,
            "decoding": {**report.decoding, "dtype": tuned.items.dtype},
            "notes": (*asked.notes, *questions.notes, *sliced.notes, *scored.notes),
        }
    )
    write_suite_answers(run, of_suites)
    write_atomic(run.file(SCORES), score_lines(report, items, tuned.items, scored, sliced.masks, general, of_suites))
    answers = _answer_lines(items, base.items, tuned.items, scored, turn_records(asked.earlier, *earlier))
    flips = flip_lines(items, scored)
    report = _write(config, run, trained, report, (answers, flips), start)
    _forget_other_caches(how, {base.items.cache, tuned.items.cache})
    return report


def check_evaluation(config: Config) -> tuple[Given, tuple[OwnScorer, ...]]:
    """Refuse a schema, an expression, a scorer, a suite or benchmarks that cannot be used, with an error that names it;
    for the start of a run, before anything is trained. Returns what to score by."""
    settings, schema = config.evaluation, config.evaluation.json_schema
    load_suites(settings.suites)
    if settings.benchmarks:
        require_lm_eval()
        benchmark_tree()
    given = Given(
        validator=load_schema(schema, f"evaluation.json_schema: {schema}") if schema else None,
        pattern=compile_pattern(settings.regex) if settings.regex is not None else None,
    )
    return given, load_scorers(settings.scorers)


def _as_heard(given: Given, config: Config, media: Media | None) -> Given:
    """With how transcripts are normalised, where the model hears."""
    return replace(given, speech=normalising_of(config)) if media is not None and media.kind == "audio" else given


def normalising_of(config: Config) -> Normalising:
    """How transcripts are normalised: as English where that is what the model is to write."""
    told = (config.audio.language or "en").lower()
    return "english" if told in ("en", "english") or config.audio.task == "translate" else "basic"


def _measuring(
    config: Config,
    run: RunDirectory,
    trained: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    notify: Notify,
    check: Callable[[], None],
) -> Measuring:
    return Measuring(
        settings=config.evaluation,
        precision=trained.precision,
        tokenizer=tokenizer,
        cache_directory=run.file(CACHE),
        shared_cache=shared_directory(otherwise=run.file(CACHE)),
        notify=notify,
        check=check,
        media=open_media(config, tokenizer),
    )


@dataclass(frozen=True, slots=True)
class AllSaid:
    """What one model said: to the holdout's items, in the turns before their last, and to the suites' questions."""

    items: Measured
    earlier: Measured
    suites: Measured

    @staticmethod
    def of(measured: Measured, num_items: int, num_earlier: int) -> AllSaid:
        items, more = split_measured(measured, num_items)
        return AllSaid(items, *split_measured(more, num_earlier))


def _measure_both(
    models: ModelPair, asked: Asked, questions: Sequence[Asking], prepared: PreparedData, how: Measuring
) -> tuple[AllSaid, AllSaid, Retention | None]:
    items: list[Asking] = [*asked.items, *asked.earlier, *questions]
    reads_text = how.media is None or how.media.reads_text
    texts = general_examples(how.tokenizer, prepared.max_seq_length) if reads_text else []
    with memory_told_in_words():
        with models.base() as model:
            base = measure_model(model, "base", items, how)
            base = replace(base, samples=sample_answers(model, "base", items, base.cache, how))
            said = base_predictions(model, texts, base.cache, how) if texts else None
        with models.tuned() as model:
            tuned = measure_model(model, "tuned", items, how)
            tuned = replace(tuned, samples=sample_answers(model, "tuned", items, tuned.cache, how))
            general = measure_retention(model, texts, said, tuned.cache, how) if said else None
    counts = len(asked.items), len(asked.earlier)
    return AllSaid.of(base, *counts), AllSaid.of(tuned, *counts), general


def _wanted_metrics(config: Config) -> frozenset[str]:
    return frozenset(rule.metric for rule in config.gate.rules).union(config.gate.required_metrics)


def _nothing_compared(config: Config, own: Sequence[OwnScorer]) -> tuple[Comparison, ...]:
    names = [name for name in METRICS if name in ALWAYS_MEASURED or name in _wanted_metrics(config)]
    reason = "the holdout is empty"
    return (
        *(not_compared(name, "not_measured", reason) for name in names),
        *(not_compared(scorer.name, "not_measured", reason, direction=scorer.direction) for scorer in own),
    )


def _report(config: Config, prepared: PreparedData, trained: TrainedModel, own: Sequence[OwnScorer]) -> EvalReport:
    """The report without its numbers."""
    settings = config.evaluation
    holdout = prepared.splits.get("holdout")
    holdout_sha256 = holdout.sha256 if holdout is not None else ""
    inputs = {"holdout": holdout_sha256, "weights": trained.weights_sha256, "general_texts": general_texts_sha256()}
    if settings.json_schema:
        inputs["json_schema"] = sha256_file(Path(settings.json_schema))
    inputs |= {f"scorer {scorer.name}": sha256_file(scorer.path) for scorer in own}
    return EvalReport(
        provenance=provenance(sha256_json(config.to_dict()), inputs),
        num_items=0,
        num_scored=0,
        confidence=settings.confidence,
        decoding={
            "strategy": "greedy",
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": settings.batch_size,
        },
        comparisons=(),
        answers=ANSWERS,
        flips=FLIPS,
        weights_sha256=trained.weights_sha256,
        holdout_sha256=holdout_sha256,
        time_s=0.0,
    )


def _write(
    config: Config, run: RunDirectory, trained: TrainedModel, report: EvalReport, written: tuple[str, str], start: float
) -> EvalReport:
    """Answers and flips first, the report last: where there is a report, all that it speaks of is there."""
    report = with_benchmarks(report.model_copy(update={"time_s": time.perf_counter() - start}), run.file(BENCH))
    for name, lines in zip((ANSWERS, FLIPS), written, strict=True):
        write_atomic(run.file(name), lines)
    write_json(run.file("baseline_metrics.json"), baseline_metrics(config, trained, report))
    write_artifact(run.file(REPORT), report)
    return report


def with_benchmarks(report: EvalReport, directory: Path) -> EvalReport:
    """An evaluation with the benchmarks that were run on the same weights (`bench run`); earlier ones are replaced."""
    own = tuple(row for row in report.comparisons if not row.metric.startswith(BENCH_PREFIX))
    return report.model_copy(update={"comparisons": own + kept_comparisons(directory, report.weights_sha256)})


def _answer_lines(
    items: Sequence[Item], base: Measured, tuned: Measured, scored: Scored, turns: Mapping[int, dict[str, Any]]
) -> str:
    """`turns`: what was said in the turns before the last, by the place that the items' tasks name."""
    lines = []
    for index, item in enumerate(items):
        base_answer, tuned_answer = base.answers[index], tuned.answers[index]
        if base_answer is None or tuned_answer is None:
            continue
        line = {
            "id": item.id,
            "prompt": item.prompt_text,
            "reference": item.reference,
            "slices": dict(item.labels),
            "base": _answer_record(base_answer, _item_scores(index, base, scored.base)) | _sampled(index, base),
            "tuned": _answer_record(tuned_answer, _item_scores(index, tuned, scored.tuned)) | _sampled(index, tuned),
        }
        places = [turn.place for turn in item.task.turns if turn.place is not None] if item.task else []
        if places:
            line["earlier_turns"] = [turns[place] for place in places]
        if item.prompt is not None and item.prompt.media:
            line["media"] = [{"kind": m.kind, "path": m.path, "sha256": m.sha256} for m in item.prompt.media]
        lines.append(_json_line(line))
    return "".join(lines)


def _json_line(line: dict[str, Any]) -> str:
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in a reference: only the escaped form can carry it
        text = json.dumps(line, allow_nan=False)
    return text + "\n"


def _item_scores(index: int, measured: Measured, scores: dict[str, Any]) -> dict[str, float]:
    """Scores of one item; a metric that says nothing about it is left out."""
    found = {name: float(values[index]) for name, values in scores.items() if np.isfinite(values[index])}
    if measured.num_tokens[index]:
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(measured.nll_sums[index] / measured.num_tokens[index]))
        if np.isfinite(perplexity):
            found = {"perplexity": perplexity, **found}
    return found


def _answer_record(answer: Answer, scores: dict[str, float]) -> dict[str, Any]:
    return {"text": answer.text, "stopped": answer.stopped, "num_tokens": answer.num_tokens, "scores": scores}


def _sampled(index: int, measured: Measured) -> dict[str, Any]:
    """The final numbers of an item's samples, null for a sample without one."""
    texts = measured.samples[index] if measured.samples else ()
    return (
        {"samples": [None if said is None else str(said.value) for said in map(final_number, texts)]} if texts else {}
    )


def _forget_other_caches(how: Measuring, used: set[Path]) -> None:
    for path in how.cache_directory.iterdir():
        if path.with_suffix(".jsonl") not in used:
            path.unlink()
    if how.shared_cache != how.cache_directory:
        forget_oldest(how.shared_cache, used)


@contextmanager
def memory_told_in_words() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            "the memory is spent while evaluating",
            expected=str(error).splitlines()[0] if str(error) else None,
            fix="--set evaluation.batch_size=4, or a smaller evaluation.max_new_tokens; finished answers are kept",
        ) from error
