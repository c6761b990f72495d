"""What the released model's answers looked like on the holdout: the distribution that production is held against.

Aggregates only (bin edges, counts, rates); no text of a prompt or an answer leaves the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import EvalReport, PreparedData
from halo_forge.chat.records import Conversation
from halo_forge.errors import DataError

MAX_BINS = 20


def build_reference(run_directory: Path, report: EvalReport, prepared: PreparedData) -> dict[str, Any]:
    """The content of reference.json; `num_rows` is 0 when the evaluation generated no answers.

    Prompts count as a person or a program wrote them (`prompt_text`), not as the chat template renders them, because
    that is what a production log holds. Histograms: `edges` ascend, `counts` has one more entry, counts[i] = lengths
    in (edges[i-1], edges[i]]. Raises DataError where answers or holdout cannot be read or do not belong together.
    """
    prompts: list[str] = []
    answers: list[str] = []
    if report.num_scored:
        asked = _holdout_prompts(run_directory, prepared)
        for row_id, text in _answers(run_directory / report.answers):
            if row_id not in asked:
                raise DataError(
                    f"an answer belongs to no row of the holdout: {row_id}",
                    where=str(run_directory / report.answers),
                    fix="evaluate the run again: `halo-forge evaluate`",
                )
            prompts.append(asked[row_id])
            answers.append(text)
    num_rows = len(answers)
    return {
        "schema_version": 1,
        "num_rows": num_rows,
        "prompt_chars": length_histogram([len(text) for text in prompts]),
        "answer_chars": length_histogram([len(text) for text in answers]),
        "json_valid_rate": sum(map(is_json, answers)) / num_rows if num_rows else None,
        "empty_rate": sum(not text.strip() for text in answers) / num_rows if num_rows else None,
        "weights_sha256": report.weights_sha256,
        "holdout_sha256": report.holdout_sha256,
    }


def _holdout_prompts(run_directory: Path, prepared: PreparedData) -> dict[str, str]:
    # Here and not above: the readers bring pyarrow and a tokenizer library, and listing versions needs neither.
    from halo_forge.chat import read_conversations

    split = prepared.splits.get("holdout")
    rows = read_conversations(run_directory / split.conversations) if split is not None and split.rows else []
    return {conversation.id: prompt_text(conversation) for conversation in rows}


def prompt_text(conversation: Conversation) -> str:
    """Everything said before the last answer, one turn a line. System turns are the application's, not traffic."""
    turns = conversation.messages
    last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
    return "\n".join(turn.text for turn in turns[:last] if turn.role != "system")


def length_histogram(lengths: list[int]) -> dict[str, list[int]]:
    """Bins of about equal mass. The outermost two lie outside what was seen, so that they are empty here and any
    length below the shortest or above the longest stands out later."""
    if not lengths:
        return {"edges": [], "counts": []}
    quantiles = np.quantile(lengths, np.linspace(0, 1, MAX_BINS + 1), method="inverted_cdf")
    edges = sorted({int(quantiles[0]) - 1, *(int(value) for value in quantiles)})
    bins = np.searchsorted(np.array(edges), np.array(lengths), side="left")
    return {"edges": edges, "counts": np.bincount(bins, minlength=len(edges) + 1).tolist()}


def is_json(text: str) -> bool:
    """One JSON object or array and nothing around it but white space; NaN and Infinity are not JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _answers(path: Path) -> Iterator[tuple[str, str]]:
    """(row id, tuned answer) of every line of answers.jsonl."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = json.loads(line)
                row_id, text = row["id"], row["tuned"]["text"]
                if not isinstance(row_id, str) or not isinstance(text, str):
                    raise TypeError(f"line {number}")
                yield row_id, text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "cannot read the evaluated answers, which the released version's reference is made of",
            where=str(path),
            expected=f'lines {{"id": ..., "tuned": {{"text": ...}}}} ({error})',
            fix="evaluate the run again: `halo-forge evaluate`",
        ) from None
