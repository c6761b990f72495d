"""Lists of regular expressions: one a line, `# comment`, and `<name> = part` for a part that several share.

`? one | two` opens a group: its rules are tried only on sentences with one of these words in them, which every match of
theirs has. That is what makes rules fast enough for logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_PART = re.compile(r"(<[a-z]+>) = (.*)")
_SENTENCE = re.compile(r"(?:[^.!?。！？]|[.!?](?!\s|$))+[.!?。！？]*|[.!?。！？]+")


@dataclass(frozen=True, slots=True)
class Group:
    """needs: what every match has one of; () where nothing is known. pattern: all its rules as one expression."""

    needs: tuple[str, ...]
    pattern: re.Pattern[str]

    def may_match(self, text: str) -> bool:
        return not self.needs or any(word in text for word in self.needs)


def matches(groups: tuple[Group, ...], text: str) -> bool:
    """Whether a rule is found in a sentence of the text, which is in lower case with single spaces. `^` is the start
    of the text; no rule looks beyond a sentence."""
    likely = [group for group in groups if group.may_match(text)]
    for found in _SENTENCE.finditer(text) if likely else ():
        for group in likely:
            if group.may_match(found[0]) and group.pattern.search(text, found.start(), found.end()):
                return True
    return False


@cache
def rules(file: str) -> tuple[Group, ...]:
    parts: dict[str, str] = {}
    found: dict[tuple[str, ...], list[str]] = {}
    needs: tuple[str, ...] = ()
    for line in (resources.files(__package__) / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("? "):
            needs = tuple(line.removeprefix("? ").split(" | "))
        if not line or line.startswith(("#", "? ")):
            continue
        for name, part in parts.items():
            line = line.replace(name, part)
        if definition := _PART.fullmatch(line):
            parts[definition[1]] = definition[2]
        else:
            found.setdefault(needs, []).append(line)
    return tuple(Group(needs, re.compile("|".join(lines))) for needs, lines in found.items())
