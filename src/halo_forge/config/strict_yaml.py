"""Strict YAML: plain values with the place of every key and value; anything that two readers could read differently
is an error.

Scalars follow the YAML 1.2 core schema (yaml.org/spec/1.2.2, 10.3.2), not PyYAML's 1.1: `2e-5` is a number, `no` and
`12:30:45` are text, `010` is ten. JSON is read by the same code. PyYAML only cuts the text into events; nothing is
constructed by it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from halo_forge.config.snippets import caret_snippet, clipped, readable, without_secrets
from halo_forge.errors import ConfigError, ConfigProblem

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_DIGITS = 4300
"""Longest integer literal; longer ones cost quadratic time and Python refuses to print them."""

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_INFINITY = re.compile(r"([-+]?)(?:\.inf|\.Inf|\.INF)\Z")
_NAN = re.compile(r"(?:\.nan|\.NaN|\.NAN)\Z")

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_EXPECTED_BY_PROBLEM = (
    ("mapping values are not allowed", "put text that contains ': ' into quotes, and check the indentation"),
    ("could not find expected ':'", "every line of a section is `key: value`"),
    ("expected <block end>", "keys of one section start in the same column"),
    ("while scanning a quoted scalar", "close the quotes"),
    ("while parsing a flow", "close the brackets and separate items with commas"),
    ("cannot start any token", "put the text into quotes"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """1-based position of a key or value; `width` is its length on that line."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """One value. `value` is a scalar, a list of nodes, or a dict from key to `Entry`.
    `plain` is the text as written for an unquoted scalar, else None."""

    value: Any
    place: Place
    plain: str | None = None

    def to_plain(self) -> Any:
        """The value without places: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: entry.node.to_plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.to_plain() for item in self.value]
        return self.value

    def place_at(self, path: tuple[str | int, ...], *, of_key: bool = False) -> Place:
        """Place of the deepest value on `path` that exists, or of that value's key."""
        node, place = self, self.place
        for step in path:
            if isinstance(node.value, dict) and isinstance(step, str) and step in node.value:
                entry = node.value[step]
                node, place = entry.node, entry.place if of_key else entry.node.place
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                place = node.place
            else:
                break
        return place


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a mapping with its own place, and its value."""

    key: str
    place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read. `root` is None when it holds no value at all."""

    name: str
    lines: tuple[str, ...]
    root: Node | None

    def entries(self) -> dict[str, Entry]:
        """The keys of the root mapping."""
        return self.root.value if self.root is not None else {}

    def to_plain(self) -> dict[str, Any]:
        return self.root.to_plain() if self.root is not None else {}

    def where(self, place: Place) -> str:
        return f"{self.name}:{place.line}:{place.column}"

    def snippet(self, place: Place) -> str:
        return caret_snippet(self.lines, place.line, place.column, place.width)


@dataclass(slots=True)
class _Reading:
    """State of one pass over the events."""

    name: str
    lines: tuple[str, ...]
    loader: yaml.SafeLoader
    problems: list[ConfigProblem] = field(default_factory=list)
    num_nodes: int = 0

    def problem(self, message: str, mark: Any, width: int = 1, suggestion: str | None = None) -> None:
        line, column = mark.line + 1, mark.column + 1
        self.problems.append(_problem_at(self.name, self.lines, message, Place(line, column, width), suggestion))

    def stop(self, message: str, mark: Any, suggestion: str | None = None) -> NoReturn:
        self.problem(message, mark, suggestion=suggestion)
        raise ConfigError(self.problems)


def read_yaml(path: Path) -> Document:
    """Read a configuration file whose root is a mapping (or that is empty).

    Raises ConfigError for everything that is not plain YAML 1.2 data, with file:line:column and a caret.
    """
    return parse_yaml(_decoded(_bytes_of(path), str(path)), str(path), json=path.suffix.lower() == ".json")


def parse_yaml(text: str, name: str, *, json: bool = False) -> Document:
    """As `read_yaml`, from text. `json` allows tabs as indentation, which JSON does and YAML does not."""
    document = _parsed(re.sub("(?m)^\t+", lambda tabs: " " * len(tabs.group()), text) if json else text, name)
    if document.root is not None and not isinstance(document.root.value, dict):
        kind = "a list" if isinstance(document.root.value, list) else "a single value"
        message = f"this file holds {kind}; a configuration is a mapping of sections"
        raise ConfigError([_problem_at(name, document.lines, message, document.root.place, "start with `model:`")])
    return document


def parse_value(text: str, name: str) -> Any:
    """The value of a command-line setting or an environment variable.

    Text that starts with a bracket, a brace or a quote is read as YAML; everything else is one scalar, whatever
    colons or hashes it contains. Raises ConfigError.
    """
    stripped = text.strip()
    if len(stripped.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError([ConfigProblem(message=f"this value is larger than {MAX_BYTES} bytes", where=name)])
    if stripped[:1] in ("[", "{", '"', "'"):
        root = _parsed(stripped, name).root
        return root.to_plain() if root is not None else None
    try:
        return resolve_plain(stripped)
    except ValueError as error:
        raise ConfigError([ConfigProblem(message=str(error), where=name)]) from None


def resolve_plain(text: str) -> str | int | float | bool | None:
    """Value of an unquoted scalar by the YAML 1.2 core schema. Raises ValueError for a number beyond all bounds."""
    if _NULL.match(text):
        return None
    if _TRUE.match(text):
        return True
    if _FALSE.match(text):
        return False
    if _INT.match(text) or _OCTAL.match(text) or _HEX.match(text):
        # 3500 hexadecimal digits are the most that fit into 4300 decimal ones
        if len(text.lstrip("+-")) > (MAX_DIGITS if _INT.match(text) else 3500):
            raise ValueError(f"this whole number has {len(text.lstrip('+-'))} digits; at most {MAX_DIGITS} are read")
        return int(text) if _INT.match(text) else int(text, 0)
    if _FLOAT.match(text):
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{clipped(text)} is too large for a number")
        return number
    if infinity := _INFINITY.match(text):
        return float(f"{infinity.group(1)}inf")
    return float("nan") if _NAN.match(text) else text


# ------------------------------------------------------------------------------------------------ bytes to text


def _bytes_of(path: Path) -> bytes:
    def refuse(message: str, suggestion: str | None = None) -> NoReturn:
        raise ConfigError([ConfigProblem(message=message, where=str(path), suggestion=suggestion)]) from None

    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            refuse(f"this is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}, not a configuration file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except PermissionError:
        refuse("this configuration file may not be read", f"chmod u+r {path}")
    except (OSError, ValueError) as error:
        refuse(f"this configuration file cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(data) > MAX_BYTES:
        refuse(f"this file is larger than {MAX_BYTES} bytes; it cannot be a configuration")
    return data


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        message = "this file is UTF-16; a configuration is UTF-8"
        raise ConfigError([ConfigProblem(message=message, where=f"{name}:1:1", suggestion="save it as UTF-8")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = _position(before, len(before))
        where = f"{name}:{line}:{column}"
        message = f"byte {data[error.start]:#04x} is not UTF-8"
        raise ConfigError([ConfigProblem(message=message, where=where, suggestion="save the file as UTF-8")]) from None


def _position(text: str, offset: int) -> tuple[int, int]:
    breaks = list(_LINE_BREAK.finditer(text, 0, offset))
    return len(breaks) + 1, offset - (breaks[-1].end() if breaks else 0) + 1


def _problem_at(
    name: str, lines: tuple[str, ...], message: str, place: Place, suggestion: str | None = None
) -> ConfigProblem:
    return ConfigProblem(
        message=message,
        where=f"{name}:{place.line}:{place.column}",
        snippet=caret_snippet(lines, place.line, place.column, place.width),
        suggestion=suggestion,
    )


# ------------------------------------------------------------------------------------------------ text to nodes


def _parsed(text: str, name: str) -> Document:
    text = text.removeprefix("\ufeff")
    lines = tuple(_LINE_BREAK.split(text))
    if bad := _NOT_PRINTABLE.search(text):
        line, column = _position(text, bad.start())
        message = f"the control character U+{ord(bad.group()):04X} is not allowed in a configuration"
        raise ConfigError([_problem_at(name, lines, message, Place(line, column))])
    loader = yaml.SafeLoader(text)
    reading = _Reading(name, lines, loader)
    try:
        root = _root(reading)
    except yaml.MarkedYAMLError as error:
        _stop_at_syntax(reading, error)
    except (yaml.YAMLError, ValueError, OverflowError):  # \U0011ffff and the like, which PyYAML does not guard
        reading.stop("an escape in this text names no character", loader.get_mark())
    finally:
        loader.dispose()
    if reading.problems:
        raise ConfigError(reading.problems)
    return Document(name, lines, root)


def _stop_at_syntax(reading: _Reading, error: yaml.MarkedYAMLError) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    words = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in words:
        reading.stop("a tab is used for spacing", mark, "indent with spaces")
    suggestion = next((advice for sign, advice in _EXPECTED_BY_PROBLEM if sign in words), None)
    reading.stop(f"this is not valid YAML: {readable(without_secrets(words))}", mark, suggestion)


def _events(loader: yaml.SafeLoader) -> Iterator[Any]:
    while loader.check_event():
        yield loader.get_event()  # type: ignore[no-untyped-call]


def _root(reading: _Reading) -> Node | None:
    events = _events(reading.loader)
    next(events)  # stream start
    event = next(events)
    if isinstance(event, yaml.StreamEndEvent):
        return None
    if event.version or event.tags:
        reading.problem("%YAML and %TAG lines are not read", event.start_mark, suggestion="remove the line")
    first = next(events)
    empty = isinstance(first, yaml.ScalarEvent) and first.style is None and not first.value
    root = _node(reading, events, first, 0)
    next(events)  # document end
    following = next(events)
    if not isinstance(following, yaml.StreamEndEvent):
        reading.stop("a second document starts here; a configuration is one document", following.start_mark)
    return None if empty else root


def _node(reading: _Reading, events: Iterator[Any], event: Any, depth: int) -> Node:
    reading.num_nodes += 1
    if reading.num_nodes > MAX_NODES:
        reading.stop(f"this file has more than {MAX_NODES} values; it cannot be a configuration", event.start_mark)
    if isinstance(event, yaml.AliasEvent):
        message = f"*{event.anchor} refers to another place; anchors and aliases are not read"
        reading.problem(message, event.start_mark, suggestion="write the value out")
        return Node(None, _place(event))
    if event.anchor is not None:
        message = f"&{event.anchor} is an anchor; anchors and aliases are not read"
        reading.problem(message, event.start_mark, suggestion="write the value out where it is needed")
    if event.tag is not None:
        reading.problem(f"the tag {event.tag} is not read", event.start_mark, suggestion="remove it")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(reading, event)
    if depth >= MAX_DEPTH:
        reading.stop(f"more than {MAX_DEPTH} levels are nested here", event.start_mark)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_node(reading, events, item, depth + 1))
        return Node(items, _place(event))
    return _mapping(reading, events, event, depth)


def _mapping(reading: _Reading, events: Iterator[Any], event: Any, depth: int) -> Node:
    entries: dict[str, Entry] = {}
    while not isinstance(key_event := next(events), yaml.MappingEndEvent):
        key_node = _node(reading, events, key_event, depth + 1)
        node = _node(reading, events, next(events), depth + 1)
        if not isinstance(key_event, yaml.ScalarEvent):
            reading.problem("a key is a single word here", key_event.start_mark)
            continue
        key = key_node.plain if key_node.plain is not None else str(key_node.value)
        if key in entries:
            message = f"{readable(clipped(key))} is given twice; the first is in line {entries[key].place.line}"
            reading.problem(message, key_event.start_mark, key_node.place.width, "keep one of the two")
        elif key == "<<" and key_node.plain is not None:
            reading.problem("<< merges another mapping, which is not read", key_event.start_mark, 2, "write it out")
        else:
            entries[key] = Entry(key, key_node.place, node)
    return Node(entries, _place(event))


def _scalar(reading: _Reading, event: yaml.ScalarEvent) -> Node:
    text: str = event.value
    if event.style is None:
        try:
            return Node(resolve_plain(text), _place(event), plain=text)
        except ValueError as error:
            reading.problem(str(error), event.start_mark, _place(event).width)
            return Node(None, _place(event))
    if any("\ud800" <= character <= "\udfff" for character in text):
        # JSON writes characters beyond U+FFFF as two escapes
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            reading.problem("this text holds half a character (a lone \\uD800 to \\uDFFF escape)", event.start_mark)
            text = ""
    return Node(text, _place(event))


def _place(event: Any) -> Place:
    start, end = event.start_mark, event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Place(start.line + 1, start.column + 1, max(1, width))
