"""Answers that are meant to be JSON: parsed strictly, compared by value, held against a schema.

An answer is JSON or it is not: no code fence is peeled off and nothing around it is skipped. `repaired_json` does both,
for a number of its own beside the strict one: how much of what fails is only wrapping.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import referencing
import referencing.exceptions
from jsonschema import exceptions, validators
from jsonschema.protocols import Validator
from referencing.jsonschema import DRAFT202012

from halo_forge.errors import UsageError


def is_json_document(text: str) -> bool:
    """Whether the text is one JSON object or array (a bare number or word is no document)."""
    parsed = parse_json(text)
    return parsed is not None and isinstance(parsed[0], (dict, list))


def parse_json(text: str) -> tuple[Any] | None:
    """The parsed value in a 1-tuple (null is a value), or None. NaN and Infinity are not JSON. Never raises: an
    answer may be thousands of brackets deep."""
    try:
        return (json.loads(text, parse_constant=_refuse_constant, parse_float=_plain_number),)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _plain_number(digits: str) -> int | float:
    value = float(digits)
    return int(value) if math.isfinite(value) and value.is_integer() else value


def canonical_json(text: str) -> str | None:
    """One spelling for equal values. Text, not Python objects, because True == 1 there."""
    parsed = parse_json(text)
    try:
        return None if parsed is None else json.dumps(parsed[0], sort_keys=True)
    except RecursionError:
        return None


def json_valid(text: str, reference: str) -> float | None:
    """1 when the answer is one JSON object or array. None when the reference is not."""
    return float(is_json_document(text)) if is_json_document(reference) else None


def json_match(text: str, reference: str) -> float | None:
    """1 when the answer parses to the same JSON value as the reference: key order, white space and 1 against 1.0 do
    not matter, list order and types do. None when the reference is not a JSON object or array."""
    if not is_json_document(reference):
        return None
    said = canonical_json(text)
    return float(said is not None and said == canonical_json(reference))


_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)\n?^[ \t]*\1[ \t]*$", re.S | re.M)
_STRING_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|,(?=\s*[\]}])', re.S)


def repaired_json(text: str) -> str:
    """The text with three repairs and no more, each tried only where the text is no JSON yet: the first code fence
    peeled off, prose before and after the first object or array cut off, a comma before a closing bracket dropped.
    Nothing is added: what is cut off in the middle stays broken. A text that they do not make JSON stays as it is."""
    repaired = text
    for repair in (str, _unfenced, _first_document):
        repaired = repair(repaired)
        if parse_json(repaired) is not None:
            return repaired
    return text


def _unfenced(text: str) -> str:
    found = _FENCED.search(text)
    return found[2] if found else text


def _first_document(text: str) -> str:
    """From the first bracket to the one that closes it, without trailing commas; the text itself without such."""
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=None)
    if start is None:
        return text
    kept, depth, at = [], 0, start
    for found in _STRING_OR_MARK.finditer(text, start):
        if found[0] == ",":
            kept.append(text[at : found.start()])
            at = found.end()
        elif found[0] in ("{", "["):
            depth += 1
        elif found[0] in ("}", "]"):
            depth -= 1
            if not depth:
                return "".join((*kept, text[at : found.end()]))
    return text


def schema_valid(text: str, validator: Validator) -> float:
    """1 when the answer is JSON and satisfies the schema; UsageError when the schema points outside itself."""
    parsed = parse_json(text)
    if parsed is None:
        return 0.0
    try:
        return float(validator.is_valid(parsed[0]))
    except RecursionError:
        return 0.0
    except referencing.exceptions.Unresolvable as error:
        raise UsageError(
            f"the schema refers to {error.ref}, which is not inside it",
            where="evaluation.json_schema",
            fix="put the definition into the schema's own `$defs`",
        ) from None


def load_schema(path: str) -> Validator:
    """The validator for a JSON Schema file. It never fetches anything. UsageError names a file that is not there, is
    not JSON or is not a schema."""
    where = f"evaluation.json_schema: {path}"
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        validator_class = validators.validator_for(schema, default=validators.Draft202012Validator)
        validator_class.check_schema(schema)
    except OSError as error:
        raise UsageError(
            f"the schema file cannot be read: {error.strerror}", where=where, expected="a JSON Schema file"
        ) from None
    except ValueError as error:
        raise UsageError(f"the schema file is not JSON: {error}", where=where) from None
    except exceptions.SchemaError as error:
        raise UsageError(
            f"the schema file is not a valid JSON Schema: {error.message}",
            where=f"{where}, at {error.json_path}",
        ) from None
    _check_references(schema, where)
    # An empty registry: what is not in the file is an error, never a download.
    validator: Validator = validator_class(schema, registry=referencing.Registry())
    return validator


def _check_references(schema: Any, where: str) -> None:
    """Every `$ref` leads somewhere inside the file. Told now, not when the first answer meets it after training."""
    resolver = referencing.Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise UsageError(
                f"the schema refers to {reference}, which is not in it",
                where=where,
                fix="put the definition into the schema's own `$defs`",
            ) from None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for name, part in schema.items():
            # `$id` inside a part moves the base of its references; enum and const hold data, not schemas.
            if name not in ("enum", "const", "examples", "default") and not (isinstance(part, dict) and "$id" in part):
                yield from _references(part)
