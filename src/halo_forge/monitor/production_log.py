"""A production log, one JSON object a line, read into lengths and rates. No text is kept.

Accepted lines: {"prompt": str, "answer": str} or {"messages": [{"role", "content"}, ...]} whose last assistant turn
is the answer and whose turns before it are the prompt (system turns do not count: they are the application's, not
traffic). `prompt` is what was asked, not the text that a chat template makes of it. Further keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halo_forge.errors import DataError

MAX_LINE_BYTES = 16 << 20
NUM_BAD_LINES_NAMED = 10
SYSTEM_ROLES = ("system", "developer")


class BadLine(Exception):
    """The line is not a row of a production log; the message is the reason that is counted."""


@dataclass(slots=True)
class Traffic:
    """Aggregates of a log. Lengths are characters, one entry a row."""

    prompt_chars: list[int] = field(default_factory=list)
    answer_chars: list[int] = field(default_factory=list)
    num_json: int = 0
    num_empty: int = 0
    bad_lines: Counter[str] = field(default_factory=Counter)
    first_bad_lines: list[int] = field(default_factory=list)
    sha256: str = ""

    @property
    def num_rows(self) -> int:
        return len(self.answer_chars)


def read_traffic(path: Path) -> Traffic:
    """Read the whole log once; `sha256` is of exactly the bytes that were read. Blank lines are no rows."""
    traffic, digest = Traffic(), hashlib.sha256()
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                digest.update(line)
                too_long = len(line) > MAX_LINE_BYTES
                while too_long and line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                    digest.update(line)
                if too_long or line.strip():
                    _count_line(traffic, number, None if too_long else line)
    except OSError as error:
        raise DataError(
            f"cannot read the production log: {error.strerror}",
            where=str(path),
            expected='JSON lines with "prompt" and "answer", or "messages"',
            fix="give the path of the log that the model's server writes",
        ) from None
    traffic.sha256 = digest.hexdigest()
    return traffic


def _count_line(traffic: Traffic, number: int, line: bytes | None) -> None:
    try:
        if line is None:
            raise BadLine(f"longer than {MAX_LINE_BYTES >> 20} MB")
        prompt, answer = line_to_texts(line)
    except BadLine as error:
        traffic.bad_lines[str(error)] += 1
        if len(traffic.first_bad_lines) < NUM_BAD_LINES_NAMED:
            traffic.first_bad_lines.append(number)
        return
    traffic.prompt_chars.append(len(prompt))
    traffic.answer_chars.append(len(answer))
    traffic.num_json += is_json_document(answer)
    traffic.num_empty += not answer.strip()


def line_to_texts(line: bytes) -> tuple[str, str]:
    """(prompt, answer) of one line, or BadLine."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(row, dict):
        raise BadLine("not an object")
    if "messages" in row:
        return _conversation_texts(row["messages"])
    if not isinstance(row.get("prompt"), str) or not isinstance(row.get("answer"), str):
        raise BadLine("no prompt and answer")
    return row["prompt"], row["answer"]


def _conversation_texts(messages: Any) -> tuple[str, str]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadLine("messages are not a list of objects")
    texts = [_content_text(message.get("content")) for message in messages]
    turns = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    if not turns:
        raise BadLine("no assistant turn")
    last = turns[-1]
    asked = [
        text
        for text, message in zip(texts[:last], messages[:last], strict=True)
        if message.get("role") not in SYSTEM_ROLES
    ]
    return "\n".join(asked), texts[last]


def _content_text(content: Any) -> str:
    """Text of a turn: a string, or the text parts of a list. A turn without text (a tool call) counts as empty."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    raise BadLine("content is neither text nor parts")


def is_json_document(text: str) -> bool:
    """One JSON object or array and nothing around it but white space; NaN and Infinity are not JSON. The same rule as
    at the release, or the two rates could not be compared."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
