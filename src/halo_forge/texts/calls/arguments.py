"""A call held against the tools that were offered: the first thing that is wrong with it, by code.

unknown_tool           no tool of that name            wrong_argument_type   a value of another type
missing_argument       a required one is not there     argument_not_in_enum  a value that is not among the allowed
unknown_argument       one that the tool does not take  invalid_argument      anything else the schema forbids
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import referencing
import referencing.exceptions
import regex  # type: ignore[import-untyped]
from jsonschema import validators
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator

from halo_forge.texts.calls.record import Call, Schemas

CALL_PROBLEMS: Mapping[str, str] = {
    "unknown_tool": "a call of a tool that the row does not offer",
    "missing_argument": "a call without an argument that its tool requires",
    "unknown_argument": "a call with an argument that its tool does not take",
    "wrong_argument_type": "a call with an argument of another type than its tool takes",
    "argument_not_in_enum": "a call with a value that is not among those its tool allows",
    "invalid_argument": "a call with an argument that its tool's schema forbids",
}
_CODE_OF = {
    "required": "missing_argument", "dependentRequired": "missing_argument", "type": "wrong_argument_type",
    "enum": "argument_not_in_enum", "const": "argument_not_in_enum", "additionalProperties": "unknown_argument",
    "unevaluatedProperties": "unknown_argument",
}  # fmt: skip
_ORDER = list(CALL_PROBLEMS)
_PATTERN_TIMEOUT_S = 0.05
_MAX_ERRORS = 32


def call_problem(call: Call, tools: Schemas) -> tuple[str, str] | None:
    """(code, what is wrong in words), or None for a call that its tool can take."""
    schema = tools.get(call.name)
    if schema is None:
        near = difflib.get_close_matches(call.name[:80], [name[:80] for name in tools], n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; offered are {', '.join(list(tools)[:5])}"[:200]
        return "unknown_tool", f"{call.name[:80]} is no tool of this row{hint}"
    problems = list(_problems(call, schema))
    if not problems:
        return None
    code, words = min(problems, key=lambda problem: _ORDER.index(problem[0]))
    return code, f"{call.name[:60]}: {words}"


def _problems(call: Call, schema: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    properties = schema.get("properties")
    if isinstance(properties, dict) and "additionalProperties" not in schema and "patternProperties" not in schema:
        for name in call.arguments:
            if name not in properties:
                yield "unknown_argument", f"it takes no {name[:60]}; it takes {', '.join(properties)[:120]}"
    if not schema:
        return
    try:
        for count, error in enumerate(_validator(json.dumps(schema)).iter_errors(call.arguments)):
            yield _of_error(error)
            if count == _MAX_ERRORS:
                return
    except RecursionError:
        yield "invalid_argument", "nested too deep"
    except referencing.exceptions.Unresolvable as missing:
        yield "invalid_argument", f"its schema refers to {missing.ref}, which is not in it"


def _of_error(error: ValidationError) -> tuple[str, str]:
    place = ".".join(str(part) for part in error.absolute_path)
    if str(error.validator) in ("anyOf", "oneOf") and error.context:
        # Of the alternatives the one that came nearest tells most: the deepest error.
        inner = max(error.context, key=lambda other: len(other.absolute_path))
        code = _CODE_OF.get(str(inner.validator), "invalid_argument")
        place = ".".join(str(part) for part in inner.absolute_path) or place
        return code, f"{place or 'arguments'}: {inner.message[:120]}"
    code = _CODE_OF.get(str(error.validator), "invalid_argument")
    return code, f"{place}: {error.message[:120]}" if place else error.message[:120]


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    # An empty registry: what is not in the schema is an error, never a download.
    validator: Validator = _Guarded(json.loads(schema), registry=referencing.Registry())
    return validator


def _pattern(validator: Validator, pattern: str, instance: Any, schema: Any) -> Iterable[ValidationError]:
    """A pattern from a data file may be a trap; one that takes too long says nothing."""
    if not isinstance(instance, str):
        return
    try:
        if not regex.search(pattern, instance, timeout=_PATTERN_TIMEOUT_S):
            yield ValidationError(f"{instance[:60]!r} does not match {pattern[:60]!r}")
    except (TimeoutError, regex.error):
        return


def _not_held(validator: Validator, value: Any, instance: Any, schema: Any) -> Iterable[ValidationError]:
    return iter(())


_Guarded = validators.extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {"pattern": _pattern, "patternProperties": _not_held}
)
