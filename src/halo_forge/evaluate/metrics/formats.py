"""The form of an answer: the user's regular expression, and Markdown that is closed and whole.

Any text is Markdown by CommonMark, so `markdown_problems` asks for what a writer meant: a fence that is opened is
closed, a table's rows have its header's cells, a link's brackets and the bold marks of a paragraph are closed.
"""

from __future__ import annotations

import re

import regex

from halo_forge.errors import UsageError

REGEX_TIMEOUT_S = 1.0
"""An expression that takes longer on one answer backtracks without end."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
_DELIMITER = re.compile(r"^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_HEADING_WITHOUT_SPACE = re.compile(r"^#{2,6}[^#\s]")
_OPEN_LINK = re.compile(r"\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)|(\]\()")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", re.S)
_ESCAPED = re.compile(r"\\.", re.S)
_BOLD = re.compile(r"(?<!\w)\*\*(?=\S)|(?<=\S)\*\*(?!\w)")  # not between letters, as in 2**3
_RULE = re.compile(r"^\s*(?:\*\s*){3,}$", re.M)
MARKS = re.compile(
    r"^(?:#{1,6}\s|\s*[-*+]\s+\S|\s*\d+[.)]\s|>|\s{0,3}(?:```|~~~)|\|)|\*\*\S|\]\(|(?<!`)`[^`\n]+`", re.M
)
"""Any mark of Markdown."""


def compile_pattern(text: str) -> regex.Pattern[str]:
    """evaluation.regex, compiled. UsageError when it is no regular expression."""
    try:
        return regex.compile(text)
    except regex.error as error:
        raise UsageError(
            f"evaluation.regex is no regular expression: {error}", where="evaluation.regex",
            fix="quote it in single quotes in YAML, so that backslashes stay",
        ) from None  # fmt: skip


def regex_match(text: str, pattern: regex.Pattern[str]) -> float:
    """1 when the expression is found anywhere in the answer; `^` and `$` tie it to the ends. TimeoutError where the
    expression takes longer than REGEX_TIMEOUT_S."""
    return float(pattern.search(text, timeout=REGEX_TIMEOUT_S) is not None)


def markdown_valid(text: str) -> float:
    return float(not markdown_problems(text))


def markdown_problems(text: str) -> list[str]:
    """What is open or torn, in words; empty when the Markdown is well-formed."""
    prose, problems = _without_fences(text)
    for paragraph in re.split(r"\n\s*\n", prose):
        lines = paragraph.split("\n")
        problems += _table_problems(lines)
        problems += [f"a heading without a space: {line[:20]}" for line in lines if _HEADING_WITHOUT_SPACE.match(line)]
        inline = _CODE_SPAN.sub(" ", _ESCAPED.sub(" ", paragraph))
        if "`" in inline:
            problems.append("an inline code span is not closed")
        if any(found.group(1) for found in _OPEN_LINK.finditer(inline)):
            problems.append("a link is not closed")
        if len(_BOLD.findall(_RULE.sub("", inline))) % 2:
            problems.append("bold is not closed")
    return problems


def _without_fences(text: str) -> tuple[str, list[str]]:
    """(the text outside of code fences, what is wrong with the fences)."""
    kept, fence = [], ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
        elif found and not (found[1][0] == "`" and "`" in found[2]):
            fence = found[1]
            kept.append("")
        else:
            kept.append(line)
    return "\n".join(kept), ["a code fence is not closed"] if fence else []


def _table_problems(lines: list[str]) -> list[str]:
    """Of a paragraph with a delimiter row (`|---|---|`): every row has as many cells as it."""
    for place, line in enumerate(lines):
        if place and "|" in line and "-" in line and _DELIMITER.match(line):
            cells = _num_cells(line)
            rows = [lines[place - 1], *(row for row in lines[place + 1 :] if "|" in row)]
            torn = sum(_num_cells(row) != cells for row in rows)
            return [f"{torn} rows of a table have other than its {cells} cells"] if torn else []
    return []


def _num_cells(line: str) -> int:
    inner = _CODE_SPAN.sub(" ", line.replace("\\|", " ")).strip().removeprefix("|").removesuffix("|")
    return inner.count("|") + 1
