"""What can only be decided with all rows in view: overlap of files, copies, contradictions, the mix, the splits.

Rows are numbers here, in input order, and columns are arrays: a million rows cost some hundred megabytes. Order of the
decisions: what stands in a holdout or validation file leaves training; of copies the first stays; then the mix takes
its share; what is left is split.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from halo_forge.artifacts import DuplicatePair, DuplicateReport
from halo_forge.config.schema import DataSection, RowAction
from halo_forge.data.inputs import Source
from halo_forge.data.mix import choose_rows, plan_mix
from halo_forge.data.overlap.duplicates import find_exact
from halo_forge.data.overlap.near_duplicates import find_near, gram_set, jaccard, near_text
from halo_forge.data.parts import Part
from halo_forge.data.rules.consistency import find_contradictions
from halo_forge.data.split import SPLITS, assign_splits, helped_words, repeated_across
from halo_forge.runs import Notify

NARROW = (
    "source", "line", "code", "flags", "fixes", "prompt_key", "question_key", "answer_key", "group", "stratum", "exact",
    "bands", "num_tokens", "is_document", "is_hit", "language", "num_supervised", "style", "calls",
)  # fmt: skip
CopyKind = Literal["exact", "near", "semantic"]
NUM_SHOWN = 5
TOXIC_FROM = 0.5
TEXTS_AT_ONCE = 1024


@dataclass(slots=True)
class Rows:
    """The narrow columns of all rows. `kept` shrinks as decisions fall; `left_out` says why, `flags` what was noticed.

    source, role          int32, int8 [num_rows]  index of the source; 0 train, 1 validation, 2 holdout
    line                  int64 [num_rows]
    prompt_key, question_key, answer_key, exact   uint64 [num_rows, 2]       bands  uint64 [num_rows, num_bands]
    split                 int8 [num_rows]  as role, or -1
    decided               bool [num_rows]  rows in left_out or flags
    """

    parts: Sequence[Part]
    sources: Sequence[Source]
    columns: Mapping[str, Any]
    source: np.ndarray
    role: np.ndarray
    kept: np.ndarray
    split: np.ndarray
    decided: np.ndarray
    left_out: dict[int, tuple[str, str]] = field(default_factory=dict)
    flags: dict[int, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    beside: np.ndarray | None = None
    duplicates: DuplicateReport | None = None

    @staticmethod
    def of(parts: Sequence[Part], sources: Sequence[Source]) -> Rows:
        tables = [part.read(NARROW) for part in parts]
        table = pa.Table.from_batches(tables) if tables else None
        columns = {name: _column(table, name) for name in NARROW} if table else dict.fromkeys(NARROW, np.zeros(0))
        source = columns["source"].astype(np.int32)
        roles = np.array([SPLITS.index(source.role) for source in sources], np.int8)
        kept = columns["code"] == ""
        split, decided = np.full(len(source), -1, np.int8), np.zeros(len(source), bool)
        return Rows(parts, sources, columns, source, roles[source], kept, split, decided)

    def __len__(self) -> int:
        return len(self.source)

    def place(self, row: int) -> str:
        return f"{self.sources[self.source[row]].label}:{self.columns['line'][row]}"

    def settle(self, rows: Sequence[int], code: str, action: RowAction, reason: str | Callable[[int], str]) -> None:
        """Leave rows out under a code, or only flag them where that is the policy."""
        reason_of = reason if callable(reason) else lambda row: reason
        for row in rows:
            if action == "keep":
                self.flags[row] = (*self.flags.get(row, ()), code)
            else:
                self.left_out[row] = (code, reason_of(row))
        places = np.asarray(rows, np.int64)
        self.decided[places] = True
        if action != "keep":
            self.kept[places] = False


def _column(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    if name in ("prompt_key", "question_key", "answer_key", "exact"):
        return _fixed_bytes(column)
    if name == "bands":
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    if pa.types.is_string(column.type):
        return _few_words(column)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _fixed_bytes(column: pa.Array) -> np.ndarray:
    flat = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * 16 : (column.offset + len(column)) * 16]
    return flat.reshape(-1, 16).view(">u8").astype(np.uint64)


def _few_words(column: pa.Array) -> np.ndarray:
    """A column with few different texts as an object array that holds each text once; null is ""."""
    encoded = column.fill_null("").dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    words = np.array(encoded.dictionary.to_pylist() or [""], dtype=object)
    column_of_words: np.ndarray = words[encoded.indices.to_numpy(zero_copy_only=False)]
    return column_of_words


class TextOf:
    """row -> the plain text of its conversation, read from the memory-mapped parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.starts = np.concatenate(([0], np.cumsum([part.num_rows for part in parts]))).astype(np.int64).tolist()
        self._open: dict[int, list[pa.Array]] = {}

    def line(self, row: int) -> bytes:
        columns, at = self._place(row)
        return bytes(columns[0][at].as_py())

    def turns(self, row: int) -> tuple[str, str]:
        columns, at = self._place(row)
        return columns[1][at].as_py(), columns[2][at].as_py()

    def _place(self, row: int) -> tuple[list[pa.Array], int]:
        number = bisect_right(self.starts, row) - 1
        columns = self._open.get(number)
        if columns is None:
            batch = self.parts[number].read(("conversation", "prompt", "answer"))
            columns = self._open[number] = batch.columns
        return columns, row - self.starts[number]

    def __call__(self, row: int) -> str:
        return near_text(*self.turns(row))


def decide(rows: Rows, data: DataSection, actions: Mapping[str, RowAction], notify: Notify) -> None:
    """Settle every row: kept with a split, or left out with a code."""
    _apart_from_files(rows, actions)
    _copies(rows, data, actions, notify)
    _contradictions(rows, actions)
    _toxic_by_model(rows, data, actions, notify)
    _mix(rows, data)
    _split(rows, data)


def _apart_from_files(rows: Rows, actions: Mapping[str, RowAction]) -> None:
    """A prompt of the holdout file stands nowhere else, one of the validation file not among the training rows."""
    keys = rows.columns["prompt_key"][:, 0]
    for role, code, others in ((2, "in_holdout", (0, 1)), (1, "in_validation", (0,))):
        taken = keys[rows.kept & (rows.role == role)]
        if len(taken):
            found = np.flatnonzero(rows.kept & np.isin(rows.role, others) & np.isin(keys, taken))
            rows.settle(found.tolist(), code, actions[code], f"its prompt stands in the {SPLITS[role]} file")


def _copies(rows: Rows, data: DataSection, actions: Mapping[str, RowAction], notify: Notify) -> None:
    pairs: dict[CopyKind, list[tuple[int, int, float]]] = {"exact": [], "near": [], "semantic": []}
    for role in range(len(SPLITS)):
        first = find_exact(rows.columns["exact"], rows.kept & (rows.role == role))
        found = np.flatnonzero(first >= 0)
        pairs["exact"] += [(row, int(first[row]), 1.0) for row in found.tolist()]
        rows.settle(found.tolist(), "duplicate", actions["duplicate"], _repeats(rows, first))
    text_of = TextOf(rows.parts)
    links: list[tuple[int, int]] = []
    eligible = rows.kept & (rows.role == 0)
    if data.near_duplicate_threshold is not None and eligible.any():
        threshold = data.near_duplicate_threshold
        near = find_near(
            rows.columns["bands"], eligible, text_of, threshold,
            lambda row, other: answers_agree(text_of.turns(row)[1], text_of.turns(other)[1], threshold),
        )  # fmt: skip
        pairs["near"] = _settle_similar(rows, near.of, near.similarity, "near_duplicate", actions)
        links += [(row, other) for row, other, _ in pairs["near"]]
        if near.num_cut:
            rows.notes.append(f"{near.num_cut} pairs of rows with equal signatures were not compared: too many alike")
    if data.semantic_duplicate_threshold is not None:
        from halo_forge.data.overlap.semantic_duplicates import find_semantic

        eligible = rows.kept & (rows.role == 0)
        same = find_semantic(text_of, eligible, data.semantic_duplicate_threshold, notify=notify)
        pairs["semantic"] = _settle_similar(rows, same.of, same.similarity, "semantic_duplicate", actions)
        links += [(row, other) for row, other, _ in pairs["semantic"]]
    rows.beside = _beside(rows, links)
    rows.duplicates = _duplicate_report(rows, pairs, data, text_of)


def _repeats(rows: Rows, first: np.ndarray) -> Callable[[int], str]:
    return lambda row: f"the same conversation as {rows.place(int(first[row]))}"


def answers_agree(one: str, other: str, threshold: float) -> bool:
    """Whether two plain answers are copies too. Rows that share a long prompt, but not what is learnt from it, are no
    duplicates: two questions about one document, or a contradiction."""
    return one == other or jaccard(gram_set(one), gram_set(other)) >= threshold


def _beside(rows: Rows, links: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """For near-copies that both stay (policy keep): the row beside which each has to stay in the split."""
    both = [(row, other) for row, other in links if rows.kept[row] and rows.kept[other]]
    if not both:
        return None
    beside = np.arange(len(rows), dtype=np.int64)
    for row, other in sorted(both):  # the other is earlier, so its own place is settled
        beside[row] = beside[other]
    return beside


def _settle_similar(
    rows: Rows, of: np.ndarray, similarity: np.ndarray, code: str, actions: Mapping[str, RowAction]
) -> list[tuple[int, int, float]]:
    found = np.flatnonzero(of >= 0).tolist()
    rows.settle(found, code, actions[code], lambda row: f"{similarity[row]:.0%} like {rows.place(int(of[row]))}")
    return [(row, int(of[row]), float(similarity[row])) for row in found]


def _duplicate_report(
    rows: Rows, pairs: Mapping[CopyKind, list[tuple[int, int, float]]], data: DataSection, text_of: TextOf
) -> DuplicateReport:
    from halo_forge.data.ledger import redacted

    examples = [
        DuplicatePair(
            kept=rows.place(other), dropped=rows.place(row), kind=kind, similarity=similarity,
            excerpt=redacted(excerpt_of(text_of.line(row))),
        )
        for kind, found in pairs.items()
        for row, other, similarity in found[:NUM_SHOWN]
    ]  # fmt: skip
    every = [pair for found in pairs.values() for pair in found]
    return DuplicateReport(
        exact=len(pairs["exact"]), near=len(pairs["near"]), semantic=len(pairs["semantic"]),
        across_sources=sum(bool(rows.source[row] != rows.source[other]) for row, other, _ in every),
        near_threshold=data.near_duplicate_threshold, semantic_threshold=data.semantic_duplicate_threshold,
        examples=tuple(examples),
    )  # fmt: skip


def excerpt_of(line: bytes) -> str:
    """The first words of a conversation, raw."""
    messages = json.loads(line)["messages"]
    texts = [part.get("text", "") for message in messages[:3] for part in message["parts"]]
    return " ".join(text[:400] for text in texts)


def _contradictions(rows: Rows, actions: Mapping[str, RowAction]) -> None:
    eligible = rows.kept & (rows.role == 0)
    groups = find_contradictions(rows.columns["question_key"], rows.columns["answer_key"], eligible)
    for group in groups:
        first, *others = (int(row) for row in group)
        rows.settle(others, "contradiction", actions["contradiction"], f"another answer at {rows.place(first)}")


def _toxic_by_model(rows: Rows, data: DataSection, actions: Mapping[str, RowAction], notify: Notify) -> None:
    """Answers that the configured classifier calls toxic, beside those of the lexical rule."""
    if data.toxicity_model is None:
        return
    from halo_forge.data.rules.toxicity import model_scores

    text_of = TextOf(rows.parts)
    places = np.flatnonzero(rows.kept).tolist()
    for start in range(0, len(places), TEXTS_AT_ONCE):
        chunk = places[start : start + TEXTS_AT_ONCE]
        scores = model_scores([text_of.turns(row)[1] for row in chunk], data.toxicity_model)
        for row, score in zip(chunk, scores, strict=True):
            if score >= TOXIC_FROM:
                rows.settle([row], "toxic_text", actions["toxic_text"], f"{data.toxicity_model} gives {score:.2f}")
        notify("data.progress", {"rows": start + len(chunk), "stage": "toxicity model"})


def _mix(rows: Rows, data: DataSection) -> None:
    if not data.sources:
        return
    entry_of_source = np.array([-1 if source.entry is None else source.entry for source in rows.sources], np.int32)
    entries = np.where(rows.kept, entry_of_source[rows.source], -1)
    available = np.bincount(entries[entries >= 0], minlength=len(data.sources))
    held_out = data.validation_split * (not data.validation_file) + data.holdout_split * (not data.holdout_file)
    fracs = [1.0 if entry.replay else 1.0 - held_out for entry in data.sources]
    plan = plan_mix(available.tolist(), data.sources, data.mix_temperature, fracs)
    rows.notes += plan.notes
    chosen = choose_rows(rows.columns["exact"][:, 0], entries, plan)
    left = np.flatnonzero(rows.kept & (entries >= 0) & ~chosen)
    rows.settle(left.tolist(), "not_sampled", "skip", "not in its source's share of the mix")


def _split(rows: Rows, data: DataSection) -> None:
    replay = np.array([source.replay for source in rows.sources], bool)[rows.source]
    pool = rows.kept & (rows.role == 0) & ~replay
    strata, names = _strata(rows, data)
    split, helped = assign_splits(
        rows.columns["group"], strata, 0.0 if data.validation_file else data.validation_split,
        0.0 if data.holdout_file else data.holdout_split, pool, rows.beside,
    )  # fmt: skip
    rows.split = np.where(pool, split, np.where(rows.kept, rows.role, -1)).astype(np.int8)
    rows.notes += helped_words(helped, names)
    repeated = repeated_across(rows.split, rows.columns["prompt_key"][:, 0])
    for held, code in ((2, "in_holdout"), (1, "in_validation")):
        found = np.flatnonzero(repeated == held).tolist()
        rows.settle(found, code, "skip", f"its prompt stands in the {SPLITS[held]} split")
        rows.split[np.asarray(found, np.int64)] = -1


def _strata(rows: Rows, data: DataSection) -> tuple[np.ndarray | None, list[str]]:
    if data.stratify_by is None:
        return None, []
    if data.stratify_by == "source":
        return rows.source, [source.label for source in rows.sources]
    names, codes = np.unique(rows.columns["stratum"].astype(str), return_inverse=True)
    return codes.astype(np.int32), [str(name) for name in names]
