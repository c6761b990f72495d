"""Base and tuned on the same frozen rows: likelihoods, answers, scores, and what the difference is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jsonschema.protocols import Validator
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import EvalReport, PreparedData, TrainedModel
from halo_forge.config.schema import Config
from halo_forge.errors import OutOfMemory
from halo_forge.evaluate.baseline import baseline_metrics
from halo_forge.evaluate.compare import Scored, compare_metrics, not_compared, score_items
from halo_forge.evaluate.items import Item, conversations_to_items, read_holdout
from halo_forge.evaluate.json_answers import load_schema
from halo_forge.evaluate.measure import Measured, Measuring, measure_model
from halo_forge.evaluate.retention import (
    base_predictions,
    general_examples,
    general_texts_sha256,
    measure_retention,
)
from halo_forge.evaluate.scorers import METRICS, Answer
from halo_forge.evaluate.statistics import Resampling
from halo_forge.evaluate.suites.stage import compare_suites, split_measured, suite_questions, write_suite_answers
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

REPORT, ANSWERS, CACHE = "eval/report.json", "eval/answers.jsonl", "eval/cache"
ALWAYS_MEASURED = ("perplexity", "exact_match", "token_f1", "stop_rate", "answer_length")


class ModelPair(Protocol):
    """The two models, one at a time, in eval mode on their device. Both context managers may be entered again."""

    def base(self) -> AbstractContextManager[torch.nn.Module]: ...

    def tuned(self) -> AbstractContextManager[torch.nn.Module]: ...


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
    """Measure base and tuned on the run's holdout and on evaluation.suites; write eval/report.json, eval/answers.jsonl
    (the answered items), eval/suites/NAME.jsonl and baseline_metrics.json.

    An interrupted evaluation goes on where it stopped, and one that is repeated computes nothing anew: answers and
    likelihoods are kept in eval/cache. An empty holdout gives a report in which only suites are measured.
    check   raises Interrupted when the process should stop; asked before every batch and every decoding step
    Raises DataError for a changed holdout, UsageError for a bad schema file, OutOfMemory.
    """
    start = time.perf_counter()
    validator, suites = check_evaluation(config), load_suites(config.evaluation.suites)
    conversations = read_holdout(run, prepared)
    if not conversations and not suites:
        notify("note", {"text": "the holdout is empty: nothing is measured"})
        report = _report(config, prepared, trained, num_items=0, num_scored=0)
        report = report.model_copy(update={"comparisons": _nothing_compared(config)})
        return _write(config, run, trained, report, "", start)
    items, notes = conversations_to_items(conversations, config, prepared, tokenizer)
    questions = suite_questions(suites, tokenizer, prepared.max_seq_length)
    everything = [*items, *questions.questions]
    for note in (*notes, *questions.notes):
        notify("note", {"text": note})
    how = Measuring(
        settings=config.evaluation,
        precision=trained.precision,
        tokenizer=tokenizer,
        cache_directory=run.file(CACHE),
        notify=notify,
        check=check,
    )
    texts = general_examples(tokenizer, prepared.max_seq_length)
    with memory_told_in_words():
        with models.base() as model:
            base = measure_model(model, "base", everything, how)
            said = base_predictions(model, texts, base.cache, how) if texts else None
        with models.tuned() as model:
            tuned = measure_model(model, "tuned", everything, how)
            general = measure_retention(model, texts, said, tuned.cache, how) if said else None
    (base, base_said), (tuned, tuned_said) = (split_measured(measured, len(items)) for measured in (base, tuned))
    scored = score_items(items, base, tuned, validator)
    num_scored = sum(item.prompt is not None for item in items)
    report = _report(config, prepared, trained, num_items=len(items), num_scored=num_scored)
    resampling = Resampling(config.evaluation.confidence, config.evaluation.bootstrap_samples, config.training.seed)
    comparisons = compare_metrics(scored, base, tuned, general, resampling, wanted=_wanted_metrics(config))
    of_suites = compare_suites(questions, base_said, tuned_said, resampling, _wanted_metrics(config))
    write_suite_answers(run, of_suites)
    told = {"comparisons": (*comparisons, *of_suites.comparisons), "suites": of_suites.reports}
    report = report.model_copy(update={**told, "decoding": {**report.decoding, "dtype": tuned.dtype}})
    report = _write(config, run, trained, report, _answer_lines(items, base, tuned, scored), start)
    _forget_other_caches(run, {base.cache, tuned.cache})
    return report


def check_evaluation(config: Config) -> Validator | None:
    """Refuse a schema file or a suite that cannot be used, with an error that names it; for the start of a run, before
    anything is trained. Returns the validator, or None without a schema."""
    load_suites(config.evaluation.suites)
    return load_schema(config.evaluation.json_schema) if config.evaluation.json_schema else None


def _wanted_metrics(config: Config) -> frozenset[str]:
    return frozenset(rule.metric for rule in config.gate.rules)


def _nothing_compared(config: Config) -> Any:
    names = [name for name in METRICS if name in ALWAYS_MEASURED or name in _wanted_metrics(config)]
    return tuple(not_compared(name, "not_measured", "the holdout is empty") for name in names)


def _report(
    config: Config, prepared: PreparedData, trained: TrainedModel, *, num_items: int, num_scored: int
) -> EvalReport:
    """The report without its numbers."""
    holdout = prepared.splits.get("holdout")
    holdout_sha256 = holdout.sha256 if holdout is not None else ""
    inputs = {"holdout": holdout_sha256, "weights": trained.weights_sha256, "general_texts": general_texts_sha256()}
    if config.evaluation.json_schema:
        inputs["json_schema"] = sha256_file(Path(config.evaluation.json_schema))
    return EvalReport(
        provenance=provenance(sha256_json(config.to_dict()), inputs),
        num_items=num_items,
        num_scored=num_scored,
        confidence=config.evaluation.confidence,
        decoding={
            "strategy": "greedy",
            "max_new_tokens": config.evaluation.max_new_tokens,
            "batch_size": config.evaluation.batch_size,
        },
        comparisons=(),
        answers=ANSWERS,
        weights_sha256=trained.weights_sha256,
        holdout_sha256=holdout_sha256,
        time_s=0.0,
    )


def _write(
    config: Config, run: RunDirectory, trained: TrainedModel, report: EvalReport, answers: str, start: float
) -> EvalReport:
    """Answers first, the report last: where there is a report, all that it speaks of is there."""
    report = report.model_copy(update={"time_s": time.perf_counter() - start})
    write_atomic(run.file(ANSWERS), answers)
    write_json(run.file("baseline_metrics.json"), baseline_metrics(config, trained, report))
    write_artifact(run.file(REPORT), report)
    return report


def _answer_lines(items: Sequence[Item], base: Measured, tuned: Measured, scored: Scored) -> str:
    lines = []
    for index, item in enumerate(items):
        base_answer, tuned_answer = base.answers[index], tuned.answers[index]
        if base_answer is None or tuned_answer is None:
            continue
        line = {
            "id": item.id,
            "prompt": item.prompt_text,
            "reference": item.reference,
            "base": _answer_record(base_answer, _item_scores(index, base, scored.base)),
            "tuned": _answer_record(tuned_answer, _item_scores(index, tuned, scored.tuned)),
        }
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


def _forget_other_caches(run: RunDirectory, used: set[Path]) -> None:
    for path in run.file(CACHE).iterdir():
        if path.with_suffix(".jsonl") not in used:
            path.unlink()


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
