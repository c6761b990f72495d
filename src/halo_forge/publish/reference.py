"""What the release's prompts and answers looked like on the holdout: what production is held against.

Aggregates only (bin edges, counts, rates, sums of hashed vectors); no text of a prompt or an answer leaves the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import EvalReport, PreparedData
from halo_forge.chat.records import Conversation
from halo_forge.config.monitor_section import MonitorSection
from halo_forge.errors import DataError
from halo_forge.texts.json_documents import is_json_document
from halo_forge.texts.refusal import refuses
from halo_forge.traits import answers as form
from halo_forge.traits import language
from halo_forge.traits.hashed_vectors import KIND, hashed_vectors
from halo_forge.traits.prompt_space import PromptSpace, fit_prompt_space

MAX_BINS = 20


def build_reference(
    run_directory: Path, report: EvalReport, prepared: PreparedData, monitor: MonitorSection | None = None
) -> dict[str, Any]:
    """The content of reference.json; `num_rows` is 0 when the evaluation generated no answers.

    Prompts count as a person or a program wrote them (`prompt_text`), not as the chat template renders them, because
    that is what a production log holds. Raises DataError where answers or holdout cannot be read or do not belong
    together, UsageError where monitor.embedding asks for a model that is not installed.
    """
    prompts: list[str] = []
    answers: list[str] = []
    stopped: list[bool] = []
    if report.num_scored:
        asked = _holdout_prompts(run_directory, prepared)
        for row_id, text, by_itself in _answers(run_directory / report.answers):
            if row_id not in asked:
                raise DataError(
                    f"an answer belongs to no row of the holdout: {row_id}",
                    where=str(run_directory / report.answers),
                    fix="evaluate the run again: `halo-forge evaluate`",
                )
            prompts.append(asked[row_id])
            answers.append(text)
            stopped += [by_itself] if by_itself is not None else []
    facts = reference_of(prompts, answers, stopped, monitor or MonitorSection())
    return {**facts, "weights_sha256": report.weights_sha256, "holdout_sha256": report.holdout_sha256}


def reference_of(
    prompts: Sequence[str], answers: Sequence[str], stopped: Sequence[bool], monitor: MonitorSection
) -> dict[str, Any]:
    """Everything of a reference but what it is bound to. Histograms: `edges` ascend, `counts` has one more entry,
    counts[i] = lengths in (edges[i-1], edges[i]]. `stopped` is empty, or one entry an answer."""
    space = _prompt_space(prompts, monitor)
    return {
        "schema_version": 2,
        "num_rows": len(answers),
        "prompt_chars": length_histogram([len(text) for text in prompts]),
        "answer_chars": length_histogram([len(text) for text in answers]),
        "json_valid_rate": _share(map(is_json_document, answers), answers),
        "empty_rate": _share((not text.strip() for text in answers), answers),
        "rules_version": form.RULES_VERSION,
        "refusal_rate": _share(map(refuses, answers), answers),
        "repetition_rate": _share(map(form.is_repetitive, answers), answers),
        "stop_rate": _share(stopped, stopped) if len(stopped) == len(answers) else None,
        "prompt_languages": _languages(prompts),
        "answer_languages": _languages(answers),
        "prompt_space": space.model_dump(mode="json") if space is not None else None,
    }


def _share(found: Any, of: Sequence[Any]) -> float | None:
    return sum(found) / len(of) if of else None


def _languages(texts: Sequence[str]) -> dict[str, int] | None:
    """Language -> rows; None where no detector is installed (extra `language`)."""
    if not language.is_available():
        return None
    return dict(sorted(Counter(map(language.language_of, texts)).items()))


def _prompt_space(prompts: Sequence[str], monitor: MonitorSection) -> PromptSpace | None:
    if monitor.embedding == "none" or not prompts:
        return None
    if monitor.embedding == "hashed":
        return fit_prompt_space(hashed_vectors(prompts), KIND)
    from halo_forge.models import sentences

    encoder = sentences.load_encoder(None, "sentence embeddings of prompts", "monitor.embedding: hashed")
    return fit_prompt_space(sentences.sentence_vectors(prompts, *encoder), sentences.KIND)


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


def _answers(path: Path) -> Iterator[tuple[str, str, bool | None]]:
    """(row id, tuned answer, whether it ended by itself) of every line of answers.jsonl."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = json.loads(line)
                row_id, text, stopped = row["id"], row["tuned"]["text"], row["tuned"].get("stopped")
                if not isinstance(row_id, str) or not isinstance(text, str):
                    raise TypeError(f"line {number}")
                yield row_id, text, stopped if isinstance(stopped, bool) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "cannot read the evaluated answers, which the released version's reference is made of",
            where=str(path),
            expected=f'lines {{"id": ..., "tuned": {{"text": ...}}}} ({error})',
            fix="evaluate the run again: `halo-forge evaluate`",
        ) from None
