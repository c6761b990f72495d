"""What a chat template asks of the content it renders, found by rendering content that notices being asked.

A probe is a string whose every operation is ours. A template that only writes content out, trims it, or looks for
fixed words in it renders every content alike that holds none of these words: then one rendering tells all others, and
`Conditions` say which contents that is true for. Everything else that a template does with content (measures, cuts,
upper-cases, sorts or serialises it) raises `Untraceable`, because nothing is known then about the next row.

The probe runs through the template's own sandbox, compiled anew with three replacements: joining of strings, `~` and
`in`, which Python would do without asking the strings.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

_PASSED_FILTERS = frozenset(
    ("count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr", "replace")
) | frozenset(("select", "selectattr", "string", "trim"))
_TRUE_OF_TEXT = frozenset(("string", "sequence", "iterable", "defined"))
_FALSE_OF_TEXT = frozenset(
    ("mapping", "none", "number", "integer", "float", "boolean", "callable", "undefined", "true", "false")
)
_OF_JINJA = ("_loop_vars", "_block_vars")  # what compiled templates pass along with every call
_EQUAL = frozenset(("eq", "equalto", "==", "ne", "!="))


class Untraceable(Exception):
    """The template does something with content whose result depends on more than a list of words."""


@dataclass(slots=True)
class Conditions:
    """What the content of a row must be like for the template to render it as it rendered the probe.

    words   none of these may stand in any content
    trims   white space at the edges of content is taken away, or looked at
    clock   the template writes the time of day
    """

    words: set[str] = field(default_factory=set)
    trims: bool = False
    clock: bool = False


class _Probe(str):
    """`pieces`: the literal texts it is made of, and None for each whole content between them."""

    conditions: Conditions
    pieces: tuple[str | None, ...]

    def __new__(cls, text: str, conditions: Conditions, pieces: tuple[str | None, ...] = (None,)) -> _Probe:
        probe = super().__new__(cls, text)
        probe.conditions, probe.pieces = conditions, pieces
        return probe

    def _holds(self, word: Any) -> bool:
        """Whether a word stands in it: in a literal, or nowhere, because content that holds it is excluded."""
        if isinstance(word, _Probe) or not isinstance(word, str):
            raise Untraceable("compares content with something that is no fixed word")
        if any(piece is not None and word in piece for piece in self.pieces) or not word:
            return True
        if any(_could_straddle(word, piece) for piece in self.pieces if piece is not None):
            raise Untraceable("looks for a word that could begin in content and end outside")
        self.conditions.words.add(str(word))
        return False

    def _lacks(self, word: Any) -> None:
        if not word or self._holds(word):
            raise Untraceable("cuts a text at a word that it holds")

    def _edge(self, word: Any, edge: int) -> bool:
        """Whether it begins (edge 0) or ends (edge -1) with a word."""
        piece = self.pieces[edge]
        if piece is None or isinstance(word, _Probe) or not isinstance(word, str):
            return self._holds(word)
        if len(piece) < len(word):
            raise Untraceable("looks for a word that could begin in content and end outside")
        return piece.endswith(word) if edge else piece.startswith(word)

    def _trim(self, characters: Any, edges: tuple[int, ...]) -> str:
        for edge in edges:
            piece = self.pieces[edge]
            if piece is None:
                self.conditions.trims = True
                for character in characters or ():
                    if not character.isspace():
                        self._holds(character)
            elif piece[edge].isspace() or (characters and piece[edge] in characters):
                raise Untraceable("trims a text that content is a part of")
        return self

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True

    def __add__(self, other: str) -> str:
        return _joined((self, other), self.conditions)

    def __radd__(self, other: str) -> str:
        return _joined((other, self), self.conditions)

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, str):
            raise TypeError("string indices must be integers")
        raise Untraceable("cuts content")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, str) and other:
            if self.pieces != (None,):
                raise Untraceable("compares a text that content is a part of")
            self._holds(other)
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, word: object) -> bool:
        return self._holds(word)

    def startswith(self, words: Any, *places: Any) -> bool:
        if places:
            raise Untraceable("cuts content")
        return any(self._edge(word, 0) for word in (words if isinstance(words, tuple) else (words,)))

    def endswith(self, words: Any, *places: Any) -> bool:
        if places:
            raise Untraceable("cuts content")
        return any(self._edge(word, -1) for word in (words if isinstance(words, tuple) else (words,)))

    def split(self, word: Any = None, *limit: Any) -> list[str]:
        self._lacks(word)
        return [self]

    rsplit = split  # type: ignore[assignment]

    def replace(self, word: Any, *rest: Any) -> str:
        self._lacks(word)
        return self

    def count(self, word: Any, *places: Any) -> int:
        self._lacks(word)
        return 0

    def find(self, word: Any, *places: Any) -> int:
        self._lacks(word)
        return -1

    rfind = find

    def strip(self, characters: Any = None) -> str:
        return self._trim(characters, (0, -1))

    def lstrip(self, characters: Any = None) -> str:
        return self._trim(characters, (0,))

    def rstrip(self, characters: Any = None) -> str:
        return self._trim(characters, (-1,))


def _could_straddle(word: str, literal: str) -> bool:
    """Whether a word could stand partly in a literal and partly in content beside it."""
    inner = range(1, len(word))
    return any(literal.endswith(word[:length]) or literal.startswith(word[length:]) for length in inner) or (
        literal in word
    )


class _Length:
    """The length of a text that is known not to be empty, and nothing more."""

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self._against(other, 0, False)

    def __ne__(self, other: object) -> bool:
        return self._against(other, 0, True)

    def __gt__(self, other: object) -> bool:
        return self._against(other, 0, True)

    def __ge__(self, other: object) -> bool:
        return self._against(other, 1, True)

    def __lt__(self, other: object) -> bool:
        return self._against(other, 1, False)

    def __le__(self, other: object) -> bool:
        return self._against(other, 0, False)

    __hash__ = None  # type: ignore[assignment]

    def _against(self, other: object, known: int, answer: bool) -> bool:
        """A length above 0 compares with `known` and with every negative number in one way only."""
        if type(other) is not int or other > known:
            raise Untraceable("measures content")
        return answer


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: str, *args: Any, **named: Any) -> NoReturn:
        raise Untraceable(f"calls {name} of content")

    return refuse


_OF_EVERY_OBJECT = frozenset(dir(object)) - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__repr__"}
for _name in dir(str):
    if _name not in vars(_Probe) and _name not in _OF_EVERY_OBJECT - {"__format__", "__reduce__", "__reduce_ex__"}:
        setattr(_Probe, _name, _refuse(_name))


def _joined(pieces: Iterable[Any], conditions: Conditions) -> str:
    kept = [piece for piece in pieces if not (type(piece) is str and not piece)]
    if not any(isinstance(piece, _Probe) for piece in kept):
        return "".join(kept)
    if len(kept) == 1:
        return str(kept[0])
    merged: list[str | None] = []
    for piece in kept:
        for part in piece.pieces if isinstance(piece, _Probe) else (str(piece),):
            last = merged[-1] if merged else None
            if part is not None and last is not None:
                merged[-1] = last + part
            else:
                merged.append(part)
    return _Probe("".join(str.__str__(piece) for piece in kept), conditions, tuple(merged))


def _holds_probe(value: Any) -> bool:
    if isinstance(value, _Probe):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(_holds_probe, value))
    if isinstance(value, Mapping):
        return any(map(_holds_probe, value.values()))
    return isinstance(value, types.GeneratorType)


class _AskingNodes(NodeTransformer):
    """`a ~ b` and `a in b` become calls that ask the strings."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("probe_join_", node.nodes, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        operators = [operand.op for operand in node.ops]
        if not {"in", "notin"} & set(operators):
            return node
        if len(operators) > 1:
            raise Untraceable("chains comparisons")
        asked = _call("probe_contains_", [node.ops[0].expr, node.expr], node.lineno)
        return asked if operators[0] == "in" else nodes.Not(asked).set_lineno(node.lineno)


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.Name(name, "load").set_lineno(line)
    call = nodes.Call(function, list(arguments), [], None, None)
    call.set_lineno(line)
    if environment := arguments[0].environment:
        call.set_environment(environment)
    return call


class TracedTemplate:
    """One chat template, compiled to be rendered with probes."""

    def __init__(self, source: str) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.conditions = Conditions()
        plain = _compile_jinja_template(source).environment
        self._environment = plain.overlay()
        self._replace_functions(plain)
        tree = _AskingNodes().visit(self._environment.parse(source))
        code = self._environment.compile(tree)
        self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)

    def render(self, messages: list[dict[str, Any]], prompt: bool, constants: Mapping[str, Any]) -> str:
        """The rendering of messages whose `content` and `reasoning_content` become probes; `self.conditions` grows by
        what was asked of them. Raises Untraceable, and jinja2.TemplateError where the template refuses."""
        probed = [self._probed(message) for message in messages]
        text = self._template.render(
            messages=probed, tools=None, documents=None, add_generation_prompt=prompt, **constants
        )
        return str.__str__(text)

    def _probed(self, message: dict[str, Any]) -> dict[str, Any]:
        probed = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), str):
            probed["content"] = _Probe(message["content"], self.conditions)
        elif isinstance(message.get("content"), list):
            probed["content"] = [{**part, "text": _Probe(part["text"], self.conditions)} for part in message["content"]]
        if message.get("reasoning_content") is not None:
            reasoning = _Probe(message["reasoning_content"], self.conditions)
            probed |= {"thinking": reasoning, "reasoning_content": reasoning}  # as transformers names it
        return probed

    def _replace_functions(self, plain: Any) -> None:
        environment: Any = self._environment
        environment.concat = lambda pieces: _joined(list(pieces), self.conditions)
        environment.filters = {name: _asking_filter(name, function) for name, function in plain.filters.items()}
        environment.filters["join"] = self._join
        environment.tests = {name: _asking_test(name, function) for name, function in plain.tests.items()}
        environment.globals = {
            **plain.globals,
            "strftime_now": self._clock(plain.globals.get("strftime_now")),
            "lipsum": _refuse("lipsum"),
            "probe_join_": lambda *pieces: _joined([_as_text(piece) for piece in pieces], self.conditions),
            "probe_contains_": _contains,
        }

        def call(context: Any, function: Any, *args: Any, **named: Any) -> Any:
            of_text = isinstance(getattr(function, "__self__", None), str) and not isinstance(function.__self__, _Probe)
            given = [*args, *(value for name, value in named.items() if name not in _OF_JINJA)]
            if of_text and _holds_probe(given):
                raise Untraceable(f"hands content to {function.__name__} of another text")
            return type(plain).call(environment, context, function, *args, **named)

        environment.call = call

    def _join(self, value: Any, d: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            raise Untraceable("joins an attribute")
        pieces: list[Any] = []
        for item in value:
            pieces += [d, _as_text(item)] if pieces else [_as_text(item)]
        return _joined(pieces, self.conditions)

    def _clock(self, function: Any) -> Callable[..., Any]:
        def strftime_now(form: str) -> Any:
            self.conditions.clock = True
            return function(form)

        return strftime_now


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _contains(where: Any, what: Any) -> bool:
    if isinstance(what, _Probe) and isinstance(where, str):
        raise Untraceable("looks for content in another text")
    return what in where


def _asking_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def asked(*args: Any, **named: Any) -> Any:
        given = (*args, *named.values())
        if name in ("length", "count") and isinstance(given[0], _Probe):
            return _Length()
        if name not in _PASSED_FILTERS and any(map(_holds_probe, given)):
            raise Untraceable(f"filters content with {name}")
        return function(*args, **named)

    return asked


def _asking_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def asked(*args: Any, **named: Any) -> Any:
        subject = next((value for value in args if isinstance(value, _Probe)), None)
        if subject is None:
            return function(*args, **named)
        if subject is args[0] and name in _TRUE_OF_TEXT:
            return True
        if subject is args[0] and name in _FALSE_OF_TEXT:
            return False
        if name in _EQUAL:
            return function(*args, **named)
        raise Untraceable(f"tests content with {name}")

    return asked
