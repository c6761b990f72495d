"""Answers that are meant to be JSON: parsed strictly, compared by value, held against a schema.

An answer is JSON or it is not: no code fence is peeled off and nothing around it is skipped. `repaired_json` does both,
for a number of its own beside the strict one: how much of what fails is only wrapping.
"""

from __future__ import annotations

import re

from jsonschema.protocols import Validator

from halo_forge.texts.json_documents import canonical_json, is_json_document, parse_json
from halo_forge.texts.json_schema import schema_error


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
    return float(schema_error(text, validator, "evaluation.json_schema") is None)
