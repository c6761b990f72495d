"""The record of a preparation: counts by source, split and reason, with examples, and what they are enough for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from halo_forge.artifacts import ContaminationReport, Finding, PreparedData, RowExample, SourceReport, SplitReport
from halo_forge.config.schema import Config
from halo_forge.data.conversion.formats import Verdict
from halo_forge.data.decisions import Rows
from halo_forge.data.entries import Told
from halo_forge.data.ledger import NUM_EXAMPLES, Summary, Totals, redacted
from halo_forge.data.mix import MixPlan, MixReport, mix_report
from halo_forge.data.overlap.benchmark_items import Benchmark
from halo_forge.data.overlap.contamination import Hit, contamination_reports
from halo_forge.data.parts import rows_with
from halo_forge.data.reasons import REASONS, action_table
from halo_forge.data.rules.calls import calls_told
from halo_forge.data.rules.consistency import style_report
from halo_forge.runs import provenance, sha256_json

SIZES = (
    (100_000, "more still helps, with diminishing returns past a million for narrow tasks"),
    (10_000, "enough for a substantial change of behaviour; full fine-tuning is viable"),
    (1_000, "enough to specialise in a task"),
    (50, "enough for style or format by LoRA"),
    (1, "few: 50 to 500 is where style or format by LoRA starts to hold"),
)
"""Training conversations and what they are usually enough for (seed 004)."""


def prepared_record(
    config: Config, rows: Rows, summary: Summary, told: Sequence[Told], splits: Mapping[str, SplitReport],
    verdicts: Mapping[str, Verdict | None], inputs: dict[str, str],
) -> PreparedData:  # fmt: skip
    written = {f"written:{split.examples}": split.examples_sha256 for split in splits.values()}
    kept = rows.kept
    lengths = rows.columns["num_tokens"][kept]
    return PreparedData(
        provenance=provenance(sha256_json(config.to_dict()), inputs | written),
        sources=source_reports(rows, summary, verdicts, inputs), reasons=summary.reason_counts(), splits=dict(splits),
        ledger="data/ledger.jsonl", model_name=config.model.name, template_sha256=inputs["template"],
        tokenizer_sha256=inputs["tokenizer"], max_seq_length=config.data.max_seq_length,
        token_lengths=_percentiles(lengths), length_counts=_length_counts(lengths),
        findings=findings(config, summary, told), duplicates=rows.duplicates,
        advice=_size_advice(rows),
        languages=dict(Counter(word for word in rows.columns["language"][kept].tolist() if word).most_common(20)),
    )  # fmt: skip


def source_reports(
    rows: Rows, summary: Summary, verdicts: Mapping[str, Verdict | None], inputs: Mapping[str, str]
) -> tuple[SourceReport, ...]:
    reports: list[SourceReport] = []
    seen: Counter[str] = Counter()
    trained = rows.split == 0
    for at, source in enumerate(rows.sources):
        sha256 = inputs.get(f"{source.role}[{seen[source.role]}]", "")
        seen[source.role] += 1
        verdict, totals = verdicts.get(source.label), summary.by_file.get(source.label, Totals())
        mine = trained & (rows.source == at)
        reports.append(
            SourceReport(
                path=source.label, sha256=sha256, format=verdict.format if verdict else "unknown", read=totals.read,
                kept=totals.kept, fixed=totals.fixed, dropped=totals.dropped, name=source.name or "",
                loss_weight=source.loss_weight, train_rows=int(mine.sum()),
                train_tokens=int(rows.columns["num_tokens"][mine].sum()),
                train_supervised_tokens=int(rows.columns["num_supervised"][mine].sum()),
            )
        )  # fmt: skip
    return tuple(reports)


def findings(config: Config, summary: Summary, told: Sequence[Told]) -> tuple[Finding, ...]:
    """Every code that some row has, by kind and number of rows."""
    actions = action_table(config.data)
    counts = summary.reasons + summary.flagged
    examples: dict[str, list[RowExample]] = {}
    for item in told:
        for code in item.entry.all_codes:
            shown = examples.setdefault(code, [])
            if len(shown) < NUM_EXAMPLES:
                excerpt = redacted(item.found.get(code) or item.entry.excerpt)
                shown.append(RowExample(file=item.entry.file, line=item.entry.line, excerpt=excerpt))
    found = [
        Finding(
            code=code, meaning=REASONS[code].meaning, kind=REASONS[code].kind, action=actions[code], rows=num_rows,
            examples=tuple(examples.get(code, ())),
        )
        for code, num_rows in counts.items()
    ]  # fmt: skip
    kinds: list[str] = list(dict.fromkeys(reason.kind for reason in REASONS.values()))
    return tuple(sorted(found, key=lambda finding: (kinds.index(finding.kind), -finding.rows, finding.code)))


def mix_of(rows: Rows, config: Config) -> MixReport | None:
    """What each entry of data.sources gives to the training rows and to the loss."""
    entries = config.data.sources
    if not entries:
        return None
    entry_of = np.array([-1 if source.entry is None else source.entry for source in rows.sources], np.int32)
    mine, trained = entry_of[rows.source], rows.split == 0
    sampled_out = np.zeros(len(rows), bool)
    sampled_out[[row for row, (code, _) in rows.left_out.items() if code == "not_sampled"]] = True
    sums = [
        np.bincount(mine[chosen & (mine >= 0)], weights=weights[chosen & (mine >= 0)], minlength=len(entries))
        for chosen, weights in (
            (rows.kept | sampled_out, np.ones(len(rows))),
            (rows.kept, np.ones(len(rows))),
            (trained, np.ones(len(rows))),
            (trained, rows.columns["num_tokens"]),
            (trained, rows.columns["num_supervised"]),
        )
    ]
    available, taken, train_rows, tokens, supervised = ([int(value) for value in total] for total in sums)
    return mix_report(entries, available, MixPlan(tuple(taken)), train_rows, tokens, supervised)


def contamination(rows: Rows, benchmarks: Sequence[Benchmark]) -> tuple[ContaminationReport, ...]:
    """What each benchmark has in common with the training rows."""
    flagged: list[int] = np.flatnonzero(rows.columns["is_hit"]).tolist()
    hits = [
        (rows.sources[rows.source[row]].label, int(rows.columns["line"][row]), Hit(**json.loads(hit)))
        for row, (hit,) in rows_with(rows.parts, ["hit"], flagged)
    ]
    return contamination_reports(benchmarks, hits, redacted)


def flag_notes(summary: Summary) -> list[str]:
    return [
        f"{count} row{'s' if count > 1 else ''} kept with a flag, {code}: {REASONS[code].meaning}"
        for code, count in sorted(summary.flagged.items())
    ]


def style_notes(rows: Rows) -> list[str]:
    """What is not uniform in the answers that may be trained, source by source."""
    tokens, lines = rows.columns["num_tokens"], rows.columns["line"]
    told = style_report(
        rows.columns["style"].astype(np.uint32), np.where(rows.kept & (rows.role == 0), rows.source, -1),
        [source.label for source in rows.sources], lambda row: f"line {lines[row]}", tokens if tokens.any() else None,
    )  # fmt: skip
    return [f"style: {sentence}" for sentence in told]


def call_notes(rows: Rows) -> list[str]:
    """What the rows that may be trained do with tools."""
    return list(calls_told(rows.columns["calls"][rows.kept & (rows.role == 0)]))


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    if not len(lengths):
        return {}
    p50, p95 = np.percentile(lengths, [50, 95])
    return {"min": int(lengths.min()), "p50": int(p50), "p95": int(p95), "max": int(lengths.max())}


def _length_counts(lengths: np.ndarray) -> dict[str, int]:
    """Rows per power of two of tokens: {"64-127": 12}."""
    if not len(lengths) or not lengths.max():
        return {}
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    return {
        f"{2**power}-{2 ** (power + 1) - 1}": int(count)
        for power, count in zip(*np.unique(powers, return_counts=True), strict=True)
    }


def _size_advice(rows: Rows) -> str:
    """What this many training conversations are usually enough for."""
    num_rows = int(((rows.split == 0) & ~rows.columns["is_document"].astype(bool)).sum())
    advice = next((text for size, text in SIZES if num_rows >= size), None)
    return f"{num_rows} training row{'s' if num_rows != 1 else ''}: {advice}" if advice else ""
