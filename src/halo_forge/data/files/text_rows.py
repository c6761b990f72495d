"""Plain text for continued pretraining: what one row of a .txt or .md file is.

A file is one document, or several where a line holds only `<|endoftext|>`, a form feed or, in .txt, `---` (in Markdown
that is a rule or front matter). A document longer than a passage is cut into passages of whole paragraphs, so that a
book is not one over-long row; a paragraph longer than a passage is cut between lines, then between words. A row is one
passage; nothing is left out but the white space between passages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from halo_forge.data.files.compressed import without_suffix
from halo_forge.data.files.json_rows import bounded_lines, encoding_problem, too_long
from halo_forge.data.files.rows import EXCERPT_SOURCE_CHARS, Row
from halo_forge.errors import RowError

BYTES_PER_TOKEN = 3
"""English and code take three bytes or more per token, Chinese about three in vocabularies made for it. A passage of
three bytes per allowed token therefore nearly always fits; one that does not meets the over-long policy."""
SEPARATORS = frozenset({"<|endoftext|>", "\f"})


def text_rows(path: str, stream: TextIO, max_passage_bytes: int) -> Iterator[Row]:
    """Passages as rows {"text": ...}; `line` is the passage's first line."""
    separators = SEPARATORS if without_suffix(path).endswith(".md") else SEPARATORS | {"---"}
    for line, text, problem, fixes in _passages(_paragraphs(stream, separators), max_passage_bytes):
        if problem:
            yield Row(path=path, line=line, problem=problem, raw=text[:EXCERPT_SOURCE_CHARS])
        else:
            raw = text[:EXCERPT_SOURCE_CHARS]
            yield Row(path=path, line=line, value={"text": text}, raw=raw, fixes=fixes)


Paragraph = tuple[int, str, RowError | None, tuple[str, ...]]
"""(first line, text or "" where a document ends, problem, fixes)"""


def _paragraphs(stream: TextIO, separators: frozenset[str]) -> Iterator[Paragraph]:
    lines: list[str] = []
    start, size, fixes = 1, 0, ()  # type: tuple[int, int, tuple[str, ...]]
    for number, line, cut in bounded_lines(stream):
        text = line.rstrip("\n")
        if number == 1 and text.startswith("\ufeff"):
            text, fixes = text[1:], ("bom_removed",)
        problem = too_long() if cut else encoding_problem(text)
        ends_document = text.strip(" \t") in separators
        if problem or ends_document or not text.strip() or size > 2**20:
            if lines:
                yield start, "\n".join(lines), None, fixes
                lines, size, fixes = [], 0, ()
            if problem:
                yield number, text, problem, ()
            elif ends_document:
                yield number, "", None, ()
        if not problem and not ends_document and text.strip():
            if not lines:
                start = number
            lines.append(text)
            size += len(text)
    if lines:
        yield start, "\n".join(lines), None, fixes


def _passages(paragraphs: Iterator[Paragraph], max_bytes: int) -> Iterator[Paragraph]:
    """Whole paragraphs gathered up to `max_bytes` of UTF-8, never across a document's end."""
    gathered: list[str] = []
    start, size, fixes = 1, 0, ()  # type: tuple[int, int, tuple[str, ...]]
    for line, text, problem, fixed in paragraphs:
        num_bytes = len(text.encode(errors="surrogateescape"))
        if gathered and (problem or not text or size + 2 + num_bytes > max_bytes):
            yield start, "\n\n".join(gathered), None, fixes
            gathered, size, fixes = [], 0, ()
        if problem:
            yield line, text, problem, ()
        elif num_bytes > max_bytes:
            for offset, piece in _pieces(text, max_bytes):
                yield line + offset, piece, None, fixed
                fixed = ()
        elif text:
            if not gathered:
                start = line
            gathered.append(text)
            size += num_bytes + 2
            fixes += fixed
    if gathered:
        yield start, "\n\n".join(gathered), None, fixes


def _pieces(text: str, max_bytes: int) -> Iterator[tuple[int, str]]:
    """(lines before it, piece): cut at the last line end, else the last space, else between two characters."""
    data = text.encode()
    start = num_lines = 0
    while start < len(data):
        end = len(data)
        if len(data) - start > max_bytes:
            window = data[start : start + max_bytes + 1]
            cut = window.rfind(b"\n")
            cut = cut if cut > 0 else window.rfind(b" ")
            end = start + (cut if cut > 0 else max_bytes)
            while data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        if data[start:end].strip():
            yield num_lines, data[start:end].decode()
        end += data[end : end + 1] in (b"\n", b" ")
        num_lines += data.count(b"\n", start, end)
        start = end
