"""A verifier without a reference: is this JSON what the Python stub in the prompt says? For `--verifier python:FILE`.

The stub is parsed (never run); the answer must say its name, kind, parameters and sentence, and nothing else.
"""

from __future__ import annotations

import ast
import json
from typing import Any


def verify(prompt: str, answer: str, row: dict[str, Any]) -> float:
    """The share of the four fields that are right; 1 passes. 0 for what is no JSON object of these fields."""
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"][-1]
    expected = described(asked.partition("\n\n")[2])
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(said, dict) or set(said) != set(expected):
        return 0.0
    return sum(said[name] == value for name, value in expected.items()) / len(expected)


def described(stub: str) -> dict[str, Any]:
    function = ast.parse(stub).body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    no_default = [None] * (len(plain) - len(given.defaults))
    args = [_written(arg, value) for arg, value in zip(plain, [*no_default, *given.defaults], strict=True)]
    args += [f"*{given.vararg.arg}"] if given.vararg else []
    args += [_written(arg, value) for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    args += [f"**{given.kwarg.arg}"] if given.kwarg else []
    is_method = args[:1] == ["self"]
    return {
        "name": function.name,
        "kind": "method" if is_method else "function",
        "args": args[1:] if is_method else args,
        "summary": ast.get_docstring(function),
    }


def _written(argument: ast.arg, default: ast.expr | None) -> str:
    return argument.arg if default is None else f"{argument.arg}={ast.unparse(default)}"
