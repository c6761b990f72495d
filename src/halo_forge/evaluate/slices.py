"""Which items belong together: by source, by the labels that rows carry, and by length.

A slice is told as NAME=LABEL: `source=faq`, `domain=law`, `prompt_length=short`. Each is one more look at the same
items, so among many some look changed by chance; see docs/evaluation-and-gate.md. Axes: N items.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from halo_forge.evaluate.items import Item

BoolArray = npt.NDArray[np.bool_]

MIN_SLICE_ITEMS = 10
"""Fewer items say next to nothing about a slice."""
MAX_SLICES = 24
MAX_NAMED = 8
"""Slices left out that are named one by one in a note."""
MAX_LABEL_CHARS = 60
LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True, slots=True)
class Sliced:
    """masks: NAME=LABEL -> which items [N]. notes: what was left out, and where the lengths part, in words."""

    masks: dict[str, BoolArray]
    notes: tuple[str, ...] = ()


def slice_items(items: Sequence[Item], wanted: bool | Sequence[str]) -> Sliced:
    """wanted: all slices (True), none (False), or those of these names. Lengths are in tokens of the prompt and of the
    reference, each parted at its terciles; an item without tokens to measure has none."""
    if wanted is False:
        return Sliced({})
    labels: list[dict[str, str]] = [dict(item.labels) for item in items]
    notes = []
    lengths = {
        "prompt_length": [_lengths(item)[0] for item in items],
        "reference_length": [_lengths(item)[1] for item in items],
    }
    for name, values in lengths.items():
        if (wanted is True or name in wanted) and (edges := _terciles(values)) is not None:
            notes.append(f"{name}: short is up to {edges[0]} tokens, long from {edges[1] + 1}")
            for label, value in zip(labels, values, strict=True):
                if value is not None:
                    label.setdefault(name, LENGTHS[int(value > edges[0]) + int(value > edges[1])])
    if wanted is not True:
        labels = [{name: label[name] for name in wanted if name in label} for label in labels]
        unknown = [name for name in wanted if not any(name in label for label in labels)]
        notes += [f"evaluation.slices names {name}, and no row has this label" for name in unknown]
    sliced = slice_masks(labels)
    return Sliced(sliced.masks, (*notes, *sliced.notes))


def _lengths(item: Item) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the reference."""
    if item.example is None:
        return None, None
    answer = item.example.num_supervised_tokens
    return len(item.example.input_ids) - answer, answer


def _terciles(values: Sequence[int | None]) -> tuple[int, int] | None:
    """Upper ends of the short and of the medium ones; None where all are alike."""
    known = np.array([value for value in values if value is not None])
    if not len(known) or known.min() == known.max():
        return None
    low, high = np.quantile(known, [1 / 3, 2 / 3], method="lower")
    return int(low), int(high)


def slice_masks(labels: Sequence[Mapping[str, str]]) -> Sliced:
    """labels [N]: NAME -> LABEL of each item. A slice that is all items is none; one of fewer than MIN_SLICE_ITEMS, and
    the smallest beyond MAX_SLICES, are told in the notes and not measured."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        for name, value in label.items():
            members[f"{_told(name)}={_told(value)}"].append(index)
    parts = {name: found for name, found in members.items() if len(found) < len(labels)}
    few = {name: len(found) for name, found in parts.items() if len(found) < MIN_SLICE_ITEMS}
    enough = sorted(parts.keys() - few.keys(), key=lambda name: (-len(parts[name]), name))
    notes = []
    if few:
        notes.append(f"slices of fewer than {MIN_SLICE_ITEMS} items are not measured: {_counted(few)}")
    if len(enough) > MAX_SLICES:
        beyond = {name: len(parts[name]) for name in enough[MAX_SLICES:]}
        notes.append(f"only the {MAX_SLICES} largest slices are measured; left out: {_counted(beyond)}")
    masks = {}
    for name in sorted(enough[:MAX_SLICES]):
        masks[name] = np.zeros(len(labels), dtype=np.bool_)
        masks[name][parts[name]] = True
    return Sliced(masks, tuple(notes))


def _told(text: str) -> str:
    """One printable line; a long one is cut, and stays another than its like."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= MAX_LABEL_CHARS:
        return line
    return f"{line[:MAX_LABEL_CHARS]}...{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:6]}"


def _counted(sizes: Mapping[str, int]) -> str:
    named = [f"{name} ({size})" for name, size in sorted(sizes.items())[:MAX_NAMED]]
    rest = len(sizes) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")
