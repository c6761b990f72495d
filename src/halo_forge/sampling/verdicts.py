"""Samples -> judged, counted, and the rows that are kept of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from halo_forge.chat.records import Message, TextPart
from halo_forge.data.convert_file import conversation_row
from halo_forge.models.generate import Generation
from halo_forge.sampling.generation import Sampled
from halo_forge.verify import Judged, Question, Verifier, mean_pass_at_k

Keep = Literal["best", "passed", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One judged sample. passed: by every verifier; None where there is no verifier, or one could not measure it.
    score: the mean of the verifiers' scores; None as for `passed`."""

    number: int
    answer: Generation
    passed: bool | None
    score: float | None
    verdicts: dict[str, Judged]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPrompt:
    sampled: Sampled
    candidates: tuple[Candidate, ...]


def judge_samples(sampled: Sequence[Sampled], verifiers: Mapping[str, Verifier]) -> list[JudgedPrompt]:
    """Every sample by every verifier, several at a time: sandboxed ones wait for processes of their own."""

    def judge(item: tuple[Sampled, int, Generation]) -> Candidate:
        prompt, number, answer = item
        question = Question(
            prompt=prompt.prompt_text, reference=prompt.reference, tests=prompt.asked.conversation.tests,
            row=_plain_row(prompt),
        )  # fmt: skip
        verdicts = {name: verify(answer.text, question) for name, verify in verifiers.items()}
        measured = bool(verdicts) and all(verdict.status != "not_measured" for verdict in verdicts.values())
        scores = [verdict.score or 0.0 for verdict in verdicts.values()]
        return Candidate(
            number=number, answer=answer, verdicts=verdicts,
            passed=all(verdict.status == "passed" for verdict in verdicts.values()) if measured else None,
            score=sum(scores) / len(scores) if measured else None,
        )  # fmt: skip

    items = [(prompt, number, answer) for prompt in sampled for number, answer in enumerate(prompt.samples)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        judged = iter(list(workers.map(judge, items)))
    return [
        JudgedPrompt(sampled=prompt, candidates=tuple(next(judged) for _ in prompt.samples)) for prompt in sampled
    ]  # fmt: skip


def _plain_row(prompt: Sampled) -> dict[str, Any]:
    row = conversation_row(prompt.asked.conversation)
    if not prompt.asked.answered:
        row["messages"] = row["messages"][:-1]
    return row


def kept_candidates(prompt: JudgedPrompt, keep: Keep) -> list[Candidate]:
    """all: every sample. passed: those that passed, equal answers once. best: of those the first, one a prompt;
    an answer that was cut off by the length is never kept as passed."""
    if keep == "all":
        return list(prompt.candidates)
    found: dict[str, Candidate] = {}
    for candidate in prompt.candidates:
        if candidate.passed and candidate.answer.stopped:
            found.setdefault(candidate.answer.text, candidate)
    return list(found.values())[: 1 if keep == "best" else None]


def training_row(prompt: JudgedPrompt, candidate: Candidate) -> dict[str, Any]:
    """The prompt's conversation with this answer as its last turn: what `sft train --data` reads. `generation` says
    where it came from; no format reads it."""
    conversation = prompt.sampled.asked.conversation
    last = max(index for index, message in enumerate(conversation.messages) if message.role == "assistant")
    answer = Message(role="assistant", parts=(TextPart(text=candidate.answer.text),))
    row = conversation_row(replace(conversation, messages=(*conversation.messages[:last], answer)))
    return {**row, "generation": candidate_record(candidate) | {"prompt": prompt.sampled.asked.key}}


def candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {
        "sample": candidate.number, "passed": candidate.passed, "score": candidate.score,
        "stopped": candidate.answer.stopped, "num_tokens": len(candidate.answer.token_ids),
        "verdicts": {name: asdict(verdict) for name, verdict in candidate.verdicts.items()},
    }  # fmt: skip


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n"


def count_verdicts(judged: Sequence[JudgedPrompt], names: Sequence[str]) -> dict[str, Any]:
    """Samples and passes, per verifier and by all of them; pass@k over the prompts whose samples were all measured."""
    samples = [candidate for prompt in judged for candidate in prompt.candidates]
    measured = [p for p in judged if all(candidate.passed is not None for candidate in p.candidates)]
    pairs = [(len(p.candidates), sum(candidate.passed is True for candidate in p.candidates)) for p in measured]
    most = max((len(prompt.candidates) for prompt in judged), default=0)
    sizes = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 100) if k <= most} | ({most} if most else set()))
    return {
        "prompts_sampled": len(judged),
        "samples": len(samples),
        "stopped": sum(candidate.answer.stopped for candidate in samples),
        "passed": sum(candidate.passed is True for candidate in samples),
        "not_measured": sum(candidate.passed is None for candidate in samples),
        "prompts_measured": len(measured) if names else 0,
        "prompts_with_a_pass": sum(passed > 0 for _, passed in pairs),
        "pass_at_k": {str(k): mean_pass_at_k(pairs, k) for k in sizes} if names else {},
        "verifiers": {
            name: {
                status: sum(candidate.verdicts[name].status == status for candidate in samples)
                for status in ("passed", "failed", "not_measured")
            }
            for name in names
        },
    }  # fmt: skip
