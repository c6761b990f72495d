"""From configuration to drafts: every row of every source, converted or with the reason why not.

Shared by `prepare`, which goes on to tokens, and `check`, which stops here and needs no model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from halo_forge.chat.records import Conversation, Example
from halo_forge.config.schema import Config, DataSection, RowFormat
from halo_forge.data.datasets_table import ADAPTERS, HubDataset, dataset_rows, find_dataset
from halo_forge.data.formats import DETECTED_ROWS, Verdict, convert, detect
from halo_forge.data.ledger import MEANINGS, Action, Entry
from halo_forge.data.rows import EXCERPT_SOURCE_CHARS, Row, Say, shown_path
from halo_forge.data.sources import expand_paths, read_rows
from halo_forge.data.split import SplitName
from halo_forge.data.text_rows import BYTES_PER_TOKEN
from halo_forge.errors import DataError, RowError, UsageError
from halo_forge.runs import Notify, sha256_file

PROGRESS_ROWS = 500
MAX_UNREADABLE_ROWS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file or data set. `role` is train where its rows are to be split, else the split that it fills."""

    role: SplitName
    label: str
    path: Path | None = None
    dataset: HubDataset | None = None


@dataclass(slots=True, kw_only=True)
class Draft:
    """One row on its way. `problem` set means dropped; `split` and `example` come last."""

    role: SplitName
    file: str
    line: int
    excerpt: str
    problem: RowError | None = None
    conversation: Conversation | None = None
    prompt_key: str = ""
    fixes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    split: SplitName | None = None
    example: Example | None = None

    def entry(self) -> Entry:
        if self.problem:
            said = (
                " ".join(turn.text[:EXCERPT_SOURCE_CHARS] for turn in self.conversation.messages[:3])
                if (self.conversation and not self.excerpt)
                else self.excerpt
            )
            return Entry(
                file=self.file, line=self.line, action="dropped", codes=(self.problem.code,),
                reason=self.problem.reason, excerpt=said[:EXCERPT_SOURCE_CHARS],
            )  # fmt: skip
        action: Action = "fixed" if self.fixes else "kept"
        codes = self.fixes or self.flags
        excerpt = self.excerpt if self.fixes else ""
        reason = "; ".join(MEANINGS.get(code, code) for code in codes)
        return Entry(
            file=self.file, line=self.line, action=action, codes=codes, reason=reason, split=self.split,
            excerpt=excerpt,
        )  # fmt: skip


@dataclass(slots=True)
class Collected:
    """`num_read` counts, per file, the rows that the readers yielded: the ledger is held against it."""

    drafts: list[Draft] = field(default_factory=list)
    verdicts: dict[str, Verdict | None] = field(default_factory=dict)
    num_read: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def kept(self) -> Iterator[Draft]:
        return (draft for draft in self.drafts if draft.problem is None)


def list_sources(data: DataSection) -> list[Source]:
    """Every input, in the order in which it is read. Raises UsageError where nothing was named, DataError where a
    file is missing."""
    names = [data.train_file] if isinstance(data.train_file, str) else list(data.train_file or [])
    if not names and not data.dataset:
        raise UsageError(
            "there is nothing to train on",
            where="data.train_file",
            expected="a file (--data FILE) or a data set (--dataset NAME)",
            fix="halo-forge sft datasets",
        )
    sources = [Source(role="train", label=shown_path(path), path=path) for path in expand_paths(names)]
    if data.dataset:
        dataset = find_dataset(data.dataset)
        sources.append(Source(role="train", label=dataset.label, dataset=dataset))
    extra: tuple[tuple[SplitName, str | None], ...] = (
        ("validation", data.validation_file), ("holdout", data.holdout_file)
    )  # fmt: skip
    for role, name in extra:
        if name:
            sources += [Source(role=role, label=shown_path(path), path=path) for path in expand_paths([name])]
    labels = Counter(source.label for source in sources)
    twice = next((label for label, count in labels.items() if count > 1), None)
    if twice:
        raise DataError("one file cannot be two splits", where=twice, expected="different files, or a share of one")
    return sources


def source_sha256(source: Source, data: DataSection) -> str:
    """Hash of a file's bytes, or of a data set's rows."""
    if source.path:
        return sha256_file(source.path)
    digest = hashlib.sha256()
    for row in _source_rows(source, data, lambda text: None):
        digest.update(json.dumps(row.value, sort_keys=True, default=str).encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()


def _source_rows(source: Source, data: DataSection, say: Say) -> Iterator[Row]:
    if source.dataset:
        return dataset_rows(source.dataset, data.max_samples)
    assert source.path is not None
    return read_rows(source.path, say, max_passage_bytes=BYTES_PER_TOKEN * data.max_seq_length)


def collect(config: Config, sources: list[Source], notify: Notify, *, stop_at_bad_row: bool) -> Collected:
    """Read and convert every row, and settle duplicates and overlap between files.

    Raises DataError for files that cannot be read and, with `stop_at_bad_row`, for the first row that cannot be used.
    """
    data, collected = config.data, Collected()
    left = data.max_samples

    def say(text: str) -> None:
        collected.notes.append(text)
        notify("note", {"text": text})

    for source in sources:
        limit = left if source.role == "train" else None
        for draft in _drafts(source, data, limit, collected, say):
            collected.drafts.append(draft)
            if draft.problem and stop_at_bad_row:
                raise bad_row(draft)
            if len(collected.drafts) % PROGRESS_ROWS == 0:
                notify("data.progress", {"rows": len(collected.drafts), "stage": "read"})
        if left is not None and source.role == "train":
            left -= collected.num_read[source.label]
    _drop_repeated(collected)
    _tell_flags(collected, say)
    return collected


def bad_row(draft: Draft) -> DataError:
    assert draft.problem is not None
    return DataError(
        f"{draft.problem.reason} ({draft.problem.code})",
        where=f"{draft.file}:{draft.line}",
        fix="mend the row, or set data.on_bad_row: skip to leave such rows out",
    )


def _drafts(source: Source, data: DataSection, limit: int | None, collected: Collected, say: Say) -> Iterator[Draft]:
    adapted = source.dataset is not None and (source.dataset.format or "") in ADAPTERS
    forced: RowFormat = "messages" if adapted else data.format
    counted = _counted(_source_rows(source, data, say), limit, collected.num_read, source.label)
    head = _head(counted)
    values = [row.value for row in head if row.value is not None]
    verdict = detect(source.label, values, forced) if values else None
    collected.verdicts[source.label] = verdict
    if not head and limit != 0:
        raise DataError("the file holds no rows", where=source.label)
    if verdict:
        say(verdict.render(source.label))
    for row in chain(head, counted):
        yield _draft(row, source, verdict.format if verdict else "text", data.system_prompt)


def _counted(rows: Iterator[Row], limit: int | None, num_read: Counter[str], label: str) -> Iterator[Row]:
    if limit == 0:
        return
    for row in rows:
        num_read[label] += 1
        yield row
        if limit is not None and num_read[label] >= limit:
            return


def _head(rows: Iterator[Row]) -> list[Row]:
    """Rows up to the 64th that could be read: what the format is told from."""
    head: list[Row] = []
    num_readable = 0
    for row in rows:
        head.append(row)
        num_readable += row.value is not None
        if num_readable == DETECTED_ROWS:
            break
        if len(head) == MAX_UNREADABLE_ROWS:
            first = head[0].problem
            raise DataError(
                f"none of the first {MAX_UNREADABLE_ROWS} rows can be read"
                + (f"; the first: {first.reason}" if first else ""),
                where=f"{row.path}:{head[0].line}",
            )
    return head


def _draft(row: Row, source: Source, format: RowFormat, system_prompt: str | None) -> Draft:
    draft = Draft(role=source.role, file=row.path, line=row.line, excerpt="", problem=row.problem)
    if row.problem is None:
        try:
            converted = convert(row, format, system_prompt)
        except RowError as problem:
            draft.problem = problem
        except UnicodeEncodeError:  # from readers other than ours; ours refuse such rows
            draft.problem = RowError("lone_surrogate", "half of a surrogate pair is no character")
        else:
            draft.conversation, draft.prompt_key = converted.conversation, converted.prompt_key
            draft.fixes, draft.flags = converted.fixes, converted.flags
    if draft.problem or draft.fixes:
        draft.excerpt = row.excerpt()
    return draft


def _drop_repeated(collected: Collected) -> None:
    """Of equal conversations the first stays. A prompt of the holdout file stands nowhere else, one of the validation
    file not among the training rows."""
    keys: dict[SplitName, set[str]] = {"validation": set(), "holdout": set(), "train": set()}
    for draft in collected.kept():
        keys[draft.role].add(draft.prompt_key)
    first: dict[tuple[SplitName, str], Draft] = {}
    for draft in collected.kept():
        assert draft.conversation is not None
        if draft.role != "holdout" and draft.prompt_key in keys["holdout"]:
            draft.problem = RowError("in_holdout", "its prompt stands in the holdout file")
        elif draft.role == "train" and draft.prompt_key in keys["validation"]:
            draft.problem = RowError("in_validation", "its prompt stands in the validation file")
        else:
            earlier = first.setdefault((draft.role, draft.conversation.id), draft)
            if earlier is not draft:
                draft.problem = RowError("duplicate", f"the same conversation as {earlier.file}:{earlier.line}")


def _tell_flags(collected: Collected, say: Say) -> None:
    flags = Counter(flag for draft in collected.kept() for flag in draft.flags)
    for flag, count in sorted(flags.items()):
        say(f"{count} row{'s' if count > 1 else ''} kept with a flag, {flag}: {MEANINGS[flag]}")
