"""`halo-forge inspect RUN`: failed validation answers, gathered, named, shown, and as a template of rows to write."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import Measurement
from halo_forge.evaluate import METRICS
from halo_forge.evaluate.compare import compare_items
from halo_forge.evaluate.metrics import Answer
from halo_forge.evaluate.statistics import Resampling
from halo_forge.failures.clusters import Gathered, cluster_name, gather_failures, shared_labels, shared_words
from halo_forge.failures.kinds import Deciding, deciding_metric, failure_kind
from halo_forge.failures.page import write_page
from halo_forge.failures.records import FailedAnswer, FailureCluster, Inspection
from halo_forge.failures.template import num_rows_to_write, template_lines
from halo_forge.failures.validation import Answered, answer_validation, validation_rows
from halo_forge.models.forward import keep_going
from halo_forge.runs import Notify, RunDirectory, provenance, sha256_json, silent, write_artifact, write_atomic
from halo_forge.sampling.run import RunFacts

DIRECTORY = "inspect"
RECORD, ANSWERS, TEMPLATE, PAGE, CACHE = (
    "failures.json",
    "answers.jsonl",
    "rows.template.jsonl",
    "failures.html",
    "cache",
)
DEFAULT_CLUSTERS = 8
NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """An inspection with what it was made from. shown [N]: every item of `answered`, in order."""

    record: Inspection
    answered: Answered
    deciding: Deciding
    shown: Sequence[FailedAnswer]


def inspect_run(
    path: Path,
    output: Path | None = None,
    *,
    max_clusters: int = DEFAULT_CLUSTERS,
    metric: str | None = None,
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> Inspected:
    """Answer the validation rows with the run's model where that is not done yet, and write what is wrong into
    `output` (RUN/inspect): failures.json, answers.jsonl, failures.html, rows.template.jsonl.

    metric  by which an answer is right or wrong; default: see `kinds.deciding_metric`
    The holdout is not read but to refuse it. Raises DataError, UsageError, OutOfMemory; Interrupted through `check`.
    """
    start = time.perf_counter()
    run = RunFacts.read(path)
    place = output if output is not None else path / DIRECTORY
    validation_rows(run)  # refuse before anything is made
    with RunDirectory.open(place) as directory:
        answered = answer_validation(run, directory.file(CACHE), notify, check)
        deciding = deciding_metric(answered.items, answered.scored, metric)
        shown = [_shown(answered, deciding, place) for place in range(len(answered.items))]
        failed = [at for at in range(len(shown)) if deciding.right[at] == 0]
        gathered = gather_failures(
            [shown[at].how for at in failed], [answered.prompts[at] for at in failed], answered.prompts, max_clusters
        )
        gathered = [Gathered(one.kind, tuple(failed[at] for at in one.members)) for one in gathered]
        clusters = _clusters(gathered, answered, deciding, shown)
        record = _record(run, directory.path, answered, deciding, shown, clusters)
        _forget_other_answers(directory.file(CACHE), answered.measured.cache)
        write_atomic(directory.file(ANSWERS), _answer_lines(shown, deciding, clusters, gathered))
        write_atomic(directory.file(TEMPLATE), template_lines(clusters))
        record = record.model_copy(update={"time_s": time.perf_counter() - start})
        write_page(directory.file(PAGE), record)
        write_artifact(directory.file(RECORD), record)
    return Inspected(record=record, answered=answered, deciding=deciding, shown=shown)


def plan_inspection(path: Path, output: Path | None = None) -> dict[str, Any]:
    """What `inspect_run` would do; nothing is asked or written. Raises what it would raise before that."""
    run = RunFacts.read(path)
    rows = validation_rows(run)
    place = output if output is not None else path / DIRECTORY
    num = sum(row.messages[0].role != "document" for row in rows)
    limit = run.config.evaluation.max_prompts
    return {
        "run": str(path),
        "model": str(run.final_model),
        "num_rows": len(rows),
        "num_prompts": min(num, limit) if limit is not None else num,
        "max_new_tokens": run.config.evaluation.max_new_tokens,
        "cache": str(place / CACHE),
        "writes": [str(place / name) for name in (RECORD, ANSWERS, PAGE, TEMPLATE)],
    }


def _shown(answered: Answered, deciding: Deciding, at: int) -> FailedAnswer:
    """One item as it is shown; `how` is empty where it is right or was not judged."""
    item, answer = answered.items[at], answered.measured.answers[at] or Answer("", 0, False)
    how = failure_kind(item, answer, deciding.metric) if deciding.right[at] == 0 else ""
    return FailedAnswer(
        id=item.id, source=f"{item.source}:{item.line}", prompt=answered.prompts[at], expected=item.reference,
        answered=answer.text, stopped=answer.stopped, how=how,
    )  # fmt: skip


def _clusters(
    gathered: Sequence[Gathered], answered: Answered, deciding: Deciding, shown: Sequence[FailedAnswer]
) -> tuple[FailureCluster, ...]:
    num_failed = sum(len(one.members) for one in gathered)
    to_write = num_rows_to_write([len(one.members) for one in gathered])
    labels = [item.labels for item in answered.items]
    clusters = []
    for number, (one, num_rows) in enumerate(zip(gathered, to_write, strict=True), start=1):
        words = shared_words([answered.prompts[at] for at in one.members], answered.prompts)
        own_labels = shared_labels([labels[at] for at in one.members], labels)
        systems = Counter(answered.systems[at] for at in one.members)
        clusters.append(
            FailureCluster(
                id=f"c{number}", name=cluster_name(one.kind, own_labels, words), kind=one.kind, num=len(one.members),
                share=len(one.members) / num_failed, words=words, labels=own_labels,
                also_failed=_also_failed(answered, deciding, one.members),
                examples=tuple(shown[at] for at in one.members[:NUM_EXAMPLES]),
                items=tuple(shown[at].id for at in one.members), num_rows_to_write=num_rows,
                system=systems.most_common(1)[0][0],
            )
        )  # fmt: skip
    return tuple(clusters)


def _also_failed(answered: Answered, deciding: Deciding, members: Sequence[int]) -> dict[str, int]:
    """How many of these answers fail each other yes/no metric that is better when higher."""
    scored = answered.scored
    failed = {}
    for name, scores in scored.tuned.items():
        direction = METRICS[name].direction if name in METRICS else scored.own[name]
        num = int((scores[list(members)] == 0).sum())
        if name != deciding.metric and direction == "higher" and scored.kind(name) == "rate" and num:
            failed[name] = num
    return failed


def _record(
    run: RunFacts, place: Path, answered: Answered, deciding: Deciding, shown: Sequence[FailedAnswer],
    clusters: tuple[FailureCluster, ...],
) -> Inspection:  # fmt: skip
    assert run.trained is not None
    config, right = run.config, deciding.right
    validation = run.prepared.splits["validation"].sha256
    num_judged, num_right = int(np.isfinite(right).sum()), int((right == 1).sum())
    weights = run.trained.weights_sha256
    return Inspection(
        provenance=provenance(sha256_json(config.to_dict()), {"validation": validation, "weights": weights}),
        run=str(run.directory.path), directory=str(place), weights_sha256=weights, validation_sha256=validation,
        metric=deciding.metric, why_metric=deciding.why, right_from=deciding.right_from,
        measurement=measured_rate(run, answered, deciding),
        num_rows=len(right), num_judged=num_judged, num_not_judged=len(right) - num_judged, num_right=num_right,
        num_failed=num_judged - num_right, kinds=dict(Counter(one.how for one in shown if one.how).most_common()),
        clusters=clusters, num_template_rows=sum(cluster.num_rows_to_write for cluster in clusters),
        answers=ANSWERS, template=TEMPLATE, page=PAGE, notes=answered.notes,
    )  # fmt: skip


def measured_rate(run: RunFacts, answered: Answered, deciding: Deciding) -> Measurement:
    """The share of right validation answers, with its interval. It is of rows that somebody looks at and writes
    against: the holdout tells what that was worth."""
    config = run.config
    resampling = Resampling(config.evaluation.confidence, config.evaluation.bootstrap_samples, config.training.seed)
    right = deciding.right
    (found,) = compare_items(
        f"right by {deciding.metric}", "higher", "rate", right, right, {}, resampling,
        is_subsampled=answered.is_subsampled,
    )  # fmt: skip
    return found.tuned


def _answer_lines(
    shown: Sequence[FailedAnswer], deciding: Deciding, clusters: Sequence[FailureCluster], gathered: Sequence[Gathered]
) -> str:
    cluster_of = {at: cluster.id for cluster, one in zip(clusters, gathered, strict=True) for at in one.members}
    lines = []
    for at, one in enumerate(shown):
        if np.isnan(deciding.right[at]):
            continue
        line = one.model_dump() | {
            "score": float(deciding.scores[at]), "right": bool(deciding.right[at]), "cluster": cluster_of.get(at)
        }  # fmt: skip
        lines.append(json.dumps(line, ensure_ascii=True) + "\n")
    return "".join(lines)


def _forget_other_answers(directory: Path, used: Path) -> None:
    for path in directory.glob("*.jsonl"):
        if path != used:
            path.unlink()
