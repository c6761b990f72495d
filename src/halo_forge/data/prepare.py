"""The data stage: files in, frozen splits out, with a ledger of every row.

    data/ledger.jsonl                     what became of each row
    data/quarantine.jsonl                 rows put aside whole, where data.policies or data.on_bad_row say so
    data/<split>.conversations.jsonl      what is said; the holdout's is read-only
    data/<split>.examples.arrow           tokens and loss weights
    data/manifest.json                    PreparedData, written last: while it is missing, nothing is prepared

The files are made in the prepared store (prepared_store.py) and placed here; the same inputs are prepared once.

`provenance.inputs` holds what the stage was made from: `train[0]`, `holdout[0]`, ... (file contents), `data.<key>`
(settings), `benchmark:<name>`, `template`, `tokenizer`, `code`; and, under `written:<file>`, the hashes of the files.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halo_forge.artifacts import PreparedData
from halo_forge.chat import template_sha256, tokenizer_sha256
from halo_forge.config.schema import Config
from halo_forge.data.decisions import Rows, decide
from halo_forge.data.entries import Told, write_ledger, write_quarantine
from halo_forge.data.holdout_overlap import overlap_note, overlap_with_holdout
from halo_forge.data.inputs import Inputs, Source, list_sources, num_read, row_sources, source_sha256
from halo_forge.data.ledger import LineWriter, Summary, check_totals
from halo_forge.data.overlap.benchmark_items import Benchmark, benchmarks_of
from halo_forge.data.overlap.contamination import BenchmarkIndex
from halo_forge.data.parts import Part
from halo_forge.data.prepared_report import call_notes, contamination, flag_notes, mix_of, prepared_record, style_notes
from halo_forge.data.prepared_store import PreparedSet, code_fingerprint, prepared_set
from halo_forge.data.reasons import action_table
from halo_forge.data.row_work import WorkOrder
from halo_forge.data.split_files import write_splits
from halo_forge.data.verdict import refuse_decided, refuse_part, refuse_unusable
from halo_forge.data.workers import PartMaker
from halo_forge.domains.media import open_media, settings_of
from halo_forge.errors import DataError, RunConflict
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    read_artifact,
    sha256_file,
    sha256_json,
    silent,
    write_artifact,
)

CODE_SCHEMA = 6
"""Raised when the same inputs give other files, so that a run directory's old ones are not taken for current."""
MANIFEST, LEDGER, QUARANTINE = "data/manifest.json", "data/ledger.jsonl", "data/quarantine.jsonl"
UNREAD_SETTINGS = frozenset({"train_file", "dataset", "validation_file", "holdout_file", "num_workers"})
"""Settings of the data section that say where rows are and how fast, not what becomes of them."""


def prepare(
    config: Config,
    run: RunDirectory,
    tokenizer: Any,
    notify: Notify = silent,
    check: Callable[[], None] = lambda: None,
) -> PreparedData:
    """Turn the configured sources into tokenised train, validation and holdout splits inside the run directory.

    The same inputs again give the existing result. `check` is called between batches and may raise (a signal came);
    the next call goes on from there. Raises DataError (unreadable file, too many bad rows, nothing to train on,
    changed split file), RunConflict (the directory holds splits made from other inputs).
    """
    sources, benchmarks = list_sources(config.data), benchmarks_of(config.data)
    inputs = _inputs(config, sources, benchmarks, tokenizer)
    if run.file(MANIFEST).exists():
        return _reused(run, inputs, notify)
    labels = [source.label for source in sources]
    with prepared_set(sha256_json([inputs, labels, code_fingerprint()]), notify) as kept:
        stored = _stored(kept)
        if stored is None:
            stored = _Preparation(config, sources, benchmarks, inputs, tokenizer, notify, check).make(kept, run)
        else:
            notify("note", {"text": "the same rows were prepared before; their splits are taken from the store"})
        for name in [*_hashes(stored), "ledger.jsonl", "quarantine.jsonl"]:
            kept.place(name, run.file(f"data/{name}"))
    os.chmod(run.file(stored.splits["holdout"].conversations), 0o444)
    made_from = provenance(sha256_json(config.to_dict()), stored.provenance.inputs)
    prepared = stored.model_copy(update={"provenance": made_from})
    write_artifact(run.file(MANIFEST), prepared)
    for report in prepared.sources:
        fields = ("path", "format", "read", "kept", "fixed", "dropped")
        notify("data.source", {name: getattr(report, name) for name in fields})
    return prepared


def load_prepared(run: RunDirectory) -> PreparedData:
    """The manifest of a prepared run, once every split file has the hash that it names.

    Raises DataError where nothing is prepared, or where a file was changed, cut or removed since.
    """
    prepared = read_artifact(run.file(MANIFEST), PreparedData)
    for name, sha256 in _hashes(prepared).items():
        path = run.file(f"data/{name}")
        found = sha256_file(path) if path.is_file() else "no such file"
        if found != sha256:
            raise DataError(
                f"{name} changed after it was frozen: found {found}",
                where=str(path),
                expected=f"sha256 {sha256}",
                fix="restore the file, or start a new run with another --output; results on changed rows "
                "cannot be compared",
            )
    return prepared


def _hashes(prepared: PreparedData) -> dict[str, str]:
    """File name -> sha256 of everything that the record names, but the ledger, which people may edit."""
    files = {Path(report.conversations).name: report.sha256 for report in prepared.splits.values()}
    return files | {Path(report.examples).name: report.examples_sha256 for report in prepared.splits.values()}


def _stored(kept: PreparedSet) -> PreparedData | None:
    if not kept.manifest.exists():
        return None
    stored = read_artifact(kept.manifest, PreparedData)
    if kept.is_intact(_hashes(stored) | {"ledger.jsonl": stored.provenance.inputs[f"written:{LEDGER}"]}):
        return stored
    kept.discard()
    return None


# ---------------------------------------------------------------------------------------------- inputs


def _inputs(config: Config, sources: list[Source], benchmarks: list[Benchmark], tokenizer: Any) -> dict[str, str]:
    """Everything that the result depends on, name -> sha256."""
    inputs: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for source in sources:
        inputs[f"{source.role}[{seen[source.role]}]"] = source_sha256(source, config.data)
        seen[source.role] += 1
    settings = config.data.model_dump(mode="json", exclude=set(UNREAD_SETTINGS))
    inputs |= {f"data.{key}": sha256_json(value) for key, value in settings.items()}
    inputs |= {f"benchmark:{found.name}": found.sha256 for found in benchmarks}
    inputs["template"], inputs["tokenizer"] = template_sha256(tokenizer), tokenizer_sha256(tokenizer)
    if settings := settings_of(open_media(config, tokenizer)):
        inputs["media"] = sha256_json(settings)
    inputs["code"] = sha256_json(CODE_SCHEMA)
    return inputs


def _reused(run: RunDirectory, inputs: dict[str, str], notify: Notify) -> PreparedData:
    prepared = load_prepared(run)
    before = {name: value for name, value in prepared.provenance.inputs.items() if not name.startswith("written:")}
    different = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
    if different:
        raise RunConflict(
            f"this run directory holds splits made from other inputs; different: {', '.join(different)}",
            where=str(run.file(MANIFEST)),
            expected="the same files, data settings and tokenizer, because the holdout is frozen with them",
            fix="give another directory with --output",
        )
    notify("note", {"text": f"data already prepared from the same inputs: {run.file(MANIFEST)}"})
    return prepared


# ------------------------------------------------------------------------------------------- rows to splits


class _Preparation:
    """One preparation on its way; `make` is the whole of it."""

    def __init__(
        self, config: Config, sources: list[Source], benchmarks: list[Benchmark], inputs: dict[str, str],
        tokenizer: Any, notify: Notify, check: Callable[[], None],
    ) -> None:  # fmt: skip
        self.config, self.sources, self.benchmarks, self.inputs = config, sources, benchmarks, inputs
        self.tokenizer, self.notify, self.check = tokenizer, notify, check
        self.actions = action_table(config.data)
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        self.notes.append(text)
        self.notify("note", {"text": text})

    def make(self, kept: PreparedSet, run: RunDirectory) -> PreparedData:
        started = time.monotonic()
        read = Inputs(self.sources, self.config.data, self.say)
        with self._workers(read, kept) as workers:
            parts = self._parts(workers, read)
            rows = Rows.of(parts, self.sources)
            decide(rows, self.config.data, self.actions, self.notify)
            splits_written = workers.beside(
                write_splits, parts, rows.split, [source.name or "" for source in self.sources], kept.path
            )
            overlap_found = (
                None
                if self.config.data.holdout_file
                else workers.beside(overlap_with_holdout, parts, rows.split, [source.label for source in self.sources])
            )
            summary, told = self._ledger(rows, kept, run)
            splits = splits_written()
            overlap = overlap_found() if overlap_found else None
        check_totals(summary, num_read(parts, self.sources), {name: split.rows for name, split in splits.items()})
        mix = mix_of(rows, self.config)
        shared = overlap_note(overlap, splits["train"].rows, splits["holdout"].rows)
        for note in [
            *rows.notes,
            *(mix.notes if mix else ()),
            *style_notes(rows),
            *call_notes(rows),
            *flag_notes(summary),
            shared,
        ]:
            if note:
                self.say(note)
        prepared = prepared_record(self.config, rows, summary, told, splits, read.verdicts, self.inputs)
        if self.benchmarks:
            prepared = prepared.model_copy(update={"contamination": contamination(rows, self.benchmarks)})
        if prepared.advice:
            self.say(prepared.advice)
        time_s = round(time.monotonic() - started, 3)
        prepared = prepared.model_copy(
            update={"holdout_overlap": overlap, "notes": tuple(self.notes), "prepare_time_s": time_s}
        )
        write_artifact(kept.manifest, prepared)
        shutil.rmtree(kept.parts, ignore_errors=True)
        return prepared

    def _workers(self, read: Inputs, kept: PreparedSet) -> PartMaker:
        data = self.config.data
        kept.parts.mkdir(exist_ok=True)
        order = WorkOrder(
            data=data, actions=self.actions, tokenizer=self.tokenizer, media=open_media(self.config, self.tokenizer),
            benchmarks=BenchmarkIndex.build(self.benchmarks) if self.benchmarks else None,
        )  # fmt: skip
        return PartMaker(kept.parts, order, row_sources(read), data.num_workers, self.notify, self.check)

    def _parts(self, workers: PartMaker, read: Inputs) -> list[Part]:
        parts = []
        for part in workers.parts(read.batches()):
            refuse_part(part, self.sources, self.actions)
            parts.append(part)
        for note in dict.fromkeys(note for part in parts for note in part.notes):
            self.say(note)
        return parts

    def _ledger(self, rows: Rows, kept: PreparedSet, run: RunDirectory) -> tuple[Summary, list[Told]]:
        """Write the ledger and what is quarantined. A refusal leaves both in the run directory, to be looked into."""
        ledger, quarantine = LineWriter(kept.path / "ledger.jsonl"), LineWriter(kept.path / "quarantine.jsonl")
        summary, told = write_ledger(rows, ledger)
        write_quarantine(rows, self.actions, quarantine)
        self.inputs[f"written:{LEDGER}"] = ledger.close()
        self.inputs[f"written:{QUARANTINE}"] = quarantine.close()
        try:
            refuse_decided(rows, summary, self.actions)
            refuse_unusable(summary, self.config, self.sources[0].label)
        except DataError:
            kept.place("ledger.jsonl", run.file(LEDGER))
            kept.place("quarantine.jsonl", run.file(QUARANTINE))
            raise
        return summary, told
