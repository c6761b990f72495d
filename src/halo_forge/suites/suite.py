"""A suite: a JSONL file of items, read strictly. The suites that come with halo-forge are read in the same way.

    {"id": "harm-01", "kind": "harmful", "prompt": "..."}
    {"id": "x-1", "kind": "pii", "messages": [{"role": "system", "content": "..."}, ...], "secrets": ["..."]}

Every item has `id` (once in its file), `kind`, and `prompt` or `messages` (the last one the user's); it may have
`language` (ISO 639-1) and `group` (what it is an example of: a topic, a disguise). The rest is of its kind.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from halo_forge.errors import DataError, UsageError
from halo_forge.suites.instruction_checks import CHECKS, argument_problem
from halo_forge.texts.privacy import find_private

MAX_LINE_BYTES = 1_000_000
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Turn(Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class BaseItem(Strict):
    """What items of every kind have."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,79}$")
    prompt: Text | None = None
    messages: tuple[Turn, ...] | None = None
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")
    group: str = ""

    @model_validator(mode="after")
    def _asks_something(self) -> BaseItem:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("an item has either prompt or messages")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("the last of messages is the user's")
        return self

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.messages or (Turn(role="user", content=self.prompt or " "),)


class Request(BaseItem):
    """harmful and jailbreak: refusing is right. harmless: it is wrong. toxicity: the answer must not be toxic.
    unanswerable: only to say so is right."""

    kind: Literal["harmful", "jailbreak", "harmless", "toxicity", "unanswerable"]


class Private(BaseItem):
    """secrets: what the answer must not say. may_say: private data of the prompt that it may."""

    kind: Literal["pii"]
    secrets: tuple[Text, ...] = ()
    may_say: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _has_something_to_keep(self) -> Private:
        if not self.secrets and not find_private("\n".join(turn.content for turn in self.turns[:-1])):
            raise ValueError("a pii item has secrets, or private data of a known shape before its last message")
        return self


class Answerable(BaseItem):
    """accepted: an answer with one of these in it is right."""

    kind: Literal["answerable"]
    accepted: Texts


class Instruction(BaseItem):
    """checks: {"check": name, ...arguments}; all must pass."""

    kind: Literal["instruction"]
    checks: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _knows_its_checks(self) -> Instruction:
        for check in self.checks:
            name = check.get("check")
            if name not in CHECKS:
                close = difflib.get_close_matches(str(name), CHECKS, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(CHECKS)}"
                raise ValueError(f"there is no check {name!r}; {hint}")
            problem = argument_problem(name, self.arguments_of(check))
            if problem is not None:
                raise ValueError(problem)
        return self

    @staticmethod
    def arguments_of(check: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in check.items() if name != "check"}


class Policy(BaseItem):
    """Regular expressions (Python's, searched, case matters unless they say (?i)): none of `forbidden` and all of
    `required` must be found in the answer."""

    kind: Literal["policy"]
    forbidden: tuple[Text, ...] = ()
    required: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _can_be_searched(self) -> Policy:
        if not self.forbidden and not self.required:
            raise ValueError("a policy item has forbidden or required")
        for pattern in (*self.forbidden, *self.required):
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return self


class Choice(BaseItem):
    """choices: possible answers, each scored by its likelihood; answer: the right one's place, from 0."""

    kind: Literal["choice"]
    choices: Annotated[tuple[Text, ...], Field(min_length=2, max_length=10)]
    answer: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _has_an_answer(self) -> Choice:
        if self.answer >= len(self.choices) or len(set(self.choices)) < len(self.choices):
            raise ValueError("choices differ from each other, and answer is the place of one of them, from 0")
        return self


class Open(BaseItem):
    """max_words: what a concise answer needs."""

    kind: Literal["open"]
    max_words: Annotated[int, Field(ge=1)]


Item = Request | Private | Answerable | Instruction | Policy | Choice | Open
_ITEM: TypeAdapter[Item] = TypeAdapter(Annotated[Item, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Suite:
    """sha256 is of the file's bytes."""

    name: str
    sha256: str
    source: str
    items: tuple[Item, ...]

    @property
    def kinds(self) -> dict[str, int]:
        return dict(sorted(Counter(item.kind for item in self.items).items()))


def shipped_suites() -> list[str]:
    """Names of the suites that come with halo-forge."""
    return sorted(file.name.removesuffix(".jsonl") for file in _shipped().iterdir() if file.name.endswith(".jsonl"))


def _shipped() -> Traversable:
    return resources.files("halo_forge.suites") / "items"


def load_suite(name: str) -> Suite:
    """A shipped suite by its name, or a JSONL file by its path. UsageError when there is none such, DataError with
    file:line for a file that is not a suite."""
    if name in (known := shipped_suites()):
        return parse_suite(name, (_shipped() / f"{name}.jsonl").read_bytes(), f"{name}.jsonl")
    path = Path(name).expanduser()
    if path.suffix != ".jsonl":
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"there is no suite {name!r}", where="evaluation.suites", fix=f"{hint}`halo-forge suites list` names them",
            expected=f"{', '.join(known)}, or the path of a .jsonl file",
        )  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", path.stem):
        raise UsageError("a suite's file name is letters, digits, dots, dashes and underscores", where=name)
    try:
        return parse_suite(path.stem, path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"the suite cannot be read: {error.strerror}", where=name) from None


def load_suites(names: list[str]) -> list[Suite]:
    """In the order given. UsageError where two have one name: their answers could not be told apart."""
    suites = [load_suite(name) for name in names]
    twice = [name for name, count in Counter(suite.name for suite in suites).items() if count > 1]
    if twice:
        raise UsageError(f"two suites are named {twice[0]}", where="evaluation.suites", fix="rename one of the files")
    return suites


def parse_suite(name: str, content: bytes, source: str) -> Suite:
    """Items in file order; empty lines are passed over."""
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        item = _parse_item(line, f"{source}:{number}")
        if item.id in lines:
            raise DataError(f"the id {item.id} stands in line {lines[item.id]} already", where=f"{source}:{number}")
        lines[item.id] = number
        items.append(item)
    if not items:
        raise DataError("the suite has no items", where=source)
    return Suite(name, hashlib.sha256(content).hexdigest(), source, tuple(items))


def _parse_item(line: bytes, where: str) -> Item:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"a line of {len(line):,} bytes", where=where, expected=f"at most {MAX_LINE_BYTES:,}")
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not a line of JSON: {error}", where=where) from None
    try:
        # Read as JSON, so that a list is a tuple and nothing else is turned into something else.
        return _ITEM.validate_json(json.dumps(row))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        told = first["msg"].removeprefix("Value error, ")
        raise DataError(
            f"this is not an item of a suite: {place + ': ' if place else ''}{told}", where=where
        ) from None  # fmt: skip


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return row
