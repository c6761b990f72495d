"""Whether an answer says that it does not know, or that nobody can: rules in eight languages
(rules/abstention.txt).

Refusing ("I can't help with that") is something else. An answer that hedges and then names something all the same
("I'm not sure, but I think it is Oslo") abstains by these rules, because whoever reads it is warned.
"""

from __future__ import annotations

from halo_forge.texts.rules import matches, rules

SEEN_CHARS = 400


def abstains(text: str) -> bool:
    """Whether the answer says that it does not or cannot know. An empty answer does not."""
    plain = text.replace("’", "'").replace("‘", "'")
    return matches(rules("abstention.txt"), " ".join(plain[:SEEN_CHARS].lower().split()))
