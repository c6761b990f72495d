"""From a row's columns to a Conversation: which format the rows have, and the conversion of one row.

    messages             messages: [{role, content}], optional system, tools | functions
    sharegpt             conversations | conversation | items: [{from, value}], optional system, tools
    oasst                message_tree_id, prompt: {text, role, replies}; or one row a message (message_id, parent_id)
    preference           chosen, rejected, optional prompt: the chosen answer is trained
    segments             segments: [{label, text}], all of them trained
    xlam                 query, answers, tools: JSON in strings
    glaive               system, chat: a transcript with function calls
    bfcl                 question, function, ground_truth | possible_answer: acceptable calls
    openai_evals         input: text or messages, ideal: text or list of texts
    prompt_completion    prompt, completion | response: strings, or lists of messages
    dolly                instruction, context, response
    instruction          instruction (+ input), output | response | completion | answer, optional system, history
    question_answer      question, answer, optional context
    query_response       query, response
    speech               audio | a path that ends like a sound's, text | sentence | ... (speech_rows.py)
    text                 text: one document, trained whole
    prepared             what the data stage wrote: the conversations of a run's split
Any row may carry `weight` (a positive number that multiplies its loss), `slices` ({name: label}) and `tests` (what
generated answers are verified by: verify/row_tests.py; never trained).
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef
from halo_forge.chat.store import conversation_from_record
from halo_forge.config.schema import RowFormat
from halo_forge.data.conversion.content_parts import MEDIA_COLUMNS, media_column, refused_media
from halo_forge.data.conversion.conversation_shapes import LIST_COLUMNS, TOOL_FORMATS, row_messages
from halo_forge.data.conversion.identity import content_sha256, prompt_key
from halo_forge.data.conversion.media import with_media
from halo_forge.data.conversion.speech_rows import NAMING, TRANSCRIPTS, is_speech_row
from halo_forge.data.conversion.tool_calls import row_tools
from halo_forge.data.conversion.turns import chat_message, ordered_turns
from halo_forge.data.files.rows import Row
from halo_forge.errors import DataError, RowError

DETECTED_ROWS = 64
RESERVED_COLUMNS = ("input_ids", "labels", "attention_mask")
ROW_COLUMNS = frozenset({"weight", "slices", "tests"})


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names of one format: all of `prompt`, one of `answer`; `optional` ones are read where present.
    `fits` decides by the row's values, too."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] | None = None

    def match(self, names: Mapping[str, Any]) -> bool:
        if self.fits is not None:
            return self.fits(names)
        return all(name in names for name in self.prompt) and (
            not self.answer or any(name in names for name in self.answer)
        )

    def words(self) -> str:
        return ", ".join(self.prompt) + (f", {' | '.join(self.answer)}" if self.answer else "")


FORMATS: Mapping[RowFormat, Columns] = {
    "messages": Columns(("messages",), (), ("system", "tools", "functions")),
    "sharegpt": Columns((), LIST_COLUMNS[1:], ("system", "tools", "functions")),
    "oasst": Columns(("message_tree_id", "prompt"), (), ("thread", "system")),
    "preference": Columns(("chosen", "rejected"), (), ("prompt", "system", "tools")),
    "segments": Columns(("segments",)),
    "xlam": Columns(("query", "answers", "tools")),
    "glaive": Columns(("system", "chat")),
    "bfcl": Columns(("question", "function"), (), ("ground_truth", "possible_answer", "id")),
    "openai_evals": Columns(("input", "ideal"), (), ("system", "tools")),
    "prompt_completion": Columns(("prompt",), ("completion", "response"), ("system", "tools", "label")),
    "dolly": Columns(("instruction", "context", "response"), (), ("system",)),
    "instruction": Columns(
        ("instruction",), ("output", "response", "completion", "answer"), ("input", "system", "history", "tools")
    ),
    "question_answer": Columns(("question",), ("answer",), ("context", "system", "tools")),
    "query_response": Columns(("query",), ("response",), ("system", "tools")),
    "speech": Columns(("audio",), TRANSCRIPTS, NAMING, is_speech_row),
    "text": Columns(("text",)),
    "prepared": Columns(("id", "messages", "tools", "slices", "weight", "source")),
}
"""In the order in which they are tried: instruction rows often carry a rendered `text` too."""
SAID_OF: Mapping[RowFormat, str] = {
    "preference": "the chosen answers are trained, the rejected ones are not used",
    "oasst": "one conversation a tree is trained, its best-ranked one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the rows of one file were found to be. `unused` are columns that the format does not read; `votes` counts
    the formats of the first `num_rows` rows, most frequent first ("" for rows of no format)."""

    format: RowFormat
    columns: tuple[str, ...]
    unused: tuple[str, ...]
    forced: bool = False
    votes: tuple[tuple[str, int], ...] = ()
    num_rows: int = 0

    def render(self, path: str) -> str:
        if any(column in RESERVED_COLUMNS for column in self.columns) and self.num_rows == dict(self.votes).get("", 0):
            return f"{path}: rows of token numbers ({', '.join(self.columns[:6])}); rows are read as text"
        how = "as data.format says" if self.forced else f"columns {', '.join(self.columns)}; {self._agreement()}"
        said = f"; {SAID_OF[self.format]}" if self.format in SAID_OF else ""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{path}: {self.format} rows ({how}){said}{unused}"

    def _agreement(self) -> str:
        num_agree = dict(self.votes).get(self.format, 0)
        if num_agree == self.num_rows:
            return "the first row" if self.num_rows == 1 else f"all of the first {self.num_rows} rows"
        others = ", ".join(f"{count} {name or 'of no format'}" for name, count in self.votes if name != self.format)
        return f"{num_agree} of the first {self.num_rows} rows; {others}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`prompt_key` is equal for rows whose opening (all before the first answer) is equal; the split stands on it.
    `fixes` are codes of what was mended, `flags` of what was found and left as it is; `format` is what the row was
    read as."""

    conversation: Conversation
    prompt_key: str
    fixes: tuple[str, ...]
    flags: tuple[str, ...]
    format: RowFormat


def format_of(value: Mapping[str, Any]) -> RowFormat | None:
    """The first format whose columns the row has; lists of from/value are ShareGPT whatever their column's name."""
    if is_prepared(value):
        return "prepared"
    for name, columns in FORMATS.items():
        if name != "prepared" and columns.match(value):
            if name in ("messages", "sharegpt"):
                return _list_format(value, name)
            if name == "oasst" and not isinstance(value["prompt"], dict):
                continue
            return name
    return None


def is_prepared(value: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation record: its columns, and messages in parts instead of content."""
    if not FORMATS["prepared"].match(value):
        return False
    messages = value["messages"]
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], dict) and "parts" in messages[0]


def _list_format(value: Mapping[str, Any], otherwise: RowFormat) -> RowFormat:
    items = value[next(name for name in LIST_COLUMNS if name in value)]
    first = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
    if first.get("from") is not None and "role" not in first:
        return "sharegpt"
    return "messages" if first.get("role") is not None else otherwise


def detect(
    path: str, values: Sequence[Mapping[str, Any]], forced: RowFormat = "auto", also_read: Sequence[str | None] = ()
) -> Verdict:
    """The format of most of the first rows. `also_read` are columns that something else than the format looks at.
    Raises DataError where no row has the columns of any format."""
    seen = Counter(column for value in values for column in value)
    columns = tuple(column for column, _ in seen.most_common())
    votes = Counter(format_of(value) or "" for value in values)
    known = [(name, count) for name, count in votes.most_common() if name]
    tokenised = all(any(column in value for column in RESERVED_COLUMNS) for value in values)
    if forced == "auto" and not known and not tokenised:
        raise DataError(
            f"no format fits these rows: {missing_columns(columns)}",
            where=path,
            expected="; ".join(f"{name}: {spec.words()}" for name, spec in FORMATS.items()),
            fix="rename the columns, or set data.format",
        )
    found: Any = forced if forced != "auto" else known[0][0] if known else "text"
    spec = FORMATS[found]
    lists = LIST_COLUMNS if found in ("messages", "sharegpt") else ()
    read = {*spec.prompt, *spec.answer, *spec.optional, *ROW_COLUMNS, *lists} - {"rejected", "label"} | {*also_read}
    if found != "text":  # what they hold is read, or the row refused
        read |= MEDIA_COLUMNS.keys()
    unused = tuple(sorted(column for column in columns if column not in read and column not in RESERVED_COLUMNS))
    return Verdict(
        format=found, columns=columns, unused=unused, forced=forced != "auto", votes=tuple(votes.most_common()),
        num_rows=len(values),
    )  # fmt: skip


def detection_head(rows: Iterable[Row], max_rows: int) -> list[Row]:
    """Rows from the first to the DETECTED_ROWS-th that can be read, at most `max_rows`: what `detect` looks at."""
    head: list[Row] = []
    num_readable = 0
    for row in rows:
        head.append(row)
        num_readable += row.value is not None
        if num_readable == DETECTED_ROWS or len(head) == max_rows:
            break
    return head


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


def convert(
    row: Row, format: RowFormat, system_prompt: str | None = None, *, mixed: bool = False, media: bool = False
) -> Converted:
    """The conversation of one readable row. Raises RowError with a stable code where there is none to be had.

    mixed   a row without the columns of `format` is read as the format that it has, and flagged `other_format`
    media   images and audio become MediaParts; else the row is refused, and nothing was opened
    """
    value = row.value or {}
    if "input_ids" in value or "labels" in value or "attention_mask" in value:
        names = ", ".join(column for column in RESERVED_COLUMNS if column in value)
        raise RowError(
            "reserved_columns", f"{names}: reserved for tokens, but rows are read as text; drop these columns"
        )
    flags: set[str] = set()
    format = _applied_format(value, format, mixed, flags)
    if format != "text" and not media and (refused := media_column(value)):
        raise refused
    if format == "prepared":
        return _from_record(row, sorted(flags), system_prompt, keep_source=not mixed, media=media)
    fixes = set(row.fixes)
    messages, with_tools = row_messages(value, format, fixes, flags)
    if not media:
        _refuse_media(messages)
    elif format != "speech":
        messages = with_media(messages, value, fixes)
    is_document = messages[0].role == "document"
    turns = tuple(messages) if is_document else ordered_turns(messages, fixes)
    key = prompt_key(turns)
    if system_prompt and not is_document and turns[0].role != "system":
        turns = (chat_message("system", system_prompt), *turns)
    tools: tuple[dict[str, Any], ...] = ()
    if "tools" in with_tools or "functions" in with_tools:
        tools = row_tools(with_tools, fixes, own_words=format in TOOL_FORMATS)
    conversation = Conversation(
        id=content_sha256(turns, tools), messages=turns, source=SourceRef(path=row.path, line=row.line), tools=tools,
        slices=_slices(value.get("slices")), weight=_weight(value.get("weight")), tests=_tests(with_tools.get("tests")),
    )  # fmt: skip
    return Converted(
        conversation=conversation, prompt_key=key, fixes=tuple(sorted(fixes)), flags=tuple(sorted(flags)), format=format
    )


def _from_record(
    row: Row, flags: Sequence[str], system_prompt: str | None, *, keep_source: bool, media: bool
) -> Converted:
    """A record of a split as it stands; only its id is worked out anew. `keep_source`: it comes from where the record
    says, not from the split file."""
    try:
        record = conversation_from_record(row.value or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RowError("bad_messages", f"this is no record of a split ({type(error).__name__}: {error})") from None
    if not media:
        _refuse_media(record.messages)
    turns = record.messages
    own = turns[1:] if turns[0].role == "system" and system_prompt and turns[0].text == system_prompt else turns
    source = record.source if keep_source else SourceRef(path=row.path, line=row.line)
    conversation = replace(record, id=content_sha256(turns, record.tools), source=source)
    return Converted(
        conversation=conversation, prompt_key=prompt_key(own), fixes=row.fixes, flags=tuple(flags), format="prepared"
    )


def _applied_format(value: Mapping[str, Any], format: RowFormat, mixed: bool, flags: set[str]) -> RowFormat:
    fits = FORMATS[format].match(value) or (
        format in ("messages", "sharegpt") and any(name in value for name in LIST_COLUMNS)
    )
    if fits and not (format == "text" and mixed):
        return format
    own = format_of(value) if mixed else None
    if own is not None and (fits or own != format):
        if own != format:
            flags.add("other_format")
        return own
    if fits:
        return format
    spec = FORMATS[format]
    raise RowError("missing_columns", f"{format} rows need the columns {spec.words()}; {missing_columns(value)}")


def _refuse_media(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        for part in message.parts:
            if type(part) is MediaPart:
                raise refused_media(part.kind, part.path, f"message {number}")


def _weight(raw: Any) -> float:
    if raw is None or raw == "":
        return 1.0
    try:
        weight = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise RowError("bad_weight", "the row's weight must be a positive number")
    return weight


def _tests(raw: Any) -> dict[str, Any] | None:
    """Only an object can hold tests of ours; what another set keeps in a column of this name is left alone."""
    return raw if isinstance(raw, dict) and raw else None


def _slices(raw: Any) -> dict[str, str]:
    if raw is None or raw == "":
        return {}
    if not isinstance(raw, dict) or not all(isinstance(label, str | None) for label in raw.values()):
        raise RowError("bad_slices", 'slices is an object of names and labels: {"language": "de"}')
    return {str(name): label for name, label in raw.items() if label is not None}
