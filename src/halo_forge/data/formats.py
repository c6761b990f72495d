"""From a row's columns to a Conversation: which format the rows have, and the conversion of one row.

    messages             messages: [{role, content}], optional tools
    sharegpt             conversations: [{from, value}], optional system, tools
    instruction          instruction (+ input), output | response | completion | answer, optional system, history
    prompt_completion    prompt, completion | response: strings, or lists of messages
    question_answer      question, answer
    query_response       query, response
    text                 text: one document, trained whole
Any row may carry `weight` (a positive number that multiplies its loss) and `slices` ({name: label}).
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from halo_forge.chat.records import Conversation, Message, Role, SourceRef
from halo_forge.config.schema import RowFormat
from halo_forge.data.rows import Row, json_type
from halo_forge.data.turns import (
    CHAT_ROLES,
    SHAREGPT_ROLES,
    chat_message,
    clean_text,
    document,
    message_content,
    ordered_turns,
    parse_tools,
    parse_turn,
    parsed_list,
)
from halo_forge.errors import DataError, RowError
from halo_forge.runs import sha256_json

DETECTED_ROWS = 64
RESERVED_COLUMNS = ("input_ids", "labels", "attention_mask")
ROW_COLUMNS = frozenset({"weight", "slices"})
CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names of one format: all of `prompt`, one of `answer`; `optional` ones are read where present."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def match(self, names: Iterable[str]) -> bool:
        names = set(names)
        return names >= set(self.prompt) and (not self.answer or any(name in names for name in self.answer))

    def words(self) -> str:
        return ", ".join(self.prompt) + (f", {' | '.join(self.answer)}" if self.answer else "")


FORMATS: Mapping[RowFormat, Columns] = {
    "messages": Columns(("messages",), (), ("tools",)),
    "sharegpt": Columns(("conversations",), (), ("system", "tools")),
    "prompt_completion": Columns(("prompt",), ("completion", "response"), ("system", "tools")),
    "instruction": Columns(
        ("instruction",), ("output", "response", "completion", "answer"), ("input", "system", "history")
    ),
    "question_answer": Columns(("question",), ("answer",), ("system",)),
    "query_response": Columns(("query",), ("response",), ("system",)),
    "text": Columns(("text",)),
}
"""In the order in which they are tried: instruction rows often carry a rendered `text` too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the rows of one file were found to be. `unused` are columns that the format does not read."""

    format: RowFormat
    columns: tuple[str, ...]
    unused: tuple[str, ...]
    forced: bool = False

    def render(self, path: str) -> str:
        how = "as data.format says" if self.forced else f"columns {', '.join(self.columns)}"
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{path}: {self.format} rows ({how}){unused}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`prompt_key` is equal for rows whose opening (all before the first answer) is equal; the split stands on it.
    `fixes` are codes of what was mended, `flags` of what was found and left as it is."""

    conversation: Conversation
    prompt_key: str
    fixes: tuple[str, ...]
    flags: tuple[str, ...]


def format_of(value: Mapping[str, Any]) -> RowFormat | None:
    """The first format whose columns the row has; lists of from/value are ShareGPT whatever their column's name."""
    for name, columns in FORMATS.items():
        if columns.match(value):
            if name in ("messages", "sharegpt"):
                return _list_format(value[columns.prompt[0]], name)
            return name
    return None


def _list_format(items: Any, otherwise: RowFormat) -> RowFormat:
    first = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
    if first.get("from") is not None and "role" not in first:
        return "sharegpt"
    return "messages" if first.get("role") is not None else otherwise


def detect(path: str, values: Sequence[Mapping[str, Any]], forced: RowFormat = "auto") -> Verdict:
    """The format of most of the first rows. Raises DataError where no row has the columns of any format."""
    seen = Counter(column for value in values for column in value)
    columns = tuple(column for column, _ in seen.most_common())
    votes = Counter(name for value in values if (name := format_of(value)))
    if forced == "auto" and not votes:
        raise DataError(
            f"no format fits these rows: {missing_columns(columns)}",
            where=path,
            expected="; ".join(f"{name}: {spec.words()}" for name, spec in FORMATS.items()),
            fix="rename the columns, or set data.format",
        )
    found = votes.most_common(1)[0][0] if forced == "auto" else forced
    spec = FORMATS[found]
    read = {*spec.prompt, *spec.answer, *spec.optional, *ROW_COLUMNS, "messages", "conversations"}
    unused = tuple(sorted(column for column in columns if column not in read and column not in RESERVED_COLUMNS))
    return Verdict(format=found, columns=columns, unused=unused, forced=forced != "auto")


def missing_columns(columns: Iterable[str]) -> str:
    """The columns seen and the format that is nearest to them, in words."""
    seen = list(columns)[:40]
    names = ", ".join(ascii(column)[1:-1][:40] for column in seen[:12])
    likeness, nearest = max((_likeness(spec, seen), name) for name, spec in FORMATS.items())
    words = f"the columns are {names}" if names else "there are no columns"
    return words + (f"; nearest is {nearest} ({FORMATS[nearest].words()})" if likeness >= 0.6 else "")


def _likeness(spec: Columns, names: Sequence[str]) -> float:
    """0 to 1: how well every column that a format needs is matched by some name."""

    def best(wanted: Iterable[str]) -> float:
        pairs = ((name.lower()[:40], column) for name in names for column in wanted)
        return max((difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0.0)

    needed = [best([column]) for column in spec.prompt] + ([best(spec.answer)] if spec.answer else [])
    return sum(needed) / len(needed)


def convert(row: Row, format: RowFormat, system_prompt: str | None = None) -> Converted:
    """The conversation of one readable row. Raises RowError with a stable code where there is none to be had."""
    value = row.value or {}
    reserved = [column for column in RESERVED_COLUMNS if column in value]
    if reserved:
        names = ", ".join(reserved)
        raise RowError(
            "reserved_columns", f"{names}: reserved for tokens, but rows are read as text; drop these columns"
        )
    spec = FORMATS[format]
    if not spec.match(value) and not (format in ("messages", "sharegpt") and _list_column(value)):
        raise RowError("missing_columns", f"{format} rows need the columns {spec.words()}; {missing_columns(value)}")
    fixes = set(row.fixes)
    messages = _row_messages(value, format, spec, fixes)
    is_document = messages[0].role == "document"
    turns = tuple(messages) if is_document else ordered_turns(messages, fixes)
    key = prompt_key(turns)
    if system_prompt and not is_document and turns[0].role != "system":
        turns = (chat_message("system", system_prompt), *turns)
    tools = parse_tools(value.get("tools"))
    conversation = Conversation(
        id=_content_sha256(turns, tools), messages=turns, source=SourceRef(path=row.path, line=row.line), tools=tools,
        slices=_slices(value.get("slices")), weight=_weight(value.get("weight")),
    )  # fmt: skip
    return Converted(conversation=conversation, prompt_key=key, fixes=tuple(sorted(fixes)), flags=_flags(turns))


def _content_sha256(turns: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
    try:
        return sha256_json({"messages": [message_content(turn) for turn in turns], "tools": list(tools)})
    except (TypeError, ValueError) as error:  # Parquet holds dates and bytes
        raise RowError("bad_tools", f"tools and tool calls hold a value that JSON has no form for: {error}") from None


def _list_column(value: Mapping[str, Any]) -> str | None:
    return next((name for name in ("messages", "conversations", "conversation") if name in value), None)


def _row_messages(value: Mapping[str, Any], format: RowFormat, spec: Columns, fixes: set[str]) -> list[Message]:
    if format == "text":
        return [document(value["text"], fixes)]
    if format in ("messages", "sharegpt"):
        column = _list_column(value) or spec.prompt[0]
        roles = SHAREGPT_ROLES if format == "sharegpt" else CHAT_ROLES
        turns = _turns(value[column], column, roles, fixes)
    else:
        turns = _pair(value, spec, fixes)
    system = _text(value, "system", fixes, optional=True) if "system" in spec.optional else ""
    return [chat_message("system", system), *turns] if system.strip() else turns


def _turns(raw: Any, column: str, roles: Mapping[str, str], fixes: set[str]) -> list[Message]:
    items = parsed_list(raw, column, fixes)
    return [parse_turn(item, number, roles, fixes) for number, item in enumerate(items, start=1)]


def _pair(value: Mapping[str, Any], spec: Columns, fixes: set[str]) -> list[Message]:
    """A prompt column and an answer column, each a string or (prompt_completion) a list of messages."""
    prompt, answer = spec.prompt[0], next(name for name in spec.answer if name in value)
    turns: list[Message] = []
    if isinstance(value.get("history"), list) and "history" in spec.optional:
        for number, exchange in enumerate(value["history"], start=1):
            turns += _exchange(exchange, number, fixes)
    for column, role in ((prompt, "user"), (answer, "assistant")):
        if isinstance(value[column], list) and prompt == "prompt":
            turns += _turns(value[column], column, CHAT_ROLES, fixes)
            continue
        text = _text(value, column, fixes, optional=False)
        if column == "instruction":
            addition = _text(value, "input", fixes, optional=True)
            text = "\n\n".join(part for part in (text, addition) if part.strip())
        if not text.strip():
            raise RowError("empty_content", f"{column} is empty or white space only")
        turns.append(chat_message(cast(Role, role), text))
    return turns


def _exchange(exchange: Any, number: int, fixes: set[str]) -> list[Message]:
    if not isinstance(exchange, list) or len(exchange) != 2 or not all(isinstance(text, str) for text in exchange):
        raise RowError("bad_content_type", f"history {number} is not a pair of strings")
    user, assistant = (clean_text(text, fixes) for text in exchange)
    return [chat_message("user", user), chat_message("assistant", assistant)]


def _text(value: Mapping[str, Any], column: str, fixes: set[str], *, optional: bool) -> str:
    text = value.get(column)
    if text is None and optional:
        return ""
    if text is None:
        raise RowError("null_content", f"{column} is null")
    if not isinstance(text, str):
        raise RowError("bad_content_type", f"{column} is {json_type(text)}, not a string")
    return clean_text(text, fixes)


def _weight(raw: Any) -> float:
    if raw is None or raw == "":
        return 1.0
    try:
        weight = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise RowError("bad_weight", "the row's weight must be a positive number")
    return weight


def _slices(raw: Any) -> dict[str, str]:
    if raw is None or raw == "":
        return {}
    if not isinstance(raw, dict) or not all(isinstance(label, str | None) for label in raw.values()):
        raise RowError("bad_slices", 'slices is an object of names and labels: {"language": "de"}')
    return {str(name): label for name, label in raw.items() if label is not None}


def prompt_key(turns: Sequence[Message]) -> str:
    """Hash of the row's own turns before the first answer (a document: of all of it), blind to case, white space and
    Unicode composition, so that a prompt and its trivial variant never stand on two sides of a split."""
    opening = turns[: next((at for at, turn in enumerate(turns) if turn.role == "assistant"), len(turns))]
    plain = [[turn.role, " ".join(unicodedata.normalize("NFC", turn.text).casefold().split())] for turn in opening]
    return sha256_json(plain)


def _flags(turns: Sequence[Message]) -> tuple[str, ...]:
    flags: list[str] = []
    texts = [turn.text for turn in turns]
    if any(CONTROL.search(text) for text in texts):
        flags.append("control_characters")
    if not all(text.isascii() or unicodedata.is_normalized("NFC", text) for text in texts):
        flags.append("not_nfc")
    return tuple(flags)
