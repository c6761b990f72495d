"""One key as it was typed, and what it means: the records that the configuration is resolved from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from halo_forge.config.alias_rules import Path
from halo_forge.config.snippets import clipped, readable, without_secrets
from halo_forge.config.strict_yaml import Document, Entry
from halo_forge.errors import ConfigProblem

Layer = dict[str, "Setting"]


@dataclass(frozen=True, slots=True)
class Given:
    """One key as it was typed. `origin` is what `config show` prints, `shown` the short form for notices.
    `text` is the typed text where the source has no types of its own (environment, --set); `part` is the name inside
    a mapping that alone was set (`--set data.policies.pii_email=fix`)."""

    section: str | None
    key: str
    value: Any
    origin: str
    shown: str
    document: Document | None = None
    entry: Entry | None = None
    text: str | None = None
    part: str | None = None

    @property
    def typed(self) -> str:
        names = (self.section, self.key, self.part)
        return readable(clipped(".".join(name for name in names if name is not None)))

    def problem(
        self, message: str, suggestion: str | None = None, *, at: Path | None = None, of_key: bool = False
    ) -> ConfigProblem:
        """A problem with the key, or with the value (`at=()`), or with a part of the value (or that part's key)."""
        message = readable(without_secrets(message))
        if self.document is None or self.entry is None:
            where = f"{self.origin} {without_secrets(self.typed)}" if self.origin == "--set" else self.origin
            return ConfigProblem(message=message, where=where, suggestion=suggestion)
        place = self.entry.place if at is None else self.entry.node.place_at(at, of_key=of_key)
        return ConfigProblem(
            message=message,
            where=self.document.where(place),
            snippet=self.document.snippet(place),
            suggestion=suggestion,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for one of our keys, and the typed key that it came from. `over` is the setting of the same mapping
    to which this one adds a part; `value` holds both."""

    dotted: str
    value: Any
    given: Given
    over: Setting | None = None

    @property
    def renamed(self) -> bool:
        return f"{self.given.section}.{self.given.key}" != self.dotted

    @property
    def origin(self) -> str:
        below = [] if self.over is None else self.over.origin.split(", ")
        return ", ".join(dict.fromkeys((*below, self.given.origin)))

    def joined_to(self, lower: Setting | None) -> Setting:
        """This setting over a lower one: instead of it, or, as a part of a mapping, added to it."""
        if self.given.part is None or lower is None or not isinstance(lower.value, dict):
            return self
        below = self.over.joined_to(lower) if self.over is not None else lower
        return Setting(self.dotted, lower.value | self.value, self.given, below)

    def given_for(self, path: Path) -> Given:
        """Where the part of the value at `path` was typed."""
        if self.over is None or (path and path[0] in self.given.value):
            return self.given
        return self.over.given_for(path)


@dataclass(slots=True)
class Findings:
    """What one load has to say."""

    problems: list[ConfigProblem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    num_unknown: int = 0


def closest(word: str, words: Sequence[str]) -> str | None:
    if len(word) > 64:
        return None
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None
