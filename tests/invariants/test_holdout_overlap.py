"""Rows that share passages with rows held out of the same file are told, with their places, and stay."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halo_forge.artifacts import PreparedData
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import prepare
from halo_forge.data.files.rows import Row
from halo_forge.data.holdout_overlap import overlap_with_holdout
from halo_forge.data.parts import part_of, write_part
from halo_forge.data.reasons import action_table
from halo_forge.data.row_work import RowSource, RowWorker, WorkOrder
from halo_forge.runs import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = [f"{first}{last}" for first in "bcdfgklmnprst" for last in ("ado", "ein", "ilo", "orn", "ulm", "ynth", "ax")]
PASSAGE = "the ferry to the northern islands leaves at dawn on every second market day of spring"


def rows_file(path: Path, passages: dict[int, str], num_rows: int = 300) -> Path:
    pick = random.Random(3)
    with open(path, "w") as file:
        for number in range(num_rows):
            text = " ".join(pick.choice(WORDS) for _ in range(40))
            row = {"question": f"{number} {passages.get(number, '')} {text}?", "answer": " ".join(text.split()[:9])}
            file.write(json.dumps(row) + "\n")
    return path


def prepared(path: Path, out: Path, tokenizer: PreTrainedTokenizerBase, **data: Any) -> PreparedData:
    with RunDirectory.open(out) as run:
        return prepare(Config(data=DataSection(train_file=str(path), **data)), run, tokenizer)


def lines_of(run: Path, split: str) -> list[int]:
    text = (run / f"data/{split}.conversations.jsonl").read_text()
    return [json.loads(line)["source"]["line"] for line in text.splitlines()]


def test_a_passage_on_both_sides_is_told_with_both_places(
    tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", dict.fromkeys(range(0, 300, 6), PASSAGE))
    found = prepared(path, tmp_path / "run", smollm2_tokenizer)
    trained, held = lines_of(tmp_path / "run", "train"), lines_of(tmp_path / "run", "holdout")
    sharing = [line for line in trained if (line - 1) % 6 == 0]
    assert any((line - 1) % 6 == 0 for line in held)
    assert len(trained) + len(held) > 270  # nothing was left out for it
    overlap = found.holdout_overlap
    assert overlap is not None
    assert (overlap.items, overlap.ngram_13, overlap.exact, overlap.near) == (len(held), len(sharing), 0, 0)
    assert overlap.examples[0].line == sharing[0]
    assert overlap.examples[0].excerpt == PASSAGE
    assert int(overlap.examples[0].item.rsplit(":", 1)[1]) in held
    told = next(note for note in found.notes if note.startswith("holdout: "))
    assert f"{len(sharing)} share 13 words or more with one of {len(held)} held-out rows" in told


def test_rows_with_nothing_in_common_are_clean_and_a_holdout_file_is_compared_as_a_benchmark(
    tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", {})
    clean = prepared(path, tmp_path / "run", smollm2_tokenizer).holdout_overlap
    assert clean is not None
    assert (clean.exact, clean.near, clean.ngram_13, clean.ngram_8, clean.examples) == (0, 0, 0, 0, ())
    held = rows_file(tmp_path / "held.jsonl", {}, 5)
    beside = prepared(path, tmp_path / "beside", smollm2_tokenizer, holdout_file=str(held))
    assert beside.holdout_overlap is None
    assert [report.benchmark for report in beside.contamination] == ["holdout"]


def test_of_many_rows_evenly_taken_ones_are_compared(
    tmp_path: Path, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = DataSection()
    worker = RowWorker(WorkOrder(data=data, actions=action_table(data)))
    texts = [f"row {number} {PASSAGE}" for number in range(40)]
    rows = [
        (0, Row(path="f", line=number + 1, value={"question": text, "answer": f"answer {number}"}, raw=text))
        for number, text in enumerate(texts)
    ]
    parts = []
    for number in range(2):
        drafts = worker.work(rows[20 * number : 20 * number + 20], [RowSource(label="f", format="question_answer")])
        parts.append(write_part(tmp_path / f"part{number}", part_of(drafts), (), {0: 20}))
    split = np.array([2] * 10 + [-1] * 2 + [0] * 28, np.int8)
    report = overlap_with_holdout(parts, split, ["f"], max_items=4, max_rows=7)
    assert report is not None
    assert (report.items, report.near) == (4, 7)
    assert {hit.line for hit in report.examples} <= {int(line) for line in np.linspace(13, 40, 7)}
    assert {hit.item for hit in report.examples} <= {"f:1", "f:4", "f:7", "f:10"}
