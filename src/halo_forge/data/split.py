"""Which rows train, which validate, which are held out: a pure function of the prompt.

A row's place follows from the hash of its opening (`formats.prompt_key`) alone: equal prompts stay together, order and
file do not matter, and rows added later never move old ones. The holdout takes the low end of the hash range, so
another validation share does not touch it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

SplitName = Literal["train", "validation", "holdout"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "holdout")
MIN_ROWS_FOR_A_SHARE = 10
"""From here on a share above zero gets at least one row."""


def position(prompt_key: str) -> float:
    """The place of a prompt in [0, 1): the first 52 bits of its hash."""
    return int(prompt_key[:13], 16) / 2**52


def split_of(prompt_key: str, validation_frac: float, holdout_frac: float) -> SplitName:
    place = position(prompt_key)
    if place < holdout_frac:
        return "holdout"
    return "validation" if place < holdout_frac + validation_frac else "train"


def assign(
    prompt_keys: Iterable[str], validation_frac: float, holdout_frac: float
) -> tuple[Mapping[str, SplitName], list[SplitName]]:
    """({prompt key: split}, splits that were empty by their hashes and got one prompt).

    With ten rows or more, a share above zero that no hash falls into gets the prompt with the smallest hash that is
    left, and training always keeps one. Those few exceptions are the only places that can change when rows are added.
    """
    keys = list(prompt_keys)
    splits: dict[str, SplitName] = {key: split_of(key, validation_frac, holdout_frac) for key in sorted(set(keys))}
    helped: list[SplitName] = []
    shares: tuple[tuple[SplitName, float], ...] = (("holdout", holdout_frac), ("validation", validation_frac))
    for name, share in shares:
        spare = [key for key, split in splits.items() if split == "train"]
        if share > 0 and name not in splits.values() and len(keys) >= MIN_ROWS_FOR_A_SHARE and len(spare) > 1:
            splits[spare[0]] = name
            helped.append(name)
    if splits and "train" not in splits.values():
        splits[max(splits)] = "train"
        helped.append("train")
    return splits, helped
