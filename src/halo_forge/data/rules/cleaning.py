"""Characters and marks that came with the file and not with its author: what they are and how they are mended.

Each mend is a function from text to text that changes nothing else, and is idempotent. A mend is only ever applied
where the rule's action is `fix`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters without tab, line feed and carriage return, and the marks that override text direction. Joiners
and direction marks that scripts need (ZWJ, ZWNJ, LRM, RLM) are text."""
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,4}[@-~]")
_PAGE_BREAK = re.compile(r"[\x0b\x0c\x85]")

_MOJIBAKE_RUN = re.compile(
    "[ÂÃ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]"
    "|â[€‚\u0080\u0082][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u02c6\u02dc\u2018-\u2122]"
    "|ð(?:Ÿ|\u009f)[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]{2}"
    "|(?:[ÐÑ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]){3,}"
)
"""UTF-8 read one byte a character: two bytes from C2/C3, three from E2 80 or E2 82, four from F0 9F, three Cyrillic
letters in a row."""
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)([^`\n]*)$", re.M)
_SPAN_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,500}`", re.S)
_BOLD_OPEN = re.compile(r"(?:^|(?<=\s))\*\*(?=[^\W\d])(?!\w{1,60}[,)=])", re.M)
_BOLD_CLOSE = re.compile(r"(?<=[^\s*\\])\*\*(?=[\s.,:;!?)]|$)", re.M)
_OPEN_LINK = re.compile(r"\[[^\[\]\n]{1,200}\]\([^()\s]{0,300}$", re.M)
_HTML = re.compile(
    r"</(?:div|span|p|font|td|tr|table|ul|ol|li|a|b|i|em|strong|center|h[1-6])>|<br ?/?>"
    r"|&(?:nbsp|amp|quot|lt|gt|rsquo|lsquo|rdquo|ldquo|hellip|#39|#x27|#160);"
)
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:def|class|import|from|function|var|let|const|#include|public|SELECT|<html|<!)\b", re.M
)
_ABOUT_HTML = re.compile(
    r"\b(?:x?html|xml|svg|tags?|web|website|webpage|css|javascript|jsx|react|page|markup|entit)", re.I
)


def without_control_characters(text: str) -> str:
    """Terminal sequences go whole, page breaks become line breaks, every other control character goes."""
    return CONTROL.sub("", _PAGE_BREAK.sub("\n", _ANSI.sub("", text)))


def normalised(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _decoded(match: re.Match[str]) -> str:
    return _decoded_run(match[0])


@lru_cache(maxsize=4096)
def _decoded_run(run: str) -> str:
    try:
        return b"".join(map(_byte, run)).decode("utf-8")
    except UnicodeError:
        return run


def _byte(letter: str) -> bytes:
    """Windows-1252, and Latin-1 for the five bytes that it leaves out."""
    return bytes((ord(letter),)) if ord(letter) < 0x100 else letter.encode("cp1252")


def mojibake_runs(text: str) -> list[str]:
    """The runs that certainly are UTF-8 read as single bytes: each decodes, and no language writes it."""
    if text.isascii():
        return []
    # A capital Â or Ã before a typographic quote is ordinary Portuguese in capitals; before another sign it is not.
    doubtful = "Â" if text.count("Â") == 1 else ""
    return [
        m[0]
        for m in _MOJIBAKE_RUN.finditer(text)
        if (m[0][0] not in "ÂÃ" or m[0][1] <= "\xbf" or m[0][1] in "ƒ‚") and m[0][0] != doubtful and _decoded(m) != m[0]
    ]


def without_mojibake(text: str) -> str:
    """Text with every run decoded, until none is left (text may have been damaged twice); as it was if none is sure."""
    for _ in range(4):
        if not mojibake_runs(text):
            break
        text = _MOJIBAKE_RUN.sub(_decoded, text)
    return text


def open_fence(text: str) -> str | None:
    """The marks of the code block that is still open at the end, None when all are closed."""
    if "```" not in text and "~~~" not in text:
        return None
    marks: str | None = None
    for match in _FENCE.finditer(text):
        if marks is None:
            marks = match[1]
        elif match[1][0] == marks[0] and len(match[1]) >= len(marks) and not match[2].strip():
            marks = None
    return marks


def with_closed_fence(text: str) -> str:
    marks = open_fence(text)
    return text if marks is None else f"{text}{'' if text.endswith(chr(10)) else chr(10)}{marks}"


def broken_mark(text: str) -> str | None:
    """A bold mark or link that is not closed, outside code; None when all are. `**` is also a power sign and a glob, so
    only marks that can be nothing else are counted."""
    if "**" not in text and "](" not in text:
        return None
    prose = _SPAN_CODE.sub("", text)
    link = _OPEN_LINK.search(prose)
    if link:
        return link[0]
    for paragraph in prose.split("\n\n"):
        if paragraph.count("**") % 2 and len(_BOLD_OPEN.findall(paragraph)) > len(_BOLD_CLOSE.findall(paragraph)):
            at = paragraph.rfind("**")
            return paragraph[max(0, at - 20) : at + 30]
    return None


def html_remains(answer: str, prompt: str) -> str | None:
    """A tag or entity in an answer to a prompt that is not about markup; None when there is none."""
    if "</" not in answer and "<br" not in answer and ("&" not in answer or ";" not in answer):
        return None
    if "```" in answer:
        return None
    found = _HTML.search(answer)
    if (
        found is None
        or _CODE_LINE.search(answer)
        or _HTML.search(prompt)
        or "<" in prompt
        or _ABOUT_HTML.search(prompt)
    ):
        return None
    return answer[max(0, found.start() - 20) : found.end() + 20]
