"""From what the user names (files, directories, patterns) to rows: find the files, tell their kind, read them.

A file's kind is its extension's unless its first bytes say otherwise. What cannot be data at all (HTML error pages,
git-lfs pointers, UTF-16, archives, devices) is refused in words. `-` is standard input. A folder written by the
datasets library's save_to_disk is the Arrow files that it lists; one of sounds and transcripts (transcripts.py) is a
row a sound.
"""

from __future__ import annotations

import difflib
import glob
import io
import json
import os
import re
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, cast

from halo_forge.data.files.arrow_rows import arrow_rows, parquet_rows
from halo_forge.data.files.compressed import SUFFIXES, Peekable, opened, without_suffix
from halo_forge.data.files.json_rows import array_rows, object_rows
from halo_forge.data.files.raw_batches import ROWS_PER_BATCH, RawBatch, line_batches, row_batches, rows_of
from halo_forge.data.files.rows import MAX_ROW_CHARS, Row, Say, shown_path
from halo_forge.data.files.stdin import STDIN, spooled_stdin
from halo_forge.data.files.table_rows import csv_rows
from halo_forge.data.files.text_rows import text_rows
from halo_forge.data.files.transcripts import gathered_transcripts
from halo_forge.data.files.trees import gathered_trees, holds_tree_rows
from halo_forge.errors import DataError

Kind = Literal["jsonl", "array", "object", "csv", "parquet", "arrow", "text"]

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".md")
EXPECTED = f"JSONL, JSON, CSV, TSV, Parquet, Arrow, .txt or .md, plain or packed ({', '.join(SUFFIXES)})"
HEAD_BYTES = 2**12
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"
ARCHIVES = {
    b"PK\x03\x04": "a zip archive (or an Excel or Word file)",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x93NUMPY": "a numpy array",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
    b"GGUF": "a GGUF model",
    b"\x80\x04": "a Python pickle",
}


def expand_paths(names: Sequence[str]) -> list[Path]:
    """The files meant by a list of files, directories (all data files below, sorted) and patterns, each file once.

    Raises DataError for a name that leads nowhere, with the names that are close.
    """
    files: list[Path] = []
    for name in names:
        if name == STDIN:
            files.append(spooled_stdin())
            continue
        path = Path(name).expanduser()
        try:
            if path.is_dir():
                files.extend(_files_below(path))
            elif path.exists() or path.is_symlink() or not glob.has_magic(name):
                _check_regular(path)
                files.append(path)
            else:
                files.extend(_files_matching(name))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise DataError(f"this path cannot be opened: {error}", where=repr(name)) from None
    once: dict[str, Path] = {}
    for path in files:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values())


def _is_data_file(path: Path) -> bool:
    return without_suffix(path.name).endswith(EXTENSIONS) and path.is_file()


def _files_below(directory: Path) -> list[Path]:
    saved = saved_files(directory)
    if saved:
        return saved
    files = [
        path
        for path in sorted(directory.rglob("*"))
        if _is_data_file(path) and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if all(without_suffix(path.name).endswith((".txt", ".md")) for path in files):
        gathered = gathered_transcripts(directory)
        if gathered is not None:
            return [gathered]
    if not files:
        raise DataError("this directory holds no data files", where=shown_path(directory), expected=EXPECTED)
    return files


def saved_files(directory: Path) -> list[Path]:
    """The Arrow files of a folder that datasets' save_to_disk wrote; of its splits, the one called train."""
    try:
        if (directory / "dataset_dict.json").is_file():
            splits = json.loads((directory / "dataset_dict.json").read_bytes())["splits"]
            if "train" not in splits:
                raise DataError(
                    "this saved data set has no split called train",
                    where=shown_path(directory),
                    fix="name the folder of one split: " + ", ".join(shown_path(directory / name) for name in splits),
                )
            directory = directory / "train"
        if not (directory / "state.json").is_file():
            return []
        listed = json.loads((directory / "state.json").read_bytes())["_data_files"]
        names = [Path(entry["filename"]).name for entry in listed]
    except (ValueError, KeyError, TypeError):
        return []
    for name in names:
        _check_regular(directory / name)
    return [directory / name for name in names]


def _files_matching(pattern: str) -> list[Path]:
    files = [Path(name) for name in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
    files = [path for path in files if path.is_file()]
    if not files:
        raise DataError("no file matches this pattern", where=pattern, fix=f"ls {pattern}")
    return files


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        broken = " (a link to nowhere)" if path.is_symlink() else ""
        raise DataError(f"no such file{broken}", where=shown_path(path), **_nearest(path)) from None
    if not stat.S_ISREG(mode):
        raise DataError("this is a device, pipe or socket, not a file", where=shown_path(path), expected=EXPECTED)
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise DataError("this file may not be read", where=shown_path(path), fix=f"chmod u+r {shown_path(path)}")


def _nearest(path: Path) -> dict[str, str]:
    parent = path.parent
    if not parent.is_dir():
        return {"expected": f"there is no directory {shown_path(parent)} either"}
    names = sorted(entry.name for entry in parent.iterdir())
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if close:
        return {"fix": "did you mean " + " or ".join(shown_path(parent / name) for name in close) + "?"}
    data_files = [name for name in names if _is_data_file(parent / name)][:5]
    return {"expected": f"one of {', '.join(map(shown_path, data_files))}"} if data_files else {}


def kind_of(path: Path) -> tuple[Kind, str | None]:
    """(kind, what is unusual about it). Raises DataError for files that are not rows at all."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    _refuse_foreign(path, head)
    if head.startswith(b"PAR1"):
        return "parquet", None
    name = without_suffix(path.name)
    if head.startswith(ARROW_FILE) or (head.startswith(ARROW_STREAM) and name.endswith(".arrow")):
        return "arrow", None
    if name.endswith(".parquet"):
        raise DataError(
            "this is not a Parquet file",
            where=shown_path(path),
            expected="the bytes PAR1 at its start",
            fix="download it again",
        )
    if name.endswith((".arrow", ".feather")):
        raise DataError("this is not an Arrow file", where=shown_path(path), fix="write or download it again")
    if name.endswith((".csv", ".tsv")):
        return "csv", None
    if name.endswith((".txt", ".md")):
        return "text", None
    return _json_kind(path, name, head.removeprefix(b"\xef\xbb\xbf").lstrip())


def _json_kind(path: Path, name: str, start: bytes) -> tuple[Kind, str | None]:
    if start[:1] == b"[":
        first_line = start.split(b"\n", 1)[0].strip()
        if name.endswith(".json"):
            return "array", None
        if first_line == b"[" or first_line[1:].lstrip()[:1] == b"{":
            return "array", "is one JSON array, not one object per line; read as such"
    elif start[:1] != b"{" and not name.endswith((".jsonl", ".ndjson", ".json")):
        raise DataError(f"the kind of file is not clear from {path.name!r}", where=shown_path(path), expected=EXPECTED)
    if not name.endswith(".json"):
        return "jsonl", None
    if _is_one_object(path):
        return "object", None
    return "jsonl", "has one object per line; read as JSONL"


def _is_one_object(path: Path) -> bool:
    """Whether the file is one object rather than one per line (of which the first may be damaged)."""
    with opened(path) as file:
        line = file.readline(MAX_ROW_CHARS)
        following = next((more for more in iter(lambda: file.readline(MAX_ROW_CHARS), b"") if more.strip()), b"")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            goes_on = line.rstrip().endswith((b"[", b"{", b",", b":"))
            return goes_on or not following.startswith(b"{")
        return not following


def _refuse_foreign(path: Path, head: bytes) -> None:
    where = shown_path(path)
    if not head.strip(b" \t\r\n\xef\xbb\xbf") and len(head) < HEAD_BYTES:
        what = "the file is empty" if not head else "the file holds nothing but blank lines"
        raise DataError(what, where=where, expected=EXPECTED)
    if head[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff") or head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise _wide_encoding(where, "UTF-32" if head[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff") else "UTF-16")
    for magic, words in ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"this is {words}", where=where, expected=EXPECTED, fix="unpack or convert it first")
    if head[257:262] == b"ustar":
        raise DataError("this is a tar archive", where=where, expected=EXPECTED, fix="unpack it first: tar -xf FILE")
    sample = head[:64]
    if len(sample) >= 8 and (sample[::2].strip(b"\0") == b"" or sample[1::2].strip(b"\0") == b""):
        raise _wide_encoding(where, "UTF-16")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise DataError("this is a git-lfs pointer, not the file itself", where=where, fix="git lfs pull")
    name = path.name.lower()
    if re.match(
        rb"\s*<(!doctype html|html)[\s>]", head[:512].removeprefix(b"\xef\xbb\xbf"), re.I
    ) and not name.endswith(".md"):
        raise DataError(
            "this is an HTML page, most likely an error page saved by a download",
            where=where,
            expected=EXPECTED,
            fix="open it in a browser to read what the server said, then download again",
        )


def _wide_encoding(where: str, encoding: str) -> DataError:
    return DataError(
        f"this file is {encoding} text",
        where=f"{where}:1",
        expected="UTF-8",
        fix=f"iconv -f {encoding} -t UTF-8 {where} > converted.jsonl",
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    """What shows that a file was written to, or None where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def read_batches(
    path: Path, say: Say, max_passage_bytes: int = 2**14, rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[RawBatch]:
    """Every row of one file, in order, in batches that `rows_of` makes rows of; memory does not grow with the file.

    Raises DataError where the file cannot be read at all or changes while it is read.
    """
    kind, unusual = kind_of(path)
    name = shown_path(path)
    if unusual:
        say(f"{name} {unusual}")
    before = _stamp(path)
    if kind in ("parquet", "arrow"):
        rows = parquet_rows(name, path, say) if kind == "parquet" else arrow_rows(name, path, say)
        yield from row_batches(name, gathered_trees(name, rows), rows_per_batch)
    else:
        with opened(path) as file:
            if kind == "jsonl" and not holds_tree_rows(file.peek(HEAD_BYTES)[:HEAD_BYTES]):
                yield from line_batches(name, file, say, rows_per_batch)
            else:
                with closing(_parsed_rows(kind, name, file, say, max_passage_bytes)) as parsed:  # before the file is
                    yield from row_batches(name, gathered_trees(name, parsed), rows_per_batch)
    if _stamp(path) != before:
        raise DataError("the file changed while it was read", where=name, fix="run again when its writer is done")


def _parsed_rows(kind: Kind, name: str, file: Peekable, say: Say, max_passage_bytes: int) -> Generator[Row]:
    if kind == "jsonl":
        for batch in line_batches(name, file, say):
            yield from rows_of(batch)[0]
        return
    if kind in ("array", "object") and file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
    newline = "" if kind == "csv" else None
    stream = io.TextIOWrapper(
        cast(io.BufferedReader, file), encoding="utf-8", errors="surrogateescape", newline=newline
    )
    try:
        if kind == "csv":
            yield from csv_rows(name, stream, say)
        elif kind == "text":
            yield from text_rows(name, stream, max_passage_bytes)
        else:
            yield from array_rows(name, stream) if kind == "array" else object_rows(name, stream, say)
    finally:
        stream.detach()  # the file is its opener's to close


def read_rows(path: Path, say: Say, max_passage_bytes: int = 2**14) -> Iterator[Row]:
    """Every row of one file, in order, with its place; see `read_batches`."""
    for batch in read_batches(path, say, max_passage_bytes):
        yield from rows_of(batch)[0]
