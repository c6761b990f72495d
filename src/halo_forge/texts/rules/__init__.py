"""Lists of regular expressions: one a line, `# comment`, and `<name> = part` for a part that several share."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_PART = re.compile(r"(<[a-z]+>) = (.*)")


@cache
def rules(file: str) -> re.Pattern[str]:
    """All rules of a file as one expression."""
    parts: dict[str, str] = {}
    found = []
    for line in (resources.files(__package__) / file).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        for name, part in parts.items():
            line = line.replace(name, part)
        if definition := _PART.fullmatch(line):
            parts[definition[1]] = definition[2]
        else:
            found.append(line)
    return re.compile("|".join(found))
