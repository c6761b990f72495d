"""What the page says about the rows: where they went, what was found in them, and what would have stopped the run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from halo_forge.artifacts import ContaminationHit, ContaminationReport, DuplicateReport, SourceReport
from halo_forge.report.data_charts import Flow, Histogram, Segment, flow_chart, language_bar, length_histogram
from halo_forge.report.findings import EXCERPT_CHARS, FindingGroup, grouped_findings
from halo_forge.report.read_run import RunFiles
from halo_forge.report.row_totals import (
    CONTAMINATED,
    KINDS,
    OLD_ADVICE,
    WORDS_CHARS,
    data_verdict,
    dropped_by_kind,
    recorded_findings,
    totals,
)
from halo_forge.report.stop_rules import data_settings, stop_rules
from halo_forge.report.visible import cut, cut_path

MAX_HITS = 5
MAX_ALL_HITS = 30
MAX_SOURCES = 40
MAX_BENCHMARKS = 30
MAX_PAIRS = 6
MAX_NOTES = 20
MAX_ORIGINS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """`shown` are the largest files; the rest only counts. A column that no file fills is left away."""

    shown: tuple[SourceReport, ...]
    num_hidden: int
    has_tokens: bool
    has_weights: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkView:
    report: ContaminationReport
    num_leaks: int
    num_overlaps: int
    tone: str
    state: str
    examples: tuple[ContaminationHit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One thing that the prepared rows were made from."""

    name: str
    value: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPart:
    """The section as plain values. `is_stopped`: rows were read, and the stage ended without a result."""

    verdict: str
    is_stopped: bool
    flow: Flow | None
    sources: SourceTable
    groups: tuple[FindingGroup, ...]
    limits: tuple[str, ...]
    duplicates: DuplicateReport | None  # with the few pairs that are shown
    benchmarks: tuple[BenchmarkView, ...]
    num_benchmarks_hidden: int
    languages: tuple[Segment, ...]
    histogram: Histogram | None
    notes: tuple[str, ...]
    num_notes_hidden: int
    origins: tuple[Origin, ...]
    num_origins_hidden: int
    holdout_uses: str


def data_part(files: RunFiles, holdout_uses: str = "") -> DataPart | None:
    """None where no row was read. `holdout_uses` is a sentence on how often the holdout was looked at, if known."""
    prepared = files.prepared
    if prepared is None and not files.ledger.num_rows:
        return None
    benchmarks = _benchmarks(files)
    notes = [note for note in prepared.notes if not OLD_ADVICE.match(note)] if prepared else []
    origins = _origins(files)
    return DataPart(
        verdict=data_verdict(files),
        is_stopped=prepared is None,
        flow=_flow(files),
        sources=_source_table(prepared.sources if prepared else ()),
        groups=grouped_findings(files),
        limits=stop_rules(files),
        duplicates=_duplicates(prepared.duplicates) if prepared and prepared.duplicates else None,
        benchmarks=benchmarks[:MAX_BENCHMARKS],
        num_benchmarks_hidden=max(0, len(benchmarks) - MAX_BENCHMARKS),
        languages=language_bar(prepared.languages) if prepared else (),
        histogram=length_histogram(prepared.length_counts) if prepared else None,
        notes=tuple(cut(note, WORDS_CHARS) for note in notes[:MAX_NOTES]),
        num_notes_hidden=max(0, len(notes) - MAX_NOTES),
        origins=tuple(origins[:MAX_ORIGINS]),
        num_origins_hidden=max(0, len(origins) - MAX_ORIGINS),
        holdout_uses=_sentence(cut(holdout_uses, WORDS_CHARS)),
    )


# ---------------------------------------------------------------------------------------------- where rows went


def _flow(files: RunFiles) -> Flow | None:
    found = totals(files)
    left_out = [(kind, KINDS[kind][0].lower(), rows) for kind, rows in dropped_by_kind(files).items()]
    return flow_chart(found.kept - found.fixed, found.fixed, found.dropped, left_out)


def _source_table(sources: tuple[SourceReport, ...]) -> SourceTable:
    shown = sources
    if len(sources) > MAX_SOURCES:
        largest = sorted(range(len(sources)), key=lambda place: (-sources[place].read, place))[:MAX_SOURCES]
        shown = tuple(sources[place] for place in sorted(largest))
    return SourceTable(
        shown=tuple(
            source.model_copy(update={"path": cut_path(source.path), "name": cut(source.name, 80)}) for source in shown
        ),
        num_hidden=len(sources) - len(shown),
        has_tokens=any(source.train_tokens for source in sources),
        has_weights=any(source.loss_weight != 1 for source in sources),
    )


# ---------------------------------------------------------------------------------------------- copies, repeats


def _duplicates(report: DuplicateReport) -> DuplicateReport:
    """The least alike pairs first: they show what the threshold takes."""
    pairs = sorted(report.examples, key=lambda pair: pair.similarity)[:MAX_PAIRS]
    shown = tuple(
        pair.model_copy(
            update={
                "kept": cut_path(pair.kept),
                "dropped": cut_path(pair.dropped),
                "excerpt": cut(pair.excerpt, EXCERPT_CHARS),
            }
        )
        for pair in pairs
    )
    return report.model_copy(update={"examples": shown})


def _benchmarks(files: RunFiles) -> tuple[BenchmarkView, ...]:
    """The benchmarks; behind them the rows held out of the same files, where repeats are told and stay."""
    if files.prepared is None:
        return ()
    reports, own = files.prepared.contamination, files.prepared.holdout_overlap
    num_hits = max(1, min(MAX_HITS, MAX_ALL_HITS // max(len(reports), 1)))
    of_leaks = ("wait", "left out") if _leaks_are_left_out(files) else ("fail", "repeated")
    views = [_benchmark(report, of_leaks, num_hits) for report in reports]
    return (*views, *([_benchmark(own, ("wait", "overlaps"), num_hits)] if own else []))


def _benchmark(report: ContaminationReport, of_leaks: tuple[str, str], num_hits: int) -> BenchmarkView:
    leaks, overlaps = report.exact + report.near, report.ngram_13 + report.ngram_8
    tone, state = of_leaks if leaks else ("wait", "overlaps") if overlaps else ("pass", "clean")
    return BenchmarkView(
        report=report,
        num_leaks=leaks,
        num_overlaps=overlaps,
        tone=tone,
        state=state,
        examples=tuple(
            hit.model_copy(
                update={
                    "item": cut(hit.item, 80),
                    "excerpt": cut(hit.excerpt, EXCERPT_CHARS),
                    "file": cut_path(hit.file),
                }
            )
            for hit in report.examples[:num_hits]
        ),
    )


def _leaks_are_left_out(files: RunFiles) -> bool:
    actions = {finding.action for finding in recorded_findings(files) if finding.code == CONTAMINATED}
    return bool(actions) and actions <= {"skip", "quarantine"}


# ---------------------------------------------------------------------------------------------- origins


def _origins(files: RunFiles) -> list[Origin]:
    """What decides over the prepared rows: the inputs of the record, with a setting's value where it is known."""
    if files.prepared is None:
        return []
    settings = data_settings(files)
    rows = []
    for name, sha256 in files.prepared.provenance.inputs.items():
        key = name.removeprefix("data.")
        is_setting = key != name and key in settings
        value = json.dumps(settings[key], ensure_ascii=False, default=str) if is_setting else ""
        rows.append(Origin(name=cut(name, 100), value=cut(value.strip('"'), 160), sha256=cut(sha256, 80)))
    return rows


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "…")) or not words else ".")
