"""What production asks about that the release did not know: far prompts, gathered as they come. One pass, bounded.

A far prompt joins the gathering that it is nearest to, or starts one (leader clustering: Hartigan 1975). A gathering is
a sum of vectors and a count; words and examples only where the user wants texts kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halo_forge.monitor.records import Topic
from halo_forge.texts.telling_words import count_words, telling_words

JOIN_COSINE = 0.35
MAX_GATHERINGS = 32
MAX_EXAMPLES = 3
EXAMPLE_CHARS = 160
NUM_NAMING_WORDS = 5
MIN_TOPIC_ROWS = 5
MIN_TOPIC_SHARE = 0.005
FIXED_POINT = 1024


@dataclass(slots=True)
class Gathering:
    """`sums` int64 [d]: vectors from the middle of the release's prompts, times FIXED_POINT."""

    sums: np.ndarray
    num_rows: int = 0
    words: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "sums": self.sums.tolist(), "num_rows": self.num_rows, "words": dict(self.words), "examples": self.examples
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Gathering:
        sums = np.array(value["sums"], np.int64)
        return cls(sums, value["num_rows"], Counter(value["words"]), list(value["examples"]))


def gather(gatherings: list[Gathering], vectors: np.ndarray, texts: Sequence[str] | None) -> None:
    """Add far prompts: vectors [n, d] from the middle of the release's prompts. `texts` are kept where given."""
    scaled = np.rint(vectors * FIXED_POINT).astype(np.int64)
    for row, vector in enumerate(scaled):
        place = _nearest(gatherings, vector)
        if place is None:
            gatherings.append(Gathering(np.zeros(len(vector), np.int64)))
            place = len(gatherings) - 1
        found = gatherings[place]
        found.sums = found.sums + vector
        found.num_rows += 1
        if texts is not None:
            count_words(found.words, texts[row])
            if len(found.examples) < MAX_EXAMPLES:
                found.examples.append(texts[row][:EXAMPLE_CHARS])


def _nearest(gatherings: list[Gathering], vector: np.ndarray) -> int | None:
    if not gatherings:
        return None
    sums = np.array([found.sums for found in gatherings], np.float64)
    norms = np.linalg.norm(sums, axis=1) * max(float(np.linalg.norm(vector)), 1e-9)
    cosines = sums @ vector / np.maximum(norms, 1e-9)
    best = int(cosines.argmax())
    return best if cosines[best] >= JOIN_COSINE or len(gatherings) >= MAX_GATHERINGS else None


def topics_of(gatherings: Sequence[Gathering], num_rows: int, all_words: Counter[str]) -> tuple[Topic, ...]:
    """The gatherings that are large enough to be one, largest first. `all_words` are those of all rows."""
    least = max(MIN_TOPIC_ROWS, MIN_TOPIC_SHARE * num_rows)
    large = sorted((g for g in gatherings if g.num_rows >= least), key=lambda g: -g.num_rows)
    topics = []
    for found in large:
        signs = np.packbits(found.sums > 0).tobytes()
        words = telling_words(found.words, found.num_rows, all_words, num_rows, NUM_NAMING_WORDS)
        name = " ".join(words[:2]) or f"topic {hashlib.sha256(signs).hexdigest()[:8]}"
        topics.append(Topic(name=name, num_rows=found.num_rows, words=words, examples=tuple(found.examples)))
    return tuple(topics)
