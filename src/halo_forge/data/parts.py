"""Batches of worked-on rows on disk: one Arrow table each, a row an input row, in input order.

Parts are what makes a large preparation resumable and its memory flat: a worker writes its part and forgets it, the
decisions read a few narrow columns of all parts, and the split files are put together from the wide ones, part by part.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from halo_forge.chat.records import Conversation
from halo_forge.chat.store import conversation_line, media_text
from halo_forge.data.overlap.near_duplicates import NUM_BANDS, fingerprints
from halo_forge.data.row_work import Draft
from halo_forge.data.split import group_key
from halo_forge.texts.calls.schemas import name_of

SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("line", pa.int64()),
        ("code", pa.string()),  # why the row is left out
        ("reason", pa.string()),
        ("fixes", pa.string()),  # codes, joined by commas
        ("flags", pa.string()),
        ("found", pa.string()),  # {code: raw excerpt} as JSON
        ("excerpt", pa.string()),
        ("raw", pa.string()),  # the whole row, of rows with a problem
        ("id", pa.string()),
        ("conversation", pa.binary()),  # its line in a split file
        ("prompt", pa.string()),  # plain, as copies and overlap are judged by
        ("answer", pa.string()),
        ("prompt_key", pa.binary(16)),
        ("question_key", pa.binary(16)),
        ("answer_key", pa.binary(16)),
        ("group", pa.uint64()),
        ("stratum", pa.string()),
        ("exact", pa.binary(16)),
        ("bands", pa.list_(pa.uint64(), NUM_BANDS)),
        ("hit", pa.string()),
        ("is_hit", pa.bool_()),
        ("language", pa.string()),
        ("style", pa.uint32()),
        ("calls", pa.uint8()),  # bits of rules/calls.py
        ("num_messages", pa.int32()),
        ("is_document", pa.bool_()),
        ("num_tokens", pa.int32()),
        ("num_supervised", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("media", pa.string()),  # of the example, as its column in the split file
    ]
)
MAX_RAW_CHARS = 2**20
_NO_KEY = bytes(16)
NO_PROMPT = "0" * 64


def part_of(drafts: Sequence[Draft]) -> pa.RecordBatch:
    """The table of one batch. Rows that cannot be written as JSON become problems here."""
    lines = [_line_of(draft) for draft in drafts]
    kept = [draft.problem is None for draft in drafts]
    prints = fingerprints([_asked(draft) for draft in drafts], [draft.answer for draft in drafts])
    keys = [bytes.fromhex(draft.prompt_key[:32]) if draft.prompt_key else _NO_KEY for draft in drafts]
    ids = [draft.ids if ok and draft.ids is not None else _NO_IDS for draft, ok in zip(drafts, kept, strict=True)]
    weights = [d.weights if ok and d.weights is not None else _NO_WEIGHTS for d, ok in zip(drafts, kept, strict=True)]
    conversations = [draft.conversation for draft in drafts]
    columns = {
        "source": pa.array([draft.source for draft in drafts], pa.int32()),
        "line": pa.array([draft.line for draft in drafts], pa.int64()),
        "code": pa.array([draft.problem.code if draft.problem else None for draft in drafts], pa.string()),
        "reason": pa.array([draft.problem.reason if draft.problem else None for draft in drafts], pa.string()),
        "fixes": _joined(draft.fixes for draft in drafts),
        "flags": _joined(draft.flags for draft in drafts),
        "found": pa.array([json.dumps(draft.found) if draft.found else None for draft in drafts], pa.string()),
        "excerpt": pa.array([_excerpt(draft) for draft in drafts], pa.string()),
        "raw": pa.array([_raw(draft) if draft.problem else None for draft in drafts], pa.string()),
        "id": pa.array([c.id if c else None for c in conversations], pa.string()),
        "conversation": pa.array(lines, pa.binary()),
        "prompt": pa.array([draft.prompt if ok else None for draft, ok in zip(drafts, kept, strict=True)], pa.string()),
        "answer": pa.array([draft.answer if ok else None for draft, ok in zip(drafts, kept, strict=True)], pa.string()),
        "prompt_key": pa.array(keys, pa.binary(16)),
        "question_key": pa.array([_question_key(*row) for row in zip(drafts, keys, strict=True)], pa.binary(16)),
        "answer_key": pa.array([_digest(draft.answer) for draft in drafts], pa.binary(16)),
        "group": pa.array([group_key(draft.prompt_key or NO_PROMPT, draft.group) for draft in drafts], pa.uint64()),
        "stratum": pa.array([draft.stratum for draft in drafts], pa.string()),
        "exact": pa.array([row.tobytes() for row in prints.exact], pa.binary(16)),
        "bands": pa.FixedSizeListArray.from_arrays(pa.array(prints.bands.reshape(-1), pa.uint64()), NUM_BANDS),
        "hit": pa.array([json.dumps(asdict(draft.hit)) if draft.hit else None for draft in drafts], pa.string()),
        "is_hit": pa.array([draft.hit is not None for draft in drafts], pa.bool_()),
        "language": pa.array([draft.language for draft in drafts], pa.string()),
        "style": pa.array([draft.style for draft in drafts], pa.uint32()),
        "calls": pa.array([draft.calls for draft in drafts], pa.uint8()),
        "num_messages": pa.array([len(c.messages) if c else 0 for c in conversations], pa.int32()),
        "is_document": pa.array([_is_document(c) for c in conversations], pa.bool_()),
        "num_tokens": pa.array([len(row) for row in ids], pa.int32()),
        "num_supervised": pa.array(_counts([row > 0 for row in weights]), pa.int32()),
        "input_ids": _lists(ids, np.int32),
        "loss_weights": _lists(weights, np.float32),
        "media": pa.array([media_text(draft.media) for draft in drafts], pa.string()),
    }  # fmt: skip
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _asked(draft: Draft) -> str:
    """What copies are judged by: the prompt, and which tools it offers. The same question beside other tools is no
    copy: rows that teach to call nothing are often of that kind."""
    tools = draft.conversation.tools if draft.conversation is not None else ()
    return "\n".join((draft.prompt, *map(name_of, tools))) if tools else draft.prompt


def _question_key(draft: Draft, prompt_key: bytes) -> bytes:
    """What contradictions are judged by: the prompt, and which tools it offers."""
    tools = draft.conversation.tools if draft.conversation is not None else ()
    return _digest("\n".join((prompt_key.hex(), *map(name_of, tools)))) if tools else prompt_key


_NO_IDS, _NO_WEIGHTS = np.zeros(0, np.int32), np.zeros(0, np.float32)


def _is_document(conversation: Conversation | None) -> bool:
    return conversation is not None and conversation.messages[0].role == "document"


def _line_of(draft: Draft) -> bytes | None:
    if draft.problem is not None or draft.conversation is None:
        return None
    return conversation_line(draft.conversation)


def _joined(groups: Any) -> pa.Array:
    return pa.array([",".join(dict.fromkeys(codes)) if codes else None for codes in groups], pa.string())


def _excerpt(draft: Draft) -> str | None:
    return printable_surrogates(draft.row.excerpt()) if draft.problem or draft.fixes else None


def _raw(draft: Draft) -> str:
    raw = draft.row.raw if draft.row.value is None else json.dumps(draft.row.value, ensure_ascii=True, default=str)
    return printable_surrogates((raw or "")[:MAX_RAW_CHARS])


def printable_surrogates(text: str) -> str:
    """The text as Arrow can hold it: bytes that were not UTF-8 and halves of pairs are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode() if not text.isascii() else text


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() if text else _NO_KEY


def _counts(masks: Sequence[np.ndarray]) -> list[int]:
    return [int(np.count_nonzero(mask)) for mask in masks]


def _lists(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> pa.Array:
    starts = np.concatenate(([0], np.cumsum([len(array) for array in arrays]))).astype(np.int32)
    values = np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(starts), pa.array(values))


# ------------------------------------------------------------------------------------------------ on disk


@dataclass(frozen=True, slots=True)
class Part:
    """One part file. `notes` is what the readers said, `num_read` how many rows they yielded, by source: the ledger is
    held against it."""

    path: Path
    notes: tuple[str, ...]
    num_read: Mapping[int, int]
    num_rows: int

    def read(self, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The columns named; nothing is copied, and only what is looked at is read from the disk."""
        with pa.memory_map(str(self.path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        return batch if columns is None else batch.select(list(columns))


def write_part(path: Path, batch: pa.RecordBatch, notes: Sequence[str], num_read: Mapping[int, int]) -> Part:
    """Whole or not at all: a part that exists is complete."""
    told = {"notes": json.dumps(list(notes)), "num_read": json.dumps(dict(num_read))}
    schema = batch.schema.with_metadata(told)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(staging), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            file.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    return Part(path, tuple(notes), dict(num_read), batch.num_rows)


def open_part(path: Path) -> Part | None:
    """A part written earlier, or None where there is none or it cannot be read."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if not reader.schema.equals(SCHEMA) or reader.num_record_batches != 1:
                return None
            metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            num_rows = reader.get_batch(0).num_rows
        num_read = {int(source): count for source, count in json.loads(metadata["num_read"]).items()}
        return Part(path, tuple(json.loads(metadata["notes"])), num_read, num_rows)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def rows_with(parts: Sequence[Part], columns: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
    """(row, its values in the named columns) for rows numbered over all parts, in ascending order."""
    wanted = sorted(set(rows))
    start = at = 0
    for part in parts:
        here = []
        while at < len(wanted) and wanted[at] < start + part.num_rows:
            here.append(wanted[at] - start)
            at += 1
        if here:
            batch = part.read(columns)
            values = [batch[name].take(pa.array(here)).to_pylist() for name in columns]
            for offset, row in enumerate(here):
                yield start + row, [column[offset] for column in values]
        start += part.num_rows
