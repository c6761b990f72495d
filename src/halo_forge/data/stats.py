"""Figures of a prepared data set: per split and per source, from the record and the files that it names.

Lengths come from the example files as arrays. The conversation files are read line by line for turns and sources; a
line is parsed only where tool calls make that necessary, so a million rows take seconds and little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.artifacts import ContaminationReport, DuplicateReport, PreparedData
from halo_forge.chat import escape_controls, read_examples
from halo_forge.errors import DataError
from halo_forge.runs import RunDirectory, read_artifact

MANIFEST = "data/manifest.json"
PERCENTILES = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
LENGTH_COLUMNS = ("p5", "p50", "p95", "max")
TOP_FINDINGS = 8
MAX_SOURCES_IN_WORDS = 12
MAX_LANGUAGES_IN_WORDS = 8
SOURCE_CHARS = 28
DONE = {"keep": "kept", "fix": "mended", "skip": "left out", "quarantine": "put aside"}

# How `chat.store` begins a message and ends a line. Inside a JSON text every quotation mark is escaped, so text cannot
# imitate either; the arguments of a tool call can, and such lines are parsed.
_TURN = re.compile(rb'\{"role": "(?:user|assistant|tool|document)", "parts": \[')
_END = re.compile(rb'"source": \{"path": ("(?:[^"\\]|\\.)*"), "line": \d+\}\}\s*$')
_SIMPLE = b'"tools": [], "slices": '


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStats:
    """One split, or the kept rows of one source. `length_tokens` and `turns` map min, p5, ... max to a value; they are
    empty where there are no rows. A turn is a message that is not a system message."""

    rows: int
    tokens: int
    supervised_tokens: int
    length_tokens: dict[str, int]
    turns: dict[str, int]

    @property
    def supervised_share(self) -> float | None:
        return self.supervised_tokens / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingStats:
    code: str
    kind: str
    action: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataStats:
    """`findings` are the most frequent first; without findings in the record they are its reason counts."""

    read: int
    kept: int
    fixed: int
    dropped: int
    splits: dict[str, PartStats]
    sources: dict[str, PartStats]
    languages: dict[str, int]
    findings: tuple[FindingStats, ...]
    duplicates: DuplicateReport | None
    contamination: tuple[ContaminationReport, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. Examples of copies and repeats stay in the manifest."""
        return {
            **{name: getattr(self, name) for name in ("read", "kept", "fixed", "dropped")},
            "splits": {name: _part_to_dict(part) for name, part in self.splits.items()},
            "sources": {name: _part_to_dict(part) for name, part in self.sources.items()},
            "languages": dict(self.languages),
            "findings": [asdict(finding) for finding in self.findings],
            "duplicates": self.duplicates.model_dump(mode="json", exclude={"examples"}) if self.duplicates else None,
            "contamination": [report.model_dump(mode="json", exclude={"examples"}) for report in self.contamination],
            "advice": self.advice,
        }

    def words(self) -> str:
        """A table for a terminal: no colours, no control characters."""
        mended = f" ({self.fixed:,} of them mended)" if self.fixed else ""
        lines = [f"{self.read:,} rows read: {self.kept:,} kept{mended}, {self.dropped:,} left out"]
        lines += [self.advice] if self.advice else []
        lines += ["", *_table("split", self.splits)]
        if len(self.sources) > 1:
            shown = dict(sorted(self.sources.items(), key=lambda item: -item[1].rows)[:MAX_SOURCES_IN_WORDS])
            lines += ["", *_table("source", shown)]
            hidden = len(self.sources) - len(shown)
            lines += [f"... and {hidden:,} more sources (--json lists all)"] if hidden else []
        facts = [("languages", _language_words(self.languages)), ("copies", _copy_words(self.duplicates))]
        facts += [("benchmark", _benchmark_words(report)) for report in self.contamination]
        facts += [
            ("finding", f"{found.rows:,} {found.code} ({found.kind}): {DONE.get(found.action, found.action)}")
            for found in self.findings[:TOP_FINDINGS]
        ]
        told = [f"{name:<10} {text}" for name, text in facts if text]
        return "\n".join(escape_controls(line.replace("\n", " ")) for line in [*lines, *([""] if told else []), *told])


def data_stats(directory: Path) -> DataStats:
    """The figures of the run directory's prepared rows.

    Raises DataError where nothing is prepared, or where files and record do not belong together.
    """
    run = RunDirectory(directory)
    prepared = read_artifact(run.file(MANIFEST), PreparedData)
    names: dict[str, int] = {}
    splits: dict[str, PartStats] = {}
    columns: list[tuple[np.ndarray, ...]] = []
    for name, report in prepared.splits.items():
        store = read_examples(run.file(report.examples))
        turns, sources = _scan(run.file(report.conversations), names)
        if not len(store) == len(turns) == report.rows:
            raise DataError(
                f"{len(store)} examples, {len(turns)} conversations and {report.rows} rows in the record",
                where=str(run.file(report.conversations)),
                expected="the same number of each",
                fix="prepare the rows again with --fresh",
            )
        splits[name] = _part(store.lengths, store.num_supervised, turns)
        columns.append((store.lengths, store.num_supervised, turns, sources))
    totals = {name: sum(getattr(source, name) for source in prepared.sources) for name in _COUNTS}
    return DataStats(
        **totals,
        splits=splits,
        sources=_by_source(columns, list(names)),
        languages=dict(sorted(prepared.languages.items(), key=lambda item: (-item[1], item[0]))),
        findings=_findings(prepared),
        duplicates=prepared.duplicates,
        contamination=(*prepared.contamination, *([prepared.holdout_overlap] if prepared.holdout_overlap else [])),
        advice=prepared.advice,
    )


_COUNTS = ("read", "kept", "fixed", "dropped")


# ---------------------------------------------------------------------------------------------- reading


def _scan(path: Path, names: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Turns [rows] and source number [rows] of every conversation; `names` gives each source path its number."""
    turns: list[int] = []
    sources: list[int] = []
    known: dict[bytes, int] = {}
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                num_turns, quoted = _turns_and_source(line, f"{path}:{number}")
                if quoted not in known:
                    known[quoted] = names.setdefault(json.loads(quoted), len(names))
                turns.append(num_turns)
                sources.append(known[quoted])
    except OSError as error:
        raise DataError(
            f"the conversations cannot be read: {error.strerror}", where=str(path), fix="run the data stage again"
        ) from None
    return np.array(turns, np.int64), np.array(sources, np.int64)


def _turns_and_source(line: bytes, where: str) -> tuple[int, bytes]:
    """Number of turns, and the source path as JSON text."""
    end = _END.search(line)
    if end and _SIMPLE in line and b'"type": "call"' not in line:
        return len(_TURN.findall(line)), end[1]
    try:
        row = json.loads(line)
        num_turns = sum(message["role"] != "system" for message in row["messages"])
        return num_turns, json.dumps(str(row["source"]["path"])).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "this line is not a conversation record",
            where=where,
            expected=f"what the data stage writes ({type(error).__name__}: {error})",
            fix="run the data stage again",
        ) from None


# ---------------------------------------------------------------------------------------------- figures


def _by_source(columns: Sequence[tuple[np.ndarray, ...]], names: Sequence[str]) -> dict[str, PartStats]:
    """Rows of every source over all splits, one sort for all sources."""
    if not columns:
        return {}
    lengths, supervised, turns, sources = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(sources, kind="stable")
    borders = np.searchsorted(sources[order], np.arange(len(names) + 1))
    parts = {}
    for number, name in enumerate(names):
        rows = order[borders[number] : borders[number + 1]]
        parts[name] = _part(lengths[rows], supervised[rows], turns[rows])
    return parts


def _part(lengths: np.ndarray, supervised: np.ndarray, turns: np.ndarray) -> PartStats:
    return PartStats(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        supervised_tokens=int(supervised.sum()),
        length_tokens=_percentiles(lengths),
        turns=_percentiles(turns),
    )


def _percentiles(values: np.ndarray) -> dict[str, int]:
    """Values that stand in the data: the smallest one with at least that share of rows up to it."""
    if not len(values):
        return {}
    found = np.percentile(values, list(PERCENTILES.values()), method="inverted_cdf")
    return {name: int(value) for name, value in zip(PERCENTILES, found, strict=True)}


def _findings(prepared: PreparedData) -> tuple[FindingStats, ...]:
    found: Iterable[FindingStats] = (
        FindingStats(code=finding.code, kind=finding.kind, action=finding.action, rows=finding.rows)
        for finding in prepared.findings
    )
    if not prepared.findings:
        found = (
            FindingStats(code=code, kind="not recorded", action="see the ledger", rows=rows)
            for code, rows in prepared.reasons.items()
        )
    return tuple(sorted(found, key=lambda finding: (-finding.rows, finding.code)))


# ---------------------------------------------------------------------------------------------- words


def _part_to_dict(part: PartStats) -> dict[str, Any]:
    return {**asdict(part), "supervised_share": part.supervised_share}


def _table(title: str, parts: Mapping[str, PartStats]) -> list[str]:
    width = max([len(title), 10, *(min(len(name), SOURCE_CHARS) for name in parts)])
    heads = "".join(f"{name:>7}" for name in LENGTH_COLUMNS)
    lines = [
        f"{'':<{width}} {'':>10} {'':>14} {'':>8} {'tokens a row':>{7 * len(LENGTH_COLUMNS)}}",
        f"{title:<{width}} {'rows':>10} {'tokens':>14} {'trained':>8} {heads}  turns",
    ]
    for name, part in parts.items():
        shown = name if len(name) <= SOURCE_CHARS else "…" + name[1 - SOURCE_CHARS :]
        trained = "-" if part.supervised_share is None else f"{100 * part.supervised_share:.0f} %"
        lengths = "".join(f"{part.length_tokens[key]:>7,}" if part.rows else f"{'-':>7}" for key in LENGTH_COLUMNS)
        lines.append(
            f"{shown:<{width}} {part.rows:>10,} {part.tokens:>14,} {trained:>8} {lengths}  {_turn_words(part.turns)}"
        )
    return lines


def _turn_words(turns: Mapping[str, int]) -> str:
    """`2 (2-14)`: the median and the ends, where they differ."""
    if not turns:
        return "-"
    ends = f" ({turns['min']:,}-{turns['max']:,})" if turns["min"] != turns["max"] else ""
    return f"{turns['p50']:,}{ends}"


def _language_words(languages: Mapping[str, int]) -> str:
    shown = list(languages.items())[:MAX_LANGUAGES_IN_WORDS]
    rest = sum(languages.values()) - sum(rows for _, rows in shown)
    return ", ".join([*(f"{code} {rows:,}" for code, rows in shown), *([f"others {rest:,}"] if rest else [])])


def _copy_words(report: DuplicateReport | None) -> str:
    if report is None:
        return ""
    parts = [f"{report.exact:,} exact"]
    if report.near_threshold is not None:
        parts.append(f"{report.near:,} near (Jaccard from {report.near_threshold:g})")
    if report.semantic_threshold is not None:
        parts.append(f"{report.semantic:,} in meaning (cosine from {report.semantic_threshold:g})")
    across = f"; {report.across_sources:,} across sources" if report.across_sources else ""
    return ", ".join(parts) + across


def _benchmark_words(report: ContaminationReport) -> str:
    name = f"{report.benchmark} ({report.items:,} items)"
    counts = {"exact": report.exact, "near": report.near, "13-gram": report.ngram_13, "8-gram": report.ngram_8}
    found = ", ".join(f"{kind} {rows:,}" for kind, rows in counts.items() if rows)
    return f"{name}: {found or 'no row repeats it'}"
