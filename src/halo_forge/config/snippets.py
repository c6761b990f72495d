"""Lines of a configuration as they may be shown: a caret under the column, no secrets, nothing a terminal obeys."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_LINE = 120
"""Longest stretch of a line that is shown."""

_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{16,}"
    r"|sk-(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[0-9A-Za-z_-]{30,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r")"
)
_SECRET_KEY = re.compile(
    r"(?:\w*[_-])?(?:(?:access|api|auth|hf|hub|secret|wandb)[_-]?(?:token|key)|api_?key|token|password|passwd|secret)",
    re.IGNORECASE,
)
_SECRET_ENTRY = re.compile(rf"(?<!\w)(\"?{_SECRET_KEY.pattern}\"?\s*[:=]\s*)(\S.*)", re.IGNORECASE)


def holds_secret(text: str) -> bool:
    """Whether the text contains what looks like a token of a known service or a private key."""
    return _SECRET.search(text) is not None


def names_secret(key: str) -> bool:
    """Whether a key asks for a secret (`hf_token`, `api_key`, `password`); `eos_token` and `num_tokens` do not."""
    if re.fullmatch(r"(?:eos|bos|pad|unk|sep|cls|mask|additional_special)_tokens?", key, re.IGNORECASE):
        return False
    return _SECRET_KEY.fullmatch(key) is not None


def without_secrets(text: str) -> str:
    """The text with everything that looks like a secret replaced by ***."""
    return _SECRET_ENTRY.sub(r"\1***", _SECRET.sub("***", text))


def readable(text: str) -> str:
    """The text without characters that move, hide or colour text on a terminal; a tab becomes an arrow."""
    return "".join(
        character if unicodedata.category(character)[0] != "C" else "\u2192" if character == "\t" else "\ufffd"
        for character in text
    )


def clipped(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def caret_snippet(lines: Sequence[str], line: int, column: int, width: int = 1) -> str:
    """Two lines: the source line with its number, and a caret under `width` columns. All counts are 1-based."""
    source = lines[line - 1] if 0 < line <= len(lines) else ""
    safe = without_secrets(source)
    if source[: column - 1] != safe[: column - 1]:
        column, width = 1, 1  # what stood before the column is no longer as long as it was
    start = max(0, column - 1 - MAX_LINE // 2) if len(safe) > MAX_LINE else 0
    shown = safe[start : start + MAX_LINE]
    before, marked = shown[: column - 1 - start], shown[column - 1 - start : column - 1 - start + width]
    number = f"{line} | "
    margin = " " * (len(number) - 2) + "| "
    return f"{number}{readable(shown)}\n{margin}{' ' * _num_columns(before)}{'^' * max(1, _num_columns(marked))}"


def _num_columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
