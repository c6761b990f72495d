"""Calls written as Python: [name(key=value), other.name(key=[1, 2])]. Parsed, never run: literals only."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from halo_forge.texts.calls.record import MAX_CALLS, NOTHING, Call, Said, Schemas

MAX_CHARS = 20_000
_TAGS = (("<|tool_call_start|>", "<|tool_call_end|>"), ("<|python_start|>", "<|python_end|>"))
_BEGINS = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_JSON_WORDS = {"true": True, "false": False, "null": None}


def read_pythonic(text: str, tools: Schemas) -> Said:
    """Between tags, or the whole answer."""
    for opening, closing in _TAGS:
        start = text.find(opening)
        if start >= 0:
            end = text.find(closing, start)
            return _calls(text[start + len(opening) : end if end >= 0 else None].strip())
    text = text.strip()
    return _calls(text) if _BEGINS.match(text) else NOTHING


def _calls(text: str) -> Said:
    if len(text) > MAX_CHARS:
        return Said((), f"calls of more than {MAX_CHARS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in a string are the model's, and no warning of ours
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return Said((), "the calls are no list")
        if len(tree.elts) > MAX_CALLS:
            return Said((), f"more than {MAX_CALLS} calls")
        return Said(tuple(_call(node) for node in tree.elts))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Said((), f"the calls are not Python ({type(error).__name__})")


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("every element is a call with named arguments")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("arguments are named")
        arguments[keyword.arg] = _value(keyword.value)
    return Call(_dotted(node.func), arguments)


def _dotted(node: ast.expr) -> str:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("a call is of a name")
    return ".".join([node.id, *reversed(names)])


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _JSON_WORDS:
            return _JSON_WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            named = [_value(key) for key in keys if key is not None]
            if len(named) != len(values) or not all(isinstance(key, str) for key in named):
                raise ValueError("keys are strings")
            return dict(zip(named, map(_value, values), strict=True))
    raise ValueError("arguments are literals")
