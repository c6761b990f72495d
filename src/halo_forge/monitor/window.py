"""A window of traffic as counts and sums: rows go in, nothing of their text stays.

All that is summed is a whole number, so the same rows give the same window in whatever portions they were read: a
monitor that was killed and went on ends with the very bytes of one that was not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from halo_forge.monitor.production_log import LoggedRow
from halo_forge.monitor.topics import Gathering, gather
from halo_forge.texts.json_documents import is_json_document
from halo_forge.texts.refusal import refuses
from halo_forge.texts.telling_words import count_words
from halo_forge.traits import language
from halo_forge.traits.answers import is_repetitive
from halo_forge.traits.prompt_space import PromptSpace, place

MAX_IDS = 20_000
"""A window remembers so many request ids (8 bytes each, hashed); a repetition of a later one is counted as a row."""
ROWS_PER_PORTION = 256


@dataclass(frozen=True, slots=True)
class Instruments:
    """What can be measured here. `embed` gives the vectors that `space` is made of, float32 [n, d]; both or neither."""

    space: PromptSpace | None = None
    embed: Callable[[Sequence[str]], np.ndarray] | None = None
    languages: bool = False
    store_texts: bool = False
    salt: bytes = b""


@dataclass(slots=True)
class Window:
    """`flags`: json, empty, refusal, repetition; stopped of stop_known rows. `features` int64 [f], `topics` per centre
    and `num_far` are over the `num_placed` rows that have a vector."""

    number: int
    num_rows: int = 0
    num_duplicates: int = 0
    num_late: int = 0
    first_s: float | None = None
    last_s: float | None = None
    prompt_chars: Counter[int] = field(default_factory=Counter)
    answer_chars: Counter[int] = field(default_factory=Counter)
    prompt_languages: Counter[str] = field(default_factory=Counter)
    answer_languages: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    num_placed: int = 0
    num_far: int = 0
    features: list[int] = field(default_factory=list)
    topics: Counter[int] = field(default_factory=Counter)
    gatherings: list[Gathering] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)

    def add(self, rows: Sequence[LoggedRow], instruments: Instruments) -> None:
        for start in range(0, len(rows), ROWS_PER_PORTION):
            self._add_portion(rows[start : start + ROWS_PER_PORTION], instruments)

    def is_duplicate(self, row: LoggedRow, salt: bytes) -> bool:
        """Whether a row of this window has the same request id; otherwise its id is remembered."""
        if row.request_id is None:
            return False
        digest = hashlib.blake2b(row.request_id.encode("utf-8", "replace"), digest_size=8, key=salt).hexdigest()
        if digest in self.ids:
            return True
        if len(self.ids) < MAX_IDS:
            self.ids.add(digest)
        return False

    def _add_portion(self, rows: Sequence[LoggedRow], instruments: Instruments) -> None:
        for row in rows:
            self.num_rows += 1
            self.prompt_chars[len(row.prompt)] += 1
            self.answer_chars[len(row.answer)] += 1
            if row.time_s is not None:
                self.first_s = row.time_s if self.first_s is None else min(self.first_s, row.time_s)
                self.last_s = row.time_s if self.last_s is None else max(self.last_s, row.time_s)
            self.flags["json"] += is_json_document(row.answer)
            self.flags["empty"] += not row.answer.strip()
            self.flags["refusal"] += refuses(row.answer)
            self.flags["repetition"] += is_repetitive(row.answer)
            if row.stopped is not None:
                self.flags["stop_known"] += 1
                self.flags["stopped"] += row.stopped
            if instruments.languages:
                self.prompt_languages[language.language_of(row.prompt)] += 1
                self.answer_languages[language.language_of(row.answer)] += 1
            if instruments.store_texts:
                count_words(self.words, row.prompt)
        if instruments.space is not None and instruments.embed is not None:
            self._place([row.prompt for row in rows], instruments.space, instruments.embed, instruments.store_texts)

    def _place(
        self, prompts: list[str], space: PromptSpace, embed: Callable[[Sequence[str]], np.ndarray], keep: bool
    ) -> None:
        vectors = embed(prompts)
        waves, topics, is_far = place(vectors, space)
        self.features = (waves.sum(0) + np.array(self.features or [0], np.int64)).tolist()
        self.topics.update(topics.tolist())
        self.num_placed += len(prompts)
        self.num_far += int(is_far.sum())
        far = np.flatnonzero(is_far)
        middle = np.mean(space.centres, axis=0)
        texts = [prompts[at] for at in far.tolist()] if keep else None
        gather(self.gatherings, vectors[far] - middle, texts)

    def span(self) -> tuple[str | None, str | None]:
        """Earliest and latest time of its rows, ISO 8601 in UTC."""
        return _iso(self.first_s), _iso(self.last_s)

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number, "num_rows": self.num_rows, "num_duplicates": self.num_duplicates,
            "num_late": self.num_late, "first_s": self.first_s, "last_s": self.last_s,
            "prompt_chars": _pairs(self.prompt_chars), "answer_chars": _pairs(self.answer_chars),
            "prompt_languages": _pairs(self.prompt_languages), "answer_languages": _pairs(self.answer_languages),
            "flags": _pairs(self.flags), "num_placed": self.num_placed, "num_far": self.num_far,
            "features": self.features, "topics": _pairs(self.topics),
            "gatherings": [gathering.to_json() for gathering in self.gatherings],
            "words": _pairs(self.words), "ids": sorted(self.ids),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Window:
        """Raises KeyError, TypeError or ValueError for what `to_json` does not write."""
        counts = ("prompt_chars", "answer_chars", "prompt_languages", "answer_languages", "flags", "topics", "words")
        fields: dict[str, Any] = {name: Counter(dict(value[name])) for name in counts}
        fields["gatherings"] = [Gathering.from_json(part) for part in value["gatherings"]]
        fields["ids"] = set(value["ids"])
        return cls(**{**value, **fields})


def _pairs(counts: Counter[Any]) -> list[list[Any]]:
    """A counter whose keys may be numbers, as JSON can hold it."""
    return [[key, count] for key, count in sorted(counts.items())]


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
