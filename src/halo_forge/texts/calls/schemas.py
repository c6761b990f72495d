"""Descriptions of tools in every spelling -> {"type": "function", "function": {name, description, JSON Schema}}.

What is in that form already stays byte for byte as it is, because a model reads it. What is not:

    {"name", "parameters"}                    bare: wrapped, as templates expect it
    "type": "dict", "float", "String", ...    BFCL's and Java's words: JSON Schema's
    {"city": {"type": "str, optional"}}       xLAM's flat parameters of Python types: an object schema, `required` from
                                              what is neither optional nor has a default
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import exceptions
from jsonschema.validators import Draft202012Validator

from halo_forge.errors import RowError
from halo_forge.texts.calls.type_words import JSON_TYPES, UnknownType, type_schema
from halo_forge.texts.json_documents import parse_json

NORMALISED, UNKNOWN_TYPE = "tool_schema_normalised", "tool_type_unknown"
MAX_DEPTH = 32
MAX_REFERENCES = 16
"""A schema that refers to itself in two places at each of 30 levels would be held against arguments for hours."""
_SUBSCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")


def normalised_tool(tool: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """(the tool in the one form, codes of what was done to it). Raises RowError `bad_tools`."""
    try:
        text = json.dumps(tool, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError("bad_tools", f"a tool holds a value that JSON has no form for: {error}") from None
    result = _normalised(text)
    if isinstance(result, str):
        raise RowError("bad_tools", result)
    mended, codes = result
    return mended, codes


@lru_cache(maxsize=4096)
def _normalised(text: str) -> tuple[dict[str, Any], frozenset[str]] | str:
    """Few tools make many rows, and checking a schema takes a millisecond. A refusal is kept too."""
    tool = json.loads(text)
    fixes: set[str] = set()
    try:
        mended = _tool(tool, fixes)
        _check(mended["function"])
    except RowError as problem:
        return problem.reason
    except RecursionError:
        return "a tool is nested too deep"
    if mended == tool:
        return mended, frozenset()
    return mended, frozenset(fixes | {NORMALISED})


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a normalised tool's parameters; {} where it takes what it is given."""
    function = tool.get("function")
    parameters = (function if isinstance(function, dict) else tool).get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def name_of(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    return str((function if isinstance(function, dict) else tool).get("name", ""))


def _tool(tool: dict[str, Any], fixes: set[str]) -> dict[str, Any]:
    inner = tool.get("function")
    function = dict(inner if isinstance(inner, dict) else tool)
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError("bad_tools", "a tool needs a name")
    if "parameters" not in function:
        for spelling in ("input_schema", "inputSchema", "args"):
            if isinstance(function.get(spelling), dict):
                function = {("parameters" if key == spelling else key): value for key, value in function.items()}
                break
    parameters = function.get("parameters")
    if isinstance(parameters, str):
        parsed = parse_json(parameters)
        if parsed is None:
            raise RowError("bad_tools", f"{name[:60]}: its parameters are text that is not JSON")
        parameters = parsed[0]
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise RowError("bad_tools", f"{name[:60]}: its parameters are no JSON Schema")
        function["parameters"] = _root(parameters, fixes) if parameters else parameters
    if isinstance(inner, dict):
        return (
            {"type": "function", **tool, "function": function} if "type" not in tool else {**tool, "function": function}
        )
    function.pop("type", None) if function.get("type") == "function" else None
    return {"type": "function", "function": function}


def _root(parameters: dict[str, Any], fixes: set[str]) -> dict[str, Any]:
    if _is_flat(parameters):
        parameters = {"type": "object", "properties": parameters, "required": _needed(parameters)}
    schema: dict[str, Any] = _schema(parameters, fixes, 0)[0]
    if "type" not in schema and "properties" in schema:
        schema = {"type": "object", **schema}
    return schema


def _is_flat(parameters: dict[str, Any]) -> bool:
    """{"city": {"type": ...}} without the `properties` that would hold them."""
    return not isinstance(parameters.get("type"), str | list) and all(
        isinstance(value, dict) and (("type" in value) or ("description" in value)) for value in parameters.values()
    )


def _needed(parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arguments without a default; those whose type says optional are taken out with their type."""
    return [name for name, value in parameters.items() if "default" not in value and value.get("required") is not False]


def _schema(node: Any, fixes: set[str], depth: int) -> tuple[Any, bool]:
    """(the schema in JSON Schema's words, whether it said itself that its argument may be left out)."""
    if depth > MAX_DEPTH:
        raise RowError("bad_tools", f"a schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, bool):
        return node, False
    if isinstance(node, str):
        node = {"type": node}
    if not isinstance(node, dict):
        raise RowError("bad_tools", "a part of a schema is neither an object nor true or false")
    schema = dict(node)
    optional = _mend_type(schema, fixes)
    if isinstance(schema.get("optional"), bool):
        optional |= bool(schema.pop("optional"))
    left_out: set[str] = set()
    required_inside: list[str] = []
    for key in _SCHEMA_MAPS:
        if not isinstance(schema.get(key), dict):
            continue
        mended: dict[str, Any] = {}
        for name, part in schema[key].items():
            mended[name], may_lack = _schema(part, fixes, depth + 1)
            if key == "properties" and isinstance(part, dict) and isinstance(part.get("required"), bool):
                mended[name].pop("required")
                (required_inside.append if part["required"] else left_out.add)(name)
            if key == "properties" and may_lack:
                left_out.add(name)
        schema[key] = mended
    for key in _SUBSCHEMAS:
        if isinstance(schema.get(key), dict | str):
            schema[key] = _schema(schema[key], fixes, depth + 1)[0]
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            schema[key] = [_schema(part, fixes, depth + 1)[0] for part in schema[key]]
    if isinstance(schema.get("items"), list):  # JSON Schema before 2020
        schema["prefixItems"] = [_schema(part, fixes, depth + 1)[0] for part in schema.pop("items")]
    required = schema.get("required")
    if isinstance(required, list):
        schema["required"] = [name for name in [*required, *required_inside] if name not in left_out]
    elif required_inside:
        schema["required"] = required_inside
    return schema, optional


def _mend_type(schema: dict[str, Any], fixes: set[str]) -> bool:
    """Replace a type name that is not JSON Schema's, in place; whether it says optional."""
    word = schema.get("type")
    words = word if isinstance(word, list) else [word]
    names = [each for each in words if isinstance(each, str)]
    if word is None or (names == words and JSON_TYPES.issuperset(names)):
        return False
    if names != words:
        raise RowError("bad_tools", f"the type {json.dumps(word)[:60]} is no name")
    optional = False
    found: list[dict[str, Any]] = []
    for each in names:
        try:
            meant, may_lack = type_schema(each)
        except UnknownType:
            fixes.add(UNKNOWN_TYPE)
            meant, may_lack = {}, "optional" in each.lower()
        found.append(meant)
        optional |= may_lack
    meant = found[0] if len(found) == 1 else {"anyOf": found} if all(found) else {}
    del schema["type"]
    own = {key: value for key, value in meant.items() if key not in schema}
    rest = dict(schema)
    schema.clear()
    schema.update({**own, **rest})
    return optional


def _check(function: Mapping[str, Any]) -> None:
    parameters = function.get("parameters")
    if not parameters:
        return
    name = function["name"][:60]
    try:
        Draft202012Validator.check_schema(parameters)
    except exceptions.SchemaError as error:
        raise RowError(
            "bad_tools", f"{name}: its parameters are no JSON Schema: {error.message[:120]} (at {error.json_path[:60]})"
        ) from None
    references = _references(parameters)
    if len(references) > MAX_REFERENCES:
        raise RowError("bad_tools", f"{name}: its schema has more than {MAX_REFERENCES} references")
    if any(not reference.startswith("#") for reference in references):
        raise RowError("bad_tools", f"{name}: its schema refers outside itself, and nothing is fetched")


def _references(node: Any) -> list[str]:
    found: list[str] = []
    pending = [node]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            found += [str(item[key]) for key in ("$ref", "$dynamicRef") if isinstance(item.get(key), str)]
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return found
