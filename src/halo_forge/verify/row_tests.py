"""The tests that a row carries, in its column `tests`.

    {"entry_point": "add", "code": "assert add(1, 2) == 3"}                   a function and statements that call it
    {"entry_point": "add", "code": "def check(candidate): ..."}               HumanEval's form: check is called
    {"code": ["assert add(1, 2) == 3"], "entry_point": ["add", "sub"]}        several of either
    {"cases": [{"stdin": "1 2\\n", "stdout": "3\\n"}]}                          a program and what it prints

Beside them `setup` (imports and definitions that code and tests share) and `prefix` (what the answer continues, for
instance a signature: it is put before answers that do not define the entry point themselves).
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYS = frozenset({"entry_point", "code", "setup", "prefix", "cases"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTests:
    """Either `code` with its entry points, or `cases` of (standard input, expected output)."""

    entry_points: tuple[str, ...] = ()
    code: str = ""
    setup: str = ""
    prefix: str = ""
    cases: tuple[tuple[str, str], ...] = ()


def row_tests(value: Mapping[str, Any]) -> RowTests:
    """Read the column. Raises ValueError, in words, for what is not of this form."""
    unknown = sorted(set(value) - KEYS)
    if unknown:
        raise ValueError(f"tests has no key {unknown[0]!r}; it knows {', '.join(sorted(KEYS))}")
    setup, prefix = _text(value, "setup"), _text(value, "prefix")
    if value.get("cases"):
        if value.get("code"):
            raise ValueError("tests has both `code` and `cases`; it takes one")
        return RowTests(cases=_cases(value["cases"]), setup=setup, prefix=prefix)
    code = _lines(value, "code")
    names = tuple(_lines(value, "entry_point").split("\n"))
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"tests.entry_point: {name!r} is not the name of a function")
    if not code.strip():
        raise ValueError("tests.code is empty")
    return RowTests(entry_points=names, code=code, setup=setup, prefix=prefix)


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key) or ""
    if not isinstance(found, str):
        raise ValueError(f"tests.{key} must be a text")
    return found


def _lines(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if isinstance(found, list) and found and all(isinstance(item, str) for item in found):
        return "\n".join(found)
    if isinstance(found, str) and found:
        return found
    raise ValueError(f"tests.{key} must be a text or a list of texts")


def _cases(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise ValueError("tests.cases must be a list")
    cases = []
    for case in value:
        if not isinstance(case, Mapping) or not isinstance(case.get("stdout"), str):
            raise ValueError('a case of tests.cases is {"stdin": text, "stdout": text}')
        cases.append((_text(case, "stdin"), case["stdout"]))
    return tuple(cases)
