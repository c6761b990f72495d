"""The data stage: files in, frozen splits out, with a ledger of every row.

    data/ledger.jsonl                     what became of each row
    data/<split>.conversations.jsonl      what is said; the holdout's is read-only
    data/<split>.examples.parquet         tokens and loss weights
    data/manifest.json                    PreparedData, written last: while it is missing, nothing is prepared

`provenance.inputs` holds what the stage was made from: `train[0]`, `holdout[0]`, ... (file contents), `data.<key>`
(settings), `template`, `tokenizer`, `code`; and, under `written:<file>`, the hashes of the example files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import PreparedData, SourceReport, SplitReport
from halo_forge.chat import ChatEncoder, template_sha256, tokenizer_sha256, write_conversations, write_examples
from halo_forge.config.schema import Config
from halo_forge.data.collect import (
    PROGRESS_ROWS,
    Collected,
    Source,
    bad_row,
    collect,
    list_sources,
    source_sha256,
)
from halo_forge.data.ledger import POLICY_CODES, Entry, check_totals, reason_counts, totals_by_file, write_ledger
from halo_forge.data.split import SPLITS, SplitName, assign
from halo_forge.errors import DataError, RowError, RunConflict
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

CODE_SCHEMA = 1
"""Raised when the same inputs give other files, so that old ones are not taken for current."""
MANIFEST, LEDGER = "data/manifest.json", "data/ledger.jsonl"
SETTINGS = (
    "format", "validation_split", "holdout_split", "max_samples", "max_seq_length", "overlong", "on_bad_row",
    "max_bad_fraction", "system_prompt", "train_on",
)  # fmt: skip
NUM_SHOWN_ROWS = 5
ENCODER_FLAGS = frozenset({"merged_boundary"})
"""Notes of the encoder that change nothing about what is said; its others (text left out, cut, respelled) do."""


def prepare(config: Config, run: RunDirectory, tokenizer: Any, notify: Notify = silent) -> PreparedData:
    """Turn the configured sources into tokenised train, validation and holdout splits inside the run directory.

    The same inputs again give the existing result. Raises DataError (unreadable file, too many bad rows, nothing to
    train on, changed split file), RunConflict (the directory holds splits made from other inputs).
    """
    sources = list_sources(config.data)
    inputs = _inputs(config, sources, tokenizer)
    if run.file(MANIFEST).exists():
        return _reused(run, inputs, notify)
    collected = collect(config, sources, notify, stop_at_bad_row=config.data.on_bad_row == "fail")
    _encode(collected, config, tokenizer, notify)
    notes = _assign_splits(collected, config)
    entries = [draft.entry() for draft in collected.drafts]
    try:
        _check_usable(entries, config)
    except DataError:
        write_ledger(run.file(LEDGER), entries)
        raise
    splits, written = _write_splits(collected, run)
    check_totals(entries, collected.num_read, {name: report.rows for name, report in splits.items()})
    write_ledger(run.file(LEDGER), entries)
    notes = [*collected.notes, *notes, *_size_advice(collected)]
    prepared = PreparedData(
        provenance=provenance(sha256_json(config.to_dict()), inputs | written),
        sources=_source_reports(sources, collected, entries, inputs),
        reasons=reason_counts(entries), splits=splits, ledger=LEDGER, model_name=config.model.name,
        template_sha256=inputs["template"], tokenizer_sha256=inputs["tokenizer"],
        max_seq_length=config.data.max_seq_length, token_lengths=_token_lengths(collected), notes=tuple(notes),
    )  # fmt: skip
    write_artifact(run.file(MANIFEST), prepared)
    for note in notes[len(collected.notes) :]:
        notify("note", {"text": note})
    for report in prepared.sources:
        fields = ("path", "format", "read", "kept", "fixed", "dropped")
        notify("data.source", {name: getattr(report, name) for name in fields})
    return prepared


def load_prepared(run: RunDirectory) -> PreparedData:
    """The manifest of a prepared run, once every split file has the hash that it names.

    Raises DataError where nothing is prepared, or where a file was changed, cut or removed since.
    """
    prepared = read_artifact(run.file(MANIFEST), PreparedData)
    for report in prepared.splits.values():
        expected = {
            report.conversations: report.sha256,
            report.examples: prepared.provenance.inputs.get(f"written:{report.examples}", ""),
        }
        for name, sha256 in expected.items():
            found = sha256_file(run.file(name)) if run.file(name).is_file() else "no such file"
            if found != sha256:
                raise DataError(
                    f"{Path(name).name} changed after it was frozen: found {found}",
                    where=str(run.file(name)),
                    expected=f"sha256 {sha256}",
                    fix="restore the file, or start a new run with another --output; results on changed rows "
                    "cannot be compared",
                )
    return prepared


# ---------------------------------------------------------------------------------------------- inputs


def _inputs(config: Config, sources: list[Source], tokenizer: Any) -> dict[str, str]:
    """Everything that the result depends on, name -> sha256."""
    inputs: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for source in sources:
        inputs[f"{source.role}[{seen[source.role]}]"] = source_sha256(source, config.data)
        seen[source.role] += 1
    settings = config.data.model_dump(mode="json", include=set(SETTINGS))
    inputs |= {f"data.{key}": sha256_json(settings[key]) for key in SETTINGS}
    inputs["template"], inputs["tokenizer"] = template_sha256(tokenizer), tokenizer_sha256(tokenizer)
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


def _encode(collected: Collected, config: Config, tokenizer: Any, notify: Notify) -> None:
    """Tokens for every kept row; what the encoder refuses becomes a dropped row, what it mends a fixed one."""
    data = config.data
    encoder = ChatEncoder(
        tokenizer, max_seq_length=data.max_seq_length, train_on=data.train_on, overlong=data.overlong
    )  # fmt: skip
    for number, draft in enumerate(collected.kept(), start=1):
        assert draft.conversation is not None
        try:
            encoded = encoder.encode(draft.conversation)
        except RowError as problem:
            draft.problem = problem
            if data.on_bad_row == "fail" and problem.code not in POLICY_CODES:
                raise bad_row(draft) from None
            continue
        draft.example = encoded.example
        draft.flags += tuple(note for note in encoded.notes if note in ENCODER_FLAGS)
        draft.fixes += tuple(note for note in encoded.notes if note not in ENCODER_FLAGS)
        if number % PROGRESS_ROWS == 0:
            notify("data.progress", {"rows": number, "stage": "encode"})


def _assign_splits(collected: Collected, config: Config) -> list[str]:
    """Give every kept row its split; returns what should be said about it."""
    data = config.data
    pool = [draft for draft in collected.kept() if draft.role == "train"]
    splits, helped = assign(
        (draft.prompt_key for draft in pool),
        0.0 if data.validation_file else data.validation_split,
        0.0 if data.holdout_file else data.holdout_split,
    )
    for draft in collected.kept():
        draft.split = splits[draft.prompt_key] if draft.role == "train" else draft.role
    return [
        f"{name}: no row fell into its share by hash, so it got the one with the nearest hash; more rows mend this"
        for name in helped
    ]


def _check_usable(entries: list[Entry], config: Config) -> None:
    limit = config.data.max_bad_fraction
    bad = [entry for entry in entries if entry.is_damage]
    if not any(entry.split == "train" for entry in entries):
        raise DataError(
            "nothing to train on: " + (_worst(entries) or "the sources hold no rows"),
            where=entries[0].file if entries else None,
            expected="at least one usable row in the training files",
        )
    if len(bad) > limit * len(entries):
        shown = "\n".join(
            f"  {entry.file}:{entry.line}: {entry.reason} ({entry.codes[0]})" for entry in bad[:NUM_SHOWN_ROWS]
        )
        raise DataError(
            f"{len(bad)} of {len(entries)} rows cannot be used ({len(bad) / len(entries):.1%}; "
            f"data.max_bad_fraction allows {limit:.1%})\n{shown}",
            where=bad[0].file,
            fix=f"mend the rows (data/ledger.jsonl lists them), or allow more: "
            f"--set data.max_bad_fraction={min(1.0, len(bad) / len(entries) + 0.01):.2f}",
        )


def _worst(entries: Iterable[Entry]) -> str:
    dropped = [entry for entry in entries if entry.action == "dropped"]
    counts = Counter(code for entry in dropped for code in entry.codes)
    examples = {entry.codes[0]: f"{entry.file}:{entry.line}" for entry in reversed(dropped)}
    return ", ".join(f"{count} {code} (first: {examples[code]})" for code, count in counts.most_common())


def _write_splits(collected: Collected, run: RunDirectory) -> tuple[dict[str, SplitReport], dict[str, str]]:
    """Write conversations and examples of every split, also of an empty one: (reports, hashes of example files)."""
    run.file("data").mkdir(parents=True, exist_ok=True)
    reports: dict[str, SplitReport] = {}
    written: dict[str, str] = {}
    for name in SPLITS:
        reports[name], examples_sha256 = _write_split(name, collected, run)
        written[f"written:{reports[name].examples}"] = examples_sha256
    return reports, written


def _write_split(name: SplitName, collected: Collected, run: RunDirectory) -> tuple[SplitReport, str]:
    drafts = [draft for draft in collected.kept() if draft.split == name]
    conversations = [draft.conversation for draft in drafts if draft.conversation is not None]
    examples = [draft.example for draft in drafts if draft.example is not None]
    if len(conversations) != len(examples):
        raise DataError(f"{len(conversations)} conversations but {len(examples)} examples", where=name)
    names = f"data/{name}.conversations.jsonl", f"data/{name}.examples.parquet"
    for file in names:
        run.file(file).unlink(missing_ok=True)  # left by a stopped run, and the holdout's is read-only
    sha256 = write_conversations(run.file(names[0]), conversations)
    examples_sha256 = write_examples(run.file(names[1]), examples)
    if name == "holdout":
        os.chmod(run.file(names[0]), 0o444)
    report = SplitReport(
        rows=len(examples), tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.num_supervised_tokens for example in examples), sha256=sha256,
        conversations=names[0], examples=names[1],
    )  # fmt: skip
    return report, examples_sha256


# ---------------------------------------------------------------------------------------------- the report


def _source_reports(
    sources: list[Source], collected: Collected, entries: list[Entry], inputs: dict[str, str]
) -> tuple[SourceReport, ...]:
    totals = totals_by_file(entries)
    reports: list[SourceReport] = []
    seen: Counter[str] = Counter()
    for source in sources:
        sha256 = inputs[f"{source.role}[{seen[source.role]}]"]
        seen[source.role] += 1
        verdict, counts = collected.verdicts.get(source.label), totals.get(source.label)
        reports.append(
            SourceReport(
                path=source.label,
                sha256=sha256,
                format=verdict.format if verdict else "unknown",
                read=counts.read if counts else 0,
                kept=counts.kept if counts else 0,
                fixed=counts.fixed if counts else 0,
                dropped=counts.dropped if counts else 0,
            )
        )
    return tuple(reports)


def _token_lengths(collected: Collected) -> dict[str, int]:
    lengths = np.array([len(draft.example.input_ids) for draft in collected.kept() if draft.example is not None])
    p50, p95 = np.percentile(lengths, [50, 95])
    return {"min": int(lengths.min()), "p50": int(p50), "p95": int(p95), "max": int(lengths.max())}


def _size_advice(collected: Collected) -> list[str]:
    """What this many training conversations are usually enough for."""
    num_rows = sum(
        draft.split == "train" and draft.conversation is not None and draft.conversation.messages[0].role != "document"
        for draft in collected.kept()
    )
    sizes = (
        (100_000, "more still helps, with diminishing returns past a million for narrow tasks"),
        (10_000, "enough for a substantial change of behaviour; full fine-tuning is viable"),
        (1_000, "enough to specialise in a task"),
        (50, "enough for style or format by LoRA"),
        (1, "few: 50 to 500 is where style or format by LoRA starts to hold"),
    )
    advice = next((text for size, text in sizes if num_rows >= size), None)
    return [f"{num_rows} training row{'s' if num_rows != 1 else ''}: {advice}"] if advice else []
