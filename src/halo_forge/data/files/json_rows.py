"""JSON, strictly: one object per line, or an array of objects, with the place of everything that is wrong.

Stricter than the standard parser where leniency would train on something else than the author wrote: duplicate keys,
NaN, numbers beyond a float, nesting past 64 levels and lone surrogates are refused row by row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TextIO

from halo_forge.data.files.rows import EXCERPT_SOURCE_CHARS, MAX_DEPTH, MAX_ROW_CHARS, Row, Say, checked_row
from halo_forge.errors import DataError, RowError

READ_CHARS = 2**16
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
WHITESPACE = re.compile(r"[ \t\n\r]*")
MAX_DOCUMENT_CHARS = 256 * 2**20
"""Largest file whose single JSON object wraps the rows: it can only be parsed as a whole."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("duplicate_key", f"the key {json.dumps(twice[:40])} stands twice in one object")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RowError("bad_number", f"the number {text[:40]} does not fit a float")
    return value


def _refused_constant(text: str) -> float:
    raise RowError("bad_number", f"{text} is not JSON; use null, or leave the column out")


STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_finite_float, parse_constant=_refused_constant)
LENIENT = json.JSONDecoder()


def parse_json(text: str) -> Any:
    """The value of one JSON text. Raises RowError with a code and a hint for everything that is not strict JSON."""
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise _json_problem(text, error) from None
    except ValueError:
        raise RowError("bad_number", "a number has more than 4300 digits") from None
    except RecursionError:
        raise RowError("too_deep", f"nested deeper than {MAX_DEPTH} levels") from None
    _check_value(text, value)
    return value


def _check_value(text: str, value: Any) -> None:
    if text.count("{") + text.count("[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise RowError("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    if SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RowError(
                "lone_surrogate", "a \\ud800-\\udfff escape without its other half is no character"
            ) from None


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(_deeper_than(child, levels - 1) for child in (value.values() if isinstance(value, dict) else value))


def _json_problem(text: str, error: json.JSONDecodeError) -> RowError:
    """The parser's complaint in the words of what people really write."""
    rest = text[error.pos :].lstrip()
    before = text[: error.pos].rstrip()
    column = error.pos + 1
    if "\0" in text:
        return RowError("nul_byte", f"a NUL byte at column {text.index(chr(0)) + 1}")
    if error.msg == "Extra data" and rest[:1] in ("{", "["):
        return RowError("glued_objects", f"a second object starts at column {column}; put each on a line of its own")
    if text.lstrip()[:2] == "//" or text.lstrip()[:1] == "#" or rest[:2] in ("//", "/*"):
        return RowError("bad_json", f"column {column}: JSON has no comments")
    if rest[:1] == "'":
        return RowError(
            "bad_json", f"column {column}: single quotes, as Python prints a dict; write it with json.dumps"
        )
    if before[-1:] == "," and rest[:1] in ("}", "]"):
        return RowError("bad_json", f"column {column}: a comma before the closing bracket")
    if text.strip() in ("{", "["):
        return RowError("bad_json", "an object spread over several lines; a .jsonl file has one object per line")
    return RowError("bad_json", f"column {column}: {error.msg.lower().removesuffix(' at').removesuffix(' starting')}")


def encoding_problem(line: str) -> RowError | None:
    """Bytes that were not UTF-8 arrive as lone surrogates (`surrogateescape`); say where the first one is."""
    if line.isascii():
        return None
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        column = len(line[: error.start].encode()) + 1
        reason = f"byte 0x{byte:02X} at position {column} is not UTF-8; convert it: iconv -f LATIN1 -t UTF-8 IN > OUT"
        return RowError("bad_encoding", reason)
    return None


def bounded_lines(stream: TextIO) -> Iterator[tuple[int, str, bool]]:
    """(line number, text with its line end, whether it was cut at MAX_ROW_CHARS); memory stays within that limit."""
    number = 0
    while line := stream.readline(MAX_ROW_CHARS):
        number += 1
        cut = len(line) == MAX_ROW_CHARS and not line.endswith("\n")
        if cut:
            line = line[:EXCERPT_SOURCE_CHARS]
            while (more := stream.readline(MAX_ROW_CHARS)) and not more.endswith("\n"):
                pass
        yield number, line, cut


def too_long(what: str = "the line") -> RowError:
    return RowError("line_too_long", f"{what} is longer than {MAX_ROW_CHARS // 2**20} MiB of text")


def line_row(path: str, number: int, text: str, fixes: tuple[str, ...], *, ended: bool) -> Row:
    """The row of one line of JSONL, which is given without its line end. `ended` says whether it had one."""
    excerpt = text[:EXCERPT_SOURCE_CHARS]
    try:
        if problem := encoding_problem(text):
            raise problem
        value = parse_json(text)
    except RowError as problem:
        if problem.code == "bad_json" and not ended and text.lstrip()[:1] in ("{", "["):
            problem = RowError("truncated_line", f"the file looks cut off in its last line ({problem.reason})")
        return Row(path=path, line=number, problem=problem, raw=excerpt)
    return checked_row(path, number, value, excerpt, fixes)


class _ArrayText:
    """The text of an array in a moving window: what lies before `position` is consumed, more is read on demand."""

    def __init__(self, path: str, stream: TextIO) -> None:
        self.path, self.stream = path, stream
        self.window, self.position, self.line, self.at_end = "", 0, 1, False

    def read_on(self) -> None:
        """Drop what is consumed and at least double what is left, so that parsing anew costs linear time in all."""
        self.line += self.window.count("\n", 0, self.position)
        left = self.window[self.position :]
        fresh = self.stream.read(max(READ_CHARS, len(left)))
        self.window, self.position, self.at_end = left + fresh, 0, not fresh

    def line_here(self) -> int:
        return self.line + self.window.count("\n", 0, self.position)

    def next_character(self) -> str:
        """The next character that is not white space, not consumed; empty at the end of the file."""
        while True:
            match = WHITESPACE.match(self.window, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.window) or self.at_end:
                return self.window[self.position : self.position + 1]
            self.read_on()

    def next_value(self, number: int) -> tuple[Any, str, RowError | None]:
        """(value, its text, what is wrong with it). Raises DataError where the text is not JSON at all."""
        while True:
            problem: RowError | None = None
            value: Any = None
            try:
                try:
                    value, end = STRICT.raw_decode(self.window, self.position)
                except RowError as refused:
                    problem = refused
                    _, end = LENIENT.raw_decode(self.window, self.position)  # only to find where the element ends
            except json.JSONDecodeError as error:
                if self.at_end or len(self.window) - self.position > MAX_ROW_CHARS:
                    raise self._broken(number, error) from None
            except (ValueError, RecursionError):
                reason = f"nested deeper than {MAX_DEPTH} levels, or a number of more than 4300 digits"
                raise broken_array(self.path, self.line_here(), number, reason) from None
            else:
                if end < len(self.window) or self.at_end:  # else a number or a word might go on
                    text, self.position = self.window[self.position : end], end
                    return value, text, problem
            self.read_on()

    def _broken(self, number: int, error: json.JSONDecodeError) -> DataError:
        num_lines, reason = _place_and_reason(self.window, error)
        return broken_array(self.path, self.line + num_lines, number, reason)


def _place_and_reason(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """(line ends before the fault, what is wrong) in a JSON text of many lines."""
    num_lines = text.count("\n", 0, error.pos)
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return num_lines, "the file looks cut off"
    start = text.rfind("\n", 0, error.pos) + 1
    return num_lines, _json_problem(
        text[start:], json.JSONDecodeError(error.msg, text[start:], error.pos - start)
    ).reason


def array_rows(path: str, stream: TextIO) -> Iterator[Row]:
    """The elements of one JSON array, each parsed as it is reached; `line` is the element's number.

    Raises DataError where the array itself is broken, because nothing after that point can be told apart.
    """
    text, number = _ArrayText(path, stream), 0
    text.next_character()
    text.position += 1  # the opening bracket, which the caller saw
    while text.next_character() != "]":
        number += 1
        value, raw, problem = text.next_value(number)
        try:
            if problem := problem or encoding_problem(raw):
                raise problem
            _check_value(raw, value)
        except RowError as refused:
            yield Row(path=path, line=number, problem=refused, raw=raw[:EXCERPT_SOURCE_CHARS])
        else:
            yield checked_row(path, number, value, raw[:EXCERPT_SOURCE_CHARS])
        if text.next_character() == ",":
            text.position += 1
            if text.next_character() == "]":
                raise broken_array(path, text.line_here(), number, "a comma before the closing bracket")
        elif text.next_character() != "]":
            reason = "the file looks cut off" if text.at_end else "a comma or the closing bracket is missing"
            raise broken_array(path, text.line_here(), number, reason)
    text.position += 1
    if text.next_character():
        raise broken_array(path, text.line_here(), number, "there is more text after the closing bracket")


def broken_array(path: str, line: int, number: int, reason: str) -> DataError:
    return DataError(
        f"the JSON array is broken at row {number}: {reason}",
        where=f"{path}:{line}",
        expected="[{...}, {...}], or one object per line in a .jsonl file",
        fix=f"python -m json.tool {path} shows the place",
    )


def object_rows(path: str, stream: TextIO, say: Say) -> Iterator[Row]:
    """A file that is one JSON object: rows wrapped in it as its only list of objects, or a single row."""
    text = stream.read(MAX_DOCUMENT_CHARS)
    if len(text) == MAX_DOCUMENT_CHARS:
        raise DataError("one JSON object of more than 256 MiB", where=path, expected="one object per line (.jsonl)")
    try:
        if unreadable := encoding_problem(text):
            raise unreadable
        value = STRICT.decode(text)
        _check_value(text, value)
    except json.JSONDecodeError as error:
        num_lines, reason = _place_and_reason(text, error)
        raise _not_json(f"{path}:{num_lines + 1}", reason) from None
    except RowError as problem:
        raise _not_json(path, problem.reason) from None
    except (ValueError, RecursionError):
        raise _not_json(path, f"nested deeper than {MAX_DEPTH} levels, or a number of more than 4300 digits") from None
    if not isinstance(value, dict):
        yield checked_row(path, 1, value, text[:EXCERPT_SOURCE_CHARS])
        return
    lists = {
        key: items
        for key, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items)
    }
    if len(lists) == 1 and not lists.keys() & {"messages", "conversations", "conversation"}:
        ((key, items),) = lists.items()
        say(f"{path}: the rows stand under {json.dumps(key)}")
        for number, item in enumerate(items, start=1):
            yield checked_row(path, number, item)
        return
    yield checked_row(path, 1, value, text[:EXCERPT_SOURCE_CHARS])


def _not_json(where: str, reason: str) -> DataError:
    return DataError(f"this is not JSON: {reason}", where=where, expected="an array of objects, or one object per line")
