"""Whether the calls of an answer are the wanted ones: names and arguments, by the rules of BFCL's AST checker.

Calls match in any order, each wanted one to another said one. Of a call
    every argument is one that the tool takes, with a value of its type (an integer will do for a number, in a list too)
    a value is one of the acceptable ones; texts are compared without case, white space and , . / - _ * ^
    an argument may be left out where "" is among its acceptable values, or where it has its tool's default

`exact_call` is the strict comparison beside it: the same JSON values, character by character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halo_forge.texts.calls.record import Call, Schemas

_IGNORED = re.compile(r"[ ,./\-_*^]")
_PYTHON_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that is wanted. `accepts`: argument -> its acceptable values; "" among them: it may be left out.
    None where `call` is the one right call."""

    call: Call
    accepts: Mapping[str, Sequence[Any]] | None = None


def calls_match(said: Sequence[Call], wanted: Sequence[Wanted], tools: Schemas, *, exact: bool = False) -> bool:
    """Whether said and wanted calls pair off. Axes: as many of one as of the other."""
    if len(said) != len(wanted):
        return False
    try:
        fits = [[_fits(call, want, tools, exact) for call in said] for want in wanted]
    except RecursionError:  # an answer may be thousands of brackets deep
        return False
    taken: dict[int, int] = {}  # said -> wanted

    def place(want: int, tried: set[int]) -> bool:
        for at, fit in enumerate(fits[want]):
            if fit and at not in tried:
                tried.add(at)
                if at not in taken or place(taken[at], tried):
                    taken[at] = want
                    return True
        return False

    return all(place(want, set()) for want in range(len(wanted)))


def _fits(call: Call, want: Wanted, tools: Schemas, exact: bool) -> bool:
    if call.name != want.call.name:
        return False
    if exact:
        return exact_call(call, want)
    schema = tools.get(call.name, {})
    return call_matches(call, want, schema)


def exact_call(call: Call, want: Wanted) -> bool:
    """The same name and equal JSON values; of alternatives, one of them."""
    if call.name != want.call.name:
        return False
    if want.accepts is None:
        return same_json(call.arguments, want.call.arguments)
    for name, accepted in want.accepts.items():
        if name not in call.arguments:
            if "" not in accepted:
                return False
        elif not any(_one_of_json(call.arguments[name], value) for value in accepted):
            return False
    return all(name in want.accepts for name in call.arguments)


def _one_of_json(value: Any, accepted: Any) -> bool:
    """Equal, or, in an object, each value one of its list."""
    if isinstance(accepted, dict) and isinstance(value, dict) and all(isinstance(v, list) for v in accepted.values()):
        return set(value) <= set(accepted) and all(
            any(_one_of_json(value[key], one) for one in ones) if key in value else "" in ones
            for key, ones in accepted.items()
        )
    if isinstance(accepted, list) and isinstance(value, list):
        return len(accepted) == len(value) and all(map(_one_of_json, value, accepted))
    return same_json(value, accepted)


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are the same number, true is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return (numbers or type(one) is type(other)) and bool(one == other)


def call_matches(call: Call, want: Wanted, schema: Mapping[str, Any]) -> bool:
    """The comparison of one call by the rules above; names are taken to be equal."""
    properties = schema.get("properties") or {}
    required = schema.get("required") or []
    if any(name not in call.arguments for name in required):
        return False
    if want.accepts is None:
        return _plain_match(call.arguments, want.call.arguments, properties)
    for name, value in call.arguments.items():
        if name not in properties or name not in want.accepts:
            return False
        if not _accepted(value, want.accepts[name], properties[name]):
            return False
    return all(name in call.arguments or "" in accepted for name, accepted in want.accepts.items())


# ------------------------------------------------------------------------------------------- one right call


def _plain_match(said: Mapping[str, Any], wanted: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    for name in {*said, *wanted}:
        if name in said and name in wanted:
            if not _same_loosely(said[name], wanted[name]):
                return False
            continue
        details = properties.get(name)
        value = said[name] if name in said else wanted[name]
        if not (isinstance(details, dict) and "default" in details and _same_loosely(value, details["default"])):
            return False
    return True


def _same_loosely(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return plain_text(one) == plain_text(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_loosely(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_loosely, one, other))
    return same_json(one, other)


# ------------------------------------------------------------------------------------ acceptable alternatives


def plain_text(text: str) -> str:
    """What of a text is compared."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _plain(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) else value


def _accepted(value: Any, accepted: Sequence[Any], details: Any) -> bool:
    """Whether a value is of its type and among the acceptable ones. An acceptable value of another type than the
    declared one stands for a variable and is taken as it is."""
    details = details if isinstance(details, dict) else {}
    declared = _python_type(details)
    inner = _python_type(details["items"]) if declared is list and isinstance(details.get("items"), dict) else None
    if declared is float and type(value) is int:
        value = float(value)
    meant = next((type(one) for one in accepted if one != ""), None)
    if type(value) is declared:
        if inner is not None and not _items_fit(value, accepted, inner):
            return False
        is_variable = meant is not None and meant is not declared
    elif meant is not None and type(value) is meant:
        is_variable = True
    else:
        return False
    return value in accepted if is_variable else _among(value, accepted, declared, inner)


def _python_type(details: Mapping[str, Any]) -> type:
    """Of a declared type; text where none is declared, as BFCL's `any`."""
    kind = details.get("type")
    return _PYTHON_TYPES.get(kind if isinstance(kind, str) else "string", str)


def _items_fit(items: Any, accepted: Sequence[Any], inner: type) -> bool:
    """Whether the items are of their type, or of the type of an acceptable list's items."""
    for one in accepted:
        if not isinstance(one, list):
            return True
        meant = next((type(item) for item in one if item != ""), None)
        right = {inner, meant, int} if inner is float else {inner, meant}
        if all(type(item) in right for item in items):
            return True
    return False


def _among(value: Any, accepted: Sequence[Any], declared: type, inner: type | None) -> bool:
    if declared is dict:
        return any(one != "" and _object_fits(value, one) for one in accepted)
    if declared is list and inner is dict:
        return any(
            len(one) == len(value)
            and all(
                isinstance(item, dict) and _object_fits(item, other) for item, other in zip(value, one, strict=True)
            )
            for one in accepted
        )
    if declared is str:
        return plain_text(value) in [plain_text(one) for one in accepted if isinstance(one, str)]
    if declared is list:
        return [_plain(item) for item in value] in [[_plain(item) for item in one] for one in accepted]
    return value in accepted


def _object_fits(value: Mapping[str, Any], accepted: Any) -> bool:
    if not isinstance(accepted, dict):
        return False
    lists = {key: ones if isinstance(ones, list) else [ones] for key, ones in accepted.items()}
    return all(key in lists and _plain(item) in map(_plain, lists[key]) for key, item in value.items()) and all(
        key in value or "" in ones for key, ones in lists.items()
    )
