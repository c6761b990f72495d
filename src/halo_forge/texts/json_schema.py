"""Texts held against a JSON Schema, which is read from a file and never fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import referencing
import referencing.exceptions
from jsonschema import exceptions, validators
from jsonschema.protocols import Validator
from referencing.jsonschema import DRAFT202012

from halo_forge.errors import UsageError
from halo_forge.texts.json_documents import parse_json


def schema_error(text: str, validator: Validator, where: str) -> str | None:
    """Why the text is not JSON that satisfies the schema, or None. UsageError, naming `where` the schema was given,
    when it points outside itself."""
    parsed = parse_json(text)
    if parsed is None:
        return "not JSON"
    try:
        error = next(iter(validator.iter_errors(parsed[0])), None)
    except RecursionError:
        return "nested too deep"
    except referencing.exceptions.Unresolvable as missing:
        raise UsageError(
            f"the schema refers to {missing.ref}, which is not inside it", where=where,
            fix="put the definition into the schema's own `$defs`",
        ) from None  # fmt: skip
    return None if error is None else error.message[:200]


def load_schema(path: str, where: str) -> Validator:
    """The validator for a JSON Schema file; errors say `where` it was given. It never fetches anything. UsageError for
    a file that is not there, is not JSON or is not a schema."""
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        validator_class = validators.validator_for(schema, default=validators.Draft202012Validator)
        validator_class.check_schema(schema)
    except OSError as error:
        raise UsageError(
            f"the schema file cannot be read: {error.strerror}", where=where, expected="a JSON Schema file"
        ) from None
    except (ValueError, RecursionError) as error:
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
