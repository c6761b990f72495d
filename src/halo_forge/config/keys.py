"""Every key of the schema as a flat table: dotted name -> type, default, meaning, and what it expects in words."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from halo_forge.config.schema import Config, GateRule, SourceEntry

SECTION_MEANING = {
    "model": "The model to start from.",
    "data": "The rows: where they are, how they are read and split, what of them is trained.",
    "training": "The optimisation.",
    "lora": "Low-rank adapters; read when training.method is lora, dora or qlora.",
    "adapter": "Bottleneck adapters; read when training.method is adapter.",
    "audio": "What a speech model is told beside the sound; read where the model hears.",
    "vision": "Images; read when the model is one that sees.",
    "output": "The run directory.",
    "evaluation": "Base and tuned model on the held-out rows.",
    "judge": "A model that compares the answers of base and tuned; off without judge.judge_model.",
    "gate": "What a model must reach to be published.",
    "publish": "The registry of released versions.",
    "monitor": "When logged traffic counts as drifted, and what of it is kept.",
}
"""Meaning of each section; `schema.py` holds the meaning of the keys."""

_KEY_MEANING = {
    "training.num_train_epochs": "Passes over the training rows.",
    "training.lr_scheduler": "Shape of the learning rate after warm-up.",
    "training.adam_beta1": "Decay of AdamW's running mean of the gradient.",
    "training.adam_beta2": "Decay of AdamW's running mean of the squared gradient.",
    "training.adam_epsilon": "Keeps AdamW's division from zero.",
    "training.early_stopping": "Stop when the validation loss no longer falls.",
    "training.seed": "Seed of data order, initial adapters and dropout.",
    "lora.dropout": "Share of adapter inputs that are dropped while training.",
    "output.dir": "Everything a run writes is in this directory.",
    "evaluation.enabled": "Compare base and tuned after training.",
    "evaluation.max_new_tokens": "Longest generated answer in tokens.",
    "evaluation.batch_size": "Prompts that are answered together.",
    "evaluation.confidence": "Confidence of the reported intervals.",
    "evaluation.bootstrap_samples": "Resamples behind an interval.",
}

ENTRIES: dict[str, tuple[type[BaseModel], str]] = {
    "gate.rules": (GateRule, "rule"),
    "data.sources": (SourceEntry, "source"),
}
"""Keys that take a list of mappings: what an entry is made of, and what it is called."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One key. `default` is None also where the effective default depends on another key."""

    dotted: str
    annotation: Any
    metadata: tuple[Any, ...]
    default: Any
    meaning: str

    @property
    def section(self) -> str:
        return self.dotted.partition(".")[0]

    @property
    def leaf(self) -> str:
        return self.dotted.partition(".")[2]

    def expected(self) -> str:
        """What the key takes, in words: `a whole number of at least 1, or null`."""
        return expected_words(self.annotation, self.metadata)

    def accepts(self, kind: type) -> bool:
        """Whether a value of this Python type (str, bool, int, float, list, dict) is among those the key takes."""
        return kind in _kinds(self.annotation)

    def choices(self) -> tuple[str, ...]:
        """The words that the key takes, where it takes fixed words."""
        return choices_of(self.annotation)


def _key_specs() -> dict[str, KeySpec]:
    specs = {}
    for section, section_field in Config.model_fields.items():
        model = section_field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        defaults = model()
        for leaf, field in model.model_fields.items():
            dotted = f"{section}.{leaf}"
            meaning = " ".join((field.description or _KEY_MEANING.get(dotted, "")).split())
            specs[dotted] = KeySpec(dotted, field.annotation, tuple(field.metadata), getattr(defaults, leaf), meaning)
    return specs


KEYS: dict[str, KeySpec] = _key_specs()
SECTIONS: tuple[str, ...] = tuple(Config.model_fields)


def _dotted_by_leaf() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for spec in KEYS.values():
        found[spec.leaf] = (*found.get(spec.leaf, ()), spec.dotted)
    return found


DOTTED_BY_LEAF: dict[str, tuple[str, ...]] = _dotted_by_leaf()
"""`batch_size` -> every dotted key of that name; most names have one."""


def flat_values(config: Config) -> dict[str, Any]:
    """Every dotted key with its value as JSON data (rules are mappings, not models)."""
    nested = config.to_dict()
    return {dotted: nested[spec.section][spec.leaf] for dotted, spec in KEYS.items()}


def default_values() -> dict[str, Any]:
    return flat_values(Config())


def expected_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What values a type takes, in words."""
    members = list(_members(annotation))
    if len(members) > 1:
        words = [word for member in members for word in expected_words(member, metadata).split(" or ")]
        return f"{', '.join(words[:-1])}, or {words[-1]}"
    member, bounds = _unwrapped(members[0], metadata)
    if member is type(None):
        return "null"
    if get_origin(member) is Literal:
        allowed = [str(value).lower() if isinstance(value, bool) else str(value) for value in get_args(member)]
        return allowed[0] if len(allowed) == 1 else f"one of {', '.join(allowed)}"
    if get_origin(member) is list:
        (item,) = get_args(member)
        return f"a list of {_plural(item)}"
    if get_origin(member) is dict:
        return f"a mapping of names to {expected_words(get_args(member)[1])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(member, "a mapping") + _bounds_words(bounds)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The fixed words among the values of a type."""
    return tuple(
        word
        for member in _members(annotation)
        if get_origin(member) is Literal
        for word in get_args(member)
        if isinstance(word, str)
    )


def entry_keys(dotted: str) -> tuple[str, ...]:
    """Keys of one entry of gate.rules or data.sources."""
    return tuple(ENTRIES[dotted][0].model_fields)


def entry_expected(dotted: str, leaf: str) -> str:
    field = ENTRIES[dotted][0].model_fields.get(leaf)
    return expected_words(field.annotation, field.metadata) if field is not None else "a mapping"


def entry_settings(dotted: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without the keys that have their default."""
    fields = ENTRIES[dotted][0].model_fields
    return {key: value for key, value in entry.items() if key not in fields or value != fields[key].default}


def _plural(item: Any) -> str:
    for dotted, (model, word) in ENTRIES.items():
        if item is model:
            return f"{word}s (mappings with {', '.join(entry_keys(dotted))})"
    if get_origin(item) is Literal:
        return ", ".join(get_args(item))
    names = {str: "texts", int: "whole numbers"}
    return names.get(_unwrapped(item, ())[0], "values")


def _members(annotation: Any) -> Iterable[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _unwrapped(member: Any, metadata: Iterable[Any]) -> tuple[Any, list[Any]]:
    bounds = list(metadata)
    while get_origin(member) is Annotated:
        member, *extra = get_args(member)
        bounds.extend(extra)
    flat: list[Any] = []
    for bound in bounds:
        flat.extend(bound.metadata if isinstance(bound, FieldInfo) else [bound])
    return member, flat


def _kinds(annotation: Any) -> set[type]:
    kinds: set[type] = set()
    for member in _members(annotation):
        bare, _ = _unwrapped(member, ())
        if get_origin(bare) is list:
            kinds.add(list)
        elif get_origin(bare) is dict:
            kinds.add(dict)
        elif get_origin(bare) is not Literal:
            kinds.add(bare)
        elif any(isinstance(word, bool) for word in get_args(bare)):
            kinds.add(bool)
    return kinds


def _bounds_words(bounds: list[Any]) -> str:
    named = (("ge", "of at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    words = [f"{word} {getattr(bound, name):g}" for bound in bounds for name, word in named if hasattr(bound, name)]
    return f" {' and '.join(words)}" if words else ""
