"""Rows of CSV and TSV: a header line, the separator found by trying."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TextIO

from halo_forge.data.files.compressed import without_suffix
from halo_forge.data.files.json_rows import bounded_lines, encoding_problem, too_long
from halo_forge.data.files.rows import MAX_ROW_CHARS, Row, Say, checked_row
from halo_forge.errors import DataError, RowError

SEPARATORS = (",", ";", "\t", "|")
SNIFFED_LINES = 50


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of up to MAX_ROW_CHARS while one record is parsed. The limit is global to `csv`, so it is put back."""
    before = csv.field_size_limit(MAX_ROW_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _lines(stream: TextIO, head: list[str]) -> Iterator[str]:
    yield from head
    for _, line, cut in bounded_lines(stream):
        if cut:
            raise too_long("the record")
        yield line


def csv_rows(path: str, stream: TextIO, say: Say) -> Iterator[Row]:
    """One row per record, its columns named by the header line; `line` is where the record starts.

    `stream` must be opened with newline="" because quoted cells may hold line ends. Records with more or fewer cells
    than the header are problems, not rows with shifted columns, and so is the record after one that breaks off.
    """
    head = [line for _, line, cut in islice(bounded_lines(stream), SNIFFED_LINES) if not cut]
    fixes: tuple[str, ...] = ()
    if head and head[0].startswith("\ufeff"):
        head[0], fixes = head[0][1:], ("bom_removed",)
    separator = "\t" if without_suffix(path).endswith(".tsv") else sniffed_separator(head)
    reader = csv.reader(_lines(stream, head), delimiter=separator, strict=True)
    header = _header(path, reader)
    num_blank = 0
    broken_off = False
    while True:
        line = reader.line_num + 1
        try:
            with _long_cells():
                cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Row(path=path, line=line, problem=RowError("bad_csv", f"the record cannot be read: {error}"), raw="")
            continue
        except RowError as problem:
            yield Row(path=path, line=line, problem=problem, raw="")
            break  # the reader ended with its source of lines
        if not cells:
            num_blank += 1
            continue
        row = _record_row(path, line, header, cells, separator, fixes)
        if broken_off and row.problem is None:
            reason = "the record before it breaks off, and this may be its other half (a line end without quotes)"
            row = Row(path=path, line=line, problem=RowError("ragged_row", reason), raw=row.raw)
        yield row
        fixes, broken_off = (), len(cells) < len(header)
    if num_blank:
        say(f"{path}: passed over {num_blank} blank line{'s' if num_blank > 1 else ''}")


def _record_row(
    path: str, line: int, header: list[str], cells: list[str], separator: str, fixes: tuple[str, ...]
) -> Row:
    raw = separator.join(cells)
    problem = encoding_problem(raw)
    if problem is None and len(cells) != len(header):
        problem = RowError(
            "ragged_row",
            f"{len(cells)} cell{'s' if len(cells) != 1 else ''} where the header names {len(header)} columns",
        )
    if problem:
        return Row(path=path, line=line, problem=problem, raw=raw[:400])
    return checked_row(path, line, dict(zip(header, cells, strict=True)), raw[:400], fixes)


def _header(path: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        with _long_cells():
            header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise DataError("the file is empty", where=path, expected="a header line and rows") from None
    except (csv.Error, RowError) as error:
        raise DataError(f"the header line cannot be read: {error}", where=f"{path}:1") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        what = f"the header names {twice[0]!r} twice" if twice else "the header has a column without a name"
        raise DataError(what, where=f"{path}:1", expected="a first line that names every column once")
    return header


def sniffed_separator(lines: list[str]) -> str:
    """The separator under which most records have as many cells as the header; more columns win, then the comma."""

    def fitness(separator: str) -> tuple[float, int]:
        try:
            with _long_cells():
                records = [cells for cells in csv.reader(lines, delimiter=separator) if cells]
        except csv.Error:
            return (0.0, 0)
        if not records or len(records[0]) < 2:
            return (0.0, 0)
        num_equal = sum(len(cells) == len(records[0]) for cells in records)
        return (num_equal / len(records), len(records[0]))

    return max(SEPARATORS, key=fitness)
