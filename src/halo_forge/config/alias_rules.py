"""How a key of another tool is read: the kinds of rows that the table in `aliases.py` is made of.

A rule turns a value into `Reading`: values for our keys, and what to tell the user. A value that asks for something
this release does not do raises `NotOffered`; a value that the other tool would refuse, too, raises `Misfit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halo_forge.config.yaml_text import shown_value

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """`values` maps our dotted keys to their values; `note` is what there is to say beyond "means ..."."""

    values: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


class NotOffered(Exception):
    """A known key that asks for something this release does not do, and what to do instead."""

    def __init__(self, why: str, instead: str, path: Path = ()) -> None:
        self.why, self.instead, self.path = why, instead, path
        super().__init__(why)


class Misfit(Exception):
    """A known key with a value that means nothing."""

    def __init__(self, expected: str, path: Path = ()) -> None:
        self.expected, self.path = expected, path
        super().__init__(expected)


@dataclass(frozen=True, slots=True)
class Rule:
    """`section` is where our key stands; a rule without one may stand anywhere. `renames` is the one key of ours
    that takes the value as it is, if the rule is no more than another name."""

    read: Callable[[Any], Reading]
    section: str | None = None
    renames: str | None = None


def is_empty(value: Any) -> bool:
    """What other tools write for "not set"."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def same(dotted: str) -> Rule:
    """Another name for one key of ours."""
    return Rule(lambda value: Reading({dotted: value}), dotted.partition(".")[0], dotted)


def choice(dotted: str, meanings: Mapping[Any, Any], refusals: Mapping[str, str] | None = None) -> Rule:
    """Fixed words: `meanings` maps theirs to ours, `refusals` maps words that are not offered to what to do instead."""

    def read(value: Any) -> Reading:
        found, meant = _looked_up(value, meanings)
        if found:
            return Reading({dotted: meant})
        refused, instead = _looked_up(value, refusals or {})
        if refused:
            raise NotOffered(f"{shown_value(value)} is not part of this release", instead)
        raise Misfit(f"one of {', '.join(shown_value(word) for word in meanings)}")

    return Rule(read, dotted.partition(".")[0])


def inverted(dotted: str) -> Rule:
    """A switch whose `true` is our `false`."""
    return choice(dotted, {True: False, False: True})


def turns_on(dotted: str, ours: Any) -> Rule:
    """A switch whose `true` chooses one value of ours and whose `false` says nothing."""

    def read(value: Any) -> Reading:
        if value is False:
            return Reading(note="nothing to do")
        if value is True:
            return Reading({dotted: ours})
        raise Misfit("true or false")

    return Rule(read, dotted.partition(".")[0])


def already(values: tuple[Any, ...], because: str, instead: str) -> Rule:
    """`values` are how things are here anyway; every other value is not offered."""

    def read(value: Any) -> Reading:
        if any(_equal(word, value) for word in values):
            return Reading(note=because)
        raise NotOffered(f"{shown_value(value)} is not part of this release: {because}", instead)

    return Rule(read)


def refused(what: str, instead: str) -> Rule:
    """Something this release does not do; switched off (false, 0, none) it is accepted."""

    def read(value: Any) -> Reading:
        if value is False or (isinstance(value, int | float) and value == 0) or str(value).lower() in ("none", "no"):
            return Reading(note="nothing to do")
        raise NotOffered(f"{what} is not part of this release", instead)

    return Rule(read)


def neutral(because: str) -> Rule:
    """A setting that cannot change the result here, whatever its value: it is reported and nothing else."""
    return Rule(lambda value: Reading(note=because))


def _looked_up(value: Any, words: Mapping[Any, Any]) -> tuple[bool, Any]:
    return next(((True, meaning) for word, meaning in words.items() if _equal(word, value)), (False, None))


def _equal(word: Any, value: Any) -> bool:
    """Equal and of the same type (1 is not true), text without regard to case."""
    if type(word) is not type(value):
        return False
    return bool(word.lower() == value.lower() if isinstance(word, str) else word == value)
