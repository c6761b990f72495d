"""The package for the next stage: a model, its baseline, and judged answers to prompts that it was not trained on.

    DIRECTORY/
    ├── model/                     final_model of the run: adapter or whole model, tokenizer, generation settings
    ├── baseline_metrics.json      what it can do, for the next stage to hold regressions against (seed 002)
    ├── candidates.jsonl           every sample: prompt, answer, score, verdicts
    ├── preferences.jsonl          {"prompt", "chosen", "rejected"} as messages: what TRL's DPOTrainer reads
    ├── rejection_sampling.jsonl   the samples that passed, as rows for `sft train --data` (seed 000's RAFT)
    └── manifest.json              hashes of all of it, and what it was made from

Written aside and renamed when it is whole; `.NAME.samples.jsonl` beside it holds the samples while they are drawn.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from halo_forge.chat.records import Conversation
from halo_forge.data.convert_file import conversation_row
from halo_forge.errors import DataError, UsageError
from halo_forge.models.forward import keep_going
from halo_forge.models.save import weights_sha256
from halo_forge.runs import Notify, fsync_directory, provenance, sha256_file, sha256_json, silent, write_json
from halo_forge.sampling.run import Request, RunFacts, draw, runs_code
from halo_forge.sampling.verdicts import (
    Candidate,
    JudgedPrompt,
    candidate_record,
    count_verdicts,
    json_line,
    judge_samples,
    kept_candidates,
    training_row,
)
from halo_forge.sandbox import sandbox_status

SCHEMA_VERSION = 1
BASELINE = "baseline_metrics.json"


def hand_off(request: Request, notify: Notify = silent, check: Callable[[], None] = keep_going) -> dict[str, Any]:
    """Make the package of `request.run` at `request.output`; its manifest, with `output` and `time_s`.

    Raises UsageError where the run is not trained, or has no baseline, or the directory exists; DataError where the
    weights are not those that the run recorded, or no prompt is left that is neither trained on nor held out.
    """
    began = time.perf_counter()
    assert request.run is not None
    target = request.output
    if target.exists():
        raise UsageError("this directory exists", where=str(target), fix="give another --output")
    run = RunFacts.read(request.run)
    request = _with_verifiers(request, run)
    _check_run(run)
    samples_file = target.with_name(f".{target.name}.samples.jsonl")
    asking, sampled, num_known, verifiers, model = draw(
        request, run, samples_file, notify, check, train=run.keys("train")
    )
    judged = judge_samples(sampled, verifiers)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(run.final_model, staging / "model")
        shutil.copyfile(run.directory.file(BASELINE), staging / BASELINE)
        files = {
            "candidates.jsonl": _write(staging / "candidates.jsonl", map(_candidates_row, judged)),
            "preferences.jsonl": _write(staging / "preferences.jsonl", filter(None, map(preference, judged))),
            "rejection_sampling.jsonl": _write(staging / "rejection_sampling.jsonl", _passed_rows(judged)),
        }
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "made_by": _provenance(run),
            "model": model,
            "base_model": run.config.model.name,
            "drawing": asdict(request.drawing),
            "prompts": asking.counts(),
            **count_verdicts(judged, list(verifiers)),
            "pairs": _pairs(judged),
            "samples_reused": num_known,
            "sandbox": asdict(sandbox_status()) if runs_code(request.verifiers) else None,
            "files": _hashes(staging, files),
        }
        write_json(staging / "manifest.json", manifest)
        fsync_directory(staging)
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    fsync_directory(target.parent)
    samples_file.unlink(missing_ok=True)
    return {**manifest, "output": str(target), "time_s": time.perf_counter() - began}


def _with_verifiers(request: Request, run: RunFacts) -> Request:
    """Those that were named; else the run's own schema and, without one, equality with the row's answer."""
    if request.verifiers:
        return request
    schema = run.config.evaluation.json_schema
    return replace(request, verifiers=(f"json-schema:{schema}", "exact") if schema else ("exact",))


def _check_run(run: RunFacts) -> None:
    final_model = run.final_model
    if not run.directory.file(BASELINE).is_file():
        raise UsageError(
            "this run has no baseline: it was not evaluated", where=str(run.directory.file(BASELINE)),
            fix=f"halo-forge evaluate {run.directory.path}",
        )  # fmt: skip
    assert run.trained is not None
    found = weights_sha256(final_model)
    if found != run.trained.weights_sha256:
        raise DataError(
            f"these are not the weights that the run recorded: {found}", where=str(final_model),
            expected=run.trained.weights_sha256, fix="restore the files, or train again",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ rows


def preference(prompt: JudgedPrompt) -> dict[str, Any] | None:
    """TRL's conversational preference row: an answer that passed against one that failed; None without both.

    chosen is the first that passed, rejected the lowest score (the first of equals) that was not cut off, or of all.
    """
    chosen = next(iter(kept_candidates(prompt, "best")), None)
    failed = [candidate for candidate in prompt.candidates if candidate.passed is False]
    whole = [candidate for candidate in failed if candidate.answer.stopped] or failed
    rejected = min(whole, key=lambda candidate: (candidate.score or 0.0, candidate.number), default=None)
    if chosen is None or rejected is None or rejected.answer.text == chosen.answer.text:
        return None
    row = conversation_row(_question_only(prompt))
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return {
        "prompt": row["messages"], "chosen": [_said(chosen)], "rejected": [_said(rejected)], **tools,
        "score_chosen": chosen.score, "score_rejected": rejected.score,
    }  # fmt: skip


def _said(candidate: Candidate) -> dict[str, str]:
    return {"role": "assistant", "content": candidate.answer.text}


def _question_only(prompt: JudgedPrompt) -> Conversation:
    conversation = prompt.sampled.asked.conversation
    last = max(index for index, message in enumerate(conversation.messages) if message.role == "assistant")
    return replace(conversation, messages=conversation.messages[:last])


def _candidates_row(prompt: JudgedPrompt) -> dict[str, Any]:
    return {
        "id": prompt.sampled.asked.key,
        "prompt": conversation_row(_question_only(prompt))["messages"],
        "reference": prompt.sampled.reference,
        "candidates": [
            {"text": candidate.answer.text, **candidate_record(candidate)} for candidate in prompt.candidates
        ],
    }  # fmt: skip


def _passed_rows(judged: Sequence[JudgedPrompt]) -> Iterable[dict[str, Any]]:
    return (training_row(prompt, kept) for prompt in judged for kept in kept_candidates(prompt, "passed"))


def _pairs(judged: Sequence[JudgedPrompt]) -> dict[str, int]:
    """Prompts with a pair, and why the others have none."""
    counts = {"pairs": 0, "none_passed": 0, "none_failed": 0, "not_measured": 0}
    for prompt in judged:
        verdicts = [candidate.passed for candidate in prompt.candidates]
        if preference(prompt) is not None:
            counts["pairs"] += 1
        elif all(verdict is None for verdict in verdicts):
            counts["not_measured"] += 1
        else:
            counts["none_failed" if kept_candidates(prompt, "best") else "none_passed"] += 1
    return counts


# ------------------------------------------------------------------------------------------------ files


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """The number of rows written."""
    num_rows = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json_line(row))
            num_rows += 1
        file.flush()
        os.fsync(file.fileno())
    return num_rows


def _hashes(directory: Path, rows: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        found[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        if name in rows:
            found[name]["rows"] = rows[name]
    return found


def _provenance(run: RunFacts) -> dict[str, Any]:
    assert run.trained is not None
    inputs = {
        "weights": run.trained.weights_sha256,
        "template": run.prepared.template_sha256,
        "tokenizer": run.prepared.tokenizer_sha256,
        **{f"split {name}": split.sha256 for name, split in sorted(run.prepared.splits.items())},
    }
    return provenance(sha256_json(run.config.to_dict()), inputs).model_dump(mode="json")
