"""What was found in the rows, grouped by kind, with a few rows for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from halo_forge.artifacts import Finding
from halo_forge.report.ledger_digest import CodeRows
from halo_forge.report.read_run import RunFiles
from halo_forge.report.row_totals import KINDS, kind_of, recorded_findings
from halo_forge.report.visible import cut, cut_path

MAX_EXAMPLES = 5
MAX_ALL_EXAMPLES = 100
MAX_FINDINGS = 80
EXCERPT_CHARS = 130
MEANING_CHARS = 160
DONE = {
    "keep": "kept", "fix": "mended", "skip": "left out", "quarantine": "put aside",
    "kept": "kept", "fixed": "mended", "dropped": "left out",
}  # fmt: skip
UNWANTED = ("contamination", "privacy", "quality", "duplicate")
"""Kinds whose rows deserve a second look where they were kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    place: str
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingView:
    code: str
    meaning: str
    tone: str
    done: str
    rows: int
    examples: tuple[ShownRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingGroup:
    kind: str
    title: str
    meaning: str
    findings: tuple[FindingView, ...]


def _found(files: RunFiles) -> list[tuple[str, FindingView]]:
    """(kind, finding), most rows first. Without findings in the record, the ledger alone tells: by what was done."""
    found: list[tuple[str, FindingView]] = []
    if recorded := recorded_findings(files):
        for finding in recorded:
            found.append((kind_of(finding.kind), _finding_view(finding, files.ledger.codes.get(finding.code))))
    else:
        for code, rows in files.ledger.codes.items():
            found += _views_from_ledger(code, rows)
    found.sort(key=lambda item: (-item[1].rows, item[1].code))
    return found[:MAX_FINDINGS]


def _finding_view(finding: Finding, rows: CodeRows | None) -> FindingView:
    """Examples from the ledger say what exactly was wrong in a row; the record's own have an excerpt of kept rows."""
    done = DONE.get(finding.action, finding.action)
    tone = "pass" if done == "mended" else "wait" if done == "kept" and finding.kind in UNWANTED else "none"
    shown = {row.place: (row.reason, row.excerpt) for row in rows.examples} if rows else {}
    for row in finding.examples:
        place = f"{row.file}:{row.line}"
        reason, excerpt = shown.get(place, ("", ""))
        shown[place] = (reason, excerpt or row.excerpt)
    examples = [_shown(place, reason, excerpt, finding.meaning) for place, (reason, excerpt) in shown.items()]
    examples.sort(key=lambda row: not row.excerpt)
    return FindingView(
        code=cut(finding.code, 80), meaning=cut(finding.meaning, MEANING_CHARS), tone=tone, done=cut(done, 40),
        rows=finding.rows, examples=tuple(examples[: min(MAX_EXAMPLES, finding.rows)]),
    )  # fmt: skip


def _views_from_ledger(code: str, rows: CodeRows) -> list[tuple[str, FindingView]]:
    views = []
    for action, kind in (("dropped", "out"), ("fixed", "mended"), ("kept", "flag")):
        if not rows.actions[action]:
            continue
        told = [row for row in rows.examples if row.action == action]
        meaning = told[0].reason if told else ""
        same = all(row.reason == meaning for row in told)
        views.append(
            (
                kind,
                FindingView(
                    code=cut(code, 80),
                    meaning=cut(meaning, MEANING_CHARS) if same else "",
                    tone="pass" if action == "fixed" else "none",
                    done=DONE[action],
                    rows=rows.actions[action],
                    examples=tuple(_shown(row.place, row.reason, row.excerpt, meaning if same else "") for row in told),
                ),
            )
        )
    return views


def _shown(place: str, reason: str, excerpt: str, meaning: str) -> ShownRow:
    return ShownRow(
        place=cut_path(place),
        reason="" if reason == meaning else cut(reason, MEANING_CHARS),
        excerpt=cut(excerpt, EXCERPT_CHARS),
    )


def grouped_findings(files: RunFiles) -> tuple[FindingGroup, ...]:
    """By kind, in the order of KINDS; all examples together stay within what a page can carry."""
    findings = _found(files)
    most = max(1, min(MAX_EXAMPLES, MAX_ALL_EXAMPLES // max(len(findings), 1)))
    groups = []
    for kind, (title, meaning) in sorted(KINDS.items(), key=lambda item: item[0] != "out"):
        views = tuple(replace(view, examples=view.examples[:most]) for found, view in findings if found == kind)
        if views:
            groups.append(FindingGroup(kind=kind, title=title, meaning=meaning, findings=views))
    return tuple(groups)
