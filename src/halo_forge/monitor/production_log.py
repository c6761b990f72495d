"""One line of a production log: a JSON object with a prompt and an answer, or the reason why it is not one.

Accepted lines: {"prompt": str, "answer": str} or {"messages": [{"role", "content"}, ...]} whose last assistant turn
is the answer and whose turns before it are the prompt (system turns do not count: they are the application's, not
traffic). `prompt` is what was asked, not the text that a chat template makes of it. Read too, where they stand:
`finish_reason` (or `stop_reason`), `time` (or `timestamp`, `created`, `created_at`), `id` (or `request_id`) and
`schema_version`, which is 1. Other keys are ignored.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MAX_LINE_BYTES = 16 << 20
SYSTEM_ROLES = ("system", "developer")
STOPPED_REASONS = frozenset({"stop", "end_turn", "eos", "eos_token", "stop_sequence", "tool_calls", "tool_use"})
CUT_REASONS = frozenset({"length", "max_tokens", "max_new_tokens", "token_limit", "model_length"})
TIME_KEYS = ("time", "timestamp", "created", "created_at")
_EARLIEST_S = 946_684_800.0  # 2000-01-01
_LATEST_S = 4_102_444_800.0  # 2100-01-01: later is a broken clock, or milliseconds


class BadLine(Exception):
    """The line is not a row of a production log; the message is the reason that is counted."""


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """`stopped` is None where the reason is not logged or is another one. `time_s` is seconds since 1970, None where no
    usable time stands."""

    prompt: str
    answer: str
    stopped: bool | None = None
    time_s: float | None = None
    request_id: str | None = None


def line_to_row(line: bytes) -> LoggedRow:
    """Raises BadLine."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise BadLine("not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(row, dict):
        raise BadLine("not an object")
    version = row.get("schema_version", 1)
    if version not in (1, "1"):
        raise BadLine("unknown schema version")
    if "messages" in row:
        prompt, answer = _conversation_texts(row["messages"])
    elif isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
        prompt, answer = row["prompt"], row["answer"]
    else:
        raise BadLine("no prompt and answer")
    reason = row.get("finish_reason", row.get("stop_reason"))
    request_id = row.get("id", row.get("request_id"))
    time = next((row[key] for key in TIME_KEYS if key in row), None)
    return LoggedRow(
        prompt,
        answer,
        _stopped(reason) if isinstance(reason, str) else None,
        time_in_seconds(time),
        str(request_id) if isinstance(request_id, str | int) and request_id != "" else None,
    )


def _stopped(reason: str) -> bool | None:
    reason = reason.lower()
    return True if reason in STOPPED_REASONS else False if reason in CUT_REASONS else None


def time_in_seconds(time: Any) -> float | None:
    """Seconds since 1970 of a Unix time in s, ms, us or ns (told apart by size) or an ISO 8601 time (UTC where no zone
    is named). None for anything else, and outside the years 2000 to 2100."""
    if isinstance(time, str):
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        try:
            seconds = moment.timestamp()
        except (OverflowError, ValueError):
            return None
    elif isinstance(time, int | float) and not isinstance(time, bool):
        try:
            seconds = float(time)
        except OverflowError:
            return None
        if not math.isfinite(seconds):
            return None
        for _ in range(3):
            if seconds > _LATEST_S:
                seconds /= 1000
    else:
        return None
    return seconds if _EARLIEST_S <= seconds <= _LATEST_S else None


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
