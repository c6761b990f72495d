"""Make examples/docstring_json.jsonl: from a Python stub to one JSON object.

    python examples/make_docstring_json.py [--output FILE]

Reads the standard library of the CPython 3.11 that runs it: public functions, classes and methods whose documentation
string begins with one whole sentence. The stub is the question; the answer is derived from the stub alone, so every
answer can be checked by a machine. The order and choice of rows depend on the sources only.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION = "Describe this Python stub as JSON."
NUM_ROWS = 600
MAX_ROWS_PER_MODULE = 9
SKIPPED_PACKAGES = {"idlelib", "lib2to3", "test", "tests", "turtledemo", "ensurepip", "site-packages", "__pycache__"}
MAX_STUB_CHARS = 150
SUMMARY_WORDS = range(3, 13)
MAX_ARGS = 5
NOT_AS_IN_JSON = frozenset('"\\{}[]')
"""What would be escaped in JSON, or looks like its structure."""


@dataclass(frozen=True, slots=True)
class Stub:
    module: str
    name: str
    kind: str
    signature: str
    args: tuple[str, ...]
    summary: str

    def question(self) -> str:
        return f'{INSTRUCTION}\n\n{self.signature}\n    """{self.summary}"""'

    def answer(self) -> str:
        value = {
            "name": self.name,
            "kind": self.kind,
            "args": list(self.args),
            "summary": self.summary,
        }
        return json.dumps(value, separators=(",", ":"))


def modules(library: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every public module, sorted."""
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if SKIPPED_PACKAGES.intersection(parts) or any(part.startswith("_") for part in parts):
            continue
        yield ".".join(parts), file


def stubs(module: str, tree: ast.Module) -> Iterator[Stub]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from function_stub(module, node, "function")
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for child in node.body:
                if isinstance(child, ast.FunctionDef) and child.args.args and child.args.args[0].arg == "self":
                    yield from function_stub(module, child, "method")


def function_stub(module: str, node: ast.FunctionDef, kind: str) -> Iterator[Stub]:
    """The stub of one function, if it is fit to be learned from: public, documented, plain, short, with a parameter."""
    summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
    if node.name.startswith("_") or node.decorator_list or not is_sentence(summary):
        return
    arguments = node.args
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
        return
    for argument in arguments.args:
        argument.annotation = None
    defaults = [""] * (len(arguments.args) - len(arguments.defaults))
    defaults += [f"={ast.unparse(default)}" for default in arguments.defaults]
    names = [argument.arg + default for argument, default in zip(arguments.args, defaults, strict=True)]
    signature = f"def {node.name}({ast.unparse(arguments)}):"
    args = tuple(names[kind == "method" :])
    long = len(args) > MAX_ARGS or len(signature) + len(summary) > MAX_STUB_CHARS
    if args and not long and not set(signature) & NOT_AS_IN_JSON:
        yield Stub(module, node.name, kind, signature, args, summary)


def is_sentence(text: str) -> bool:
    """One whole sentence that reads the same in JSON as in Python: ASCII, no quotes, no backslash."""
    words = text.split(" ")
    plain = text.isascii() and text.isprintable() and not set(text) & (NOT_AS_IN_JSON | set("'`<>"))
    return plain and len(words) in SUMMARY_WORDS and text.endswith(".") and ". " not in text and words[0].istitle()


def chosen(candidates: list[Stub]) -> list[Stub]:
    """At most MAX_ROWS_PER_MODULE a module, no name and no summary twice, NUM_ROWS in all, in hash order."""
    rows: list[Stub] = []
    names: set[str] = set()
    summaries: set[str] = set()
    per_module: dict[str, int] = {}
    for stub in sorted(candidates, key=lambda stub: hashlib.sha256(stub.question().encode()).hexdigest()):
        summary = stub.summary.casefold()
        if stub.name.casefold() in names or summary in summaries:
            continue
        if per_module.get(stub.module, 0) >= MAX_ROWS_PER_MODULE:
            continue
        names.add(stub.name.casefold())
        summaries.add(summary)
        per_module[stub.module] = per_module.get(stub.module, 0) + 1
        rows.append(stub)
    return rows[:NUM_ROWS]


def make_rows(library: Path) -> list[dict[str, object]]:
    candidates = [
        stub for module, file in modules(library) for stub in stubs(module, ast.parse(file.read_text(encoding="utf-8")))
    ]
    return [
        {
            "messages": [
                {"role": "user", "content": stub.question()},
                {"role": "assistant", "content": stub.answer()},
            ],
            "slices": {"kind": stub.kind},
        }
        for stub in chosen(candidates)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("docstring_json.jsonl"))
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("the committed rows are those of CPython 3.11; run this with python3.11")
    rows = make_rows(Path(sysconfig.get_paths()["stdlib"]))
    options.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows -> {options.output}")


if __name__ == "__main__":
    main()
