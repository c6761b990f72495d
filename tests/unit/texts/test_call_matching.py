"""Schemas in every spelling, calls held against them and against the wanted ones, with BFCL's own checker as oracle."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import sys
import time
import types
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from halo_forge.errors import RowError
from halo_forge.texts.calls.arguments import call_problem
from halo_forge.texts.calls.match import Wanted, calls_match, exact_call
from halo_forge.texts.calls.record import Call
from halo_forge.texts.calls.schemas import name_of, normalised_tool, parameters_of

OPENAI = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "default": 1},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}
SCHEMAS = {"weather": parameters_of(OPENAI), "now": {}}


# ------------------------------------------------------------------------------------------------ schemas


def test_a_tool_in_openais_form_stays_as_it_is() -> None:
    assert normalised_tool(OPENAI) == (OPENAI, frozenset())


SPELLINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bfcl": (
        {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "float"}, "b": {"type": "tuple",
         "items": {"type": "any"}}}, "required": ["a"]}},
        {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "array", "items": {}}},
         "required": ["a"]},
    ),
    "xlam": (
        {"name": "f", "parameters": {"a": {"description": "d", "type": "str"}, "b": {"type": "int, optional"},
         "c": {"type": "List[Union[int, float]]", "default": []}, "d": {"type": "Optional[bool]"}}},
        {"type": "object", "properties": {"a": {"description": "d", "type": "string"}, "b": {"type": "integer"},
         "c": {"type": "array", "items": {"type": ["integer", "number"]}, "default": []},
         "d": {"type": ["boolean", "null"]}}, "required": ["a"]},
    ),
    "java": (
        {"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "HashMap"}, "b": {"type": "String"},
         "c": {"type": "Dict[str, int]"}}}},
        {"type": "object", "properties": {"a": {"type": "object"}, "b": {"type": "string"},
         "c": {"type": "object", "additionalProperties": {"type": "integer"}}}},
    ),
    "anthropic": (
        {"name": "f", "input_schema": {"type": "object", "properties": {}}}, {"type": "object", "properties": {}},
    ),
    "required inside": (
        {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string", "required": True},
         "b": {"type": "string", "required": False}}}},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]},
    ),
    "a literal": (
        {"name": "f", "parameters": {"a": {"type": "Literal['x', 'y']"}}},
        {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_json_schema(name: str) -> None:
    tool, expected = SPELLINGS[name]
    mended, codes = normalised_tool(tool)
    assert mended["type"] == "function"
    assert parameters_of(mended) == expected
    assert codes == {"tool_schema_normalised"}
    assert normalised_tool(mended) == (mended, frozenset()), "normalising twice is normalising once"


def test_an_unknown_type_may_be_anything_and_is_told() -> None:
    mended, codes = normalised_tool({"name": "f", "parameters": {"a": {"type": "Quaternion", "description": "q"}}})
    assert parameters_of(mended)["properties"] == {"a": {"description": "q"}}
    assert "tool_type_unknown" in codes


REFERENCES = {"type": "object", "$defs": {"a": {"type": "string"}}}
BAD_TOOLS: dict[str, Any] = {
    "no name": {"parameters": {}},
    "name is a number": {"name": 3},
    "parameters are a list": {"name": "f", "parameters": [1]},
    "properties are a list": {"name": "f", "parameters": {"type": "object", "properties": ["a"]}},
    "a property is a number": {"name": "f", "parameters": {"type": "object", "properties": {"a": 3}}},
    "type is a number": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": 3}}}},
    "required is a string": {"name": "f", "parameters": {"type": "object", "required": "a"}},
    "enum is a string": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": "x"}}}},
    "parameters are broken text": {"name": "f", "parameters": "{oops"},
    "a schema elsewhere": {"name": "f", "parameters": {"type": "object", "$ref": "https://example.org/s.json"}},
    "many references": {"name": "f", "parameters": {**REFERENCES, "allOf": [{"$ref": "#/$defs/a"}] * 17}},
}


@pytest.mark.parametrize("case", BAD_TOOLS)
def test_a_schema_that_is_none(case: str) -> None:
    for _ in range(2):  # the second time from the cache
        with pytest.raises(RowError) as caught:
            normalised_tool(BAD_TOOLS[case])
        assert caught.value.code == "bad_tools"


def test_a_tool_nested_without_end_is_refused() -> None:
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(RowError, match="nested deeper"):
        normalised_tool({"name": "f", "parameters": deep})


# ------------------------------------------------------------------------------------------------ arguments


PROBLEMS = {
    "unknown_tool": Call("wether", {"city": "Rome"}),
    "missing_argument": Call("weather", {"days": 2}),
    "unknown_argument": Call("weather", {"city": "Rome", "month": 3}),
    "wrong_argument_type": Call("weather", {"city": "Rome", "days": "two"}),
    "argument_not_in_enum": Call("weather", {"city": "Rome", "unit": "K"}),
}


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_call_that_does_not_fit_its_tool(code: str) -> None:
    found = call_problem(PROBLEMS[code], SCHEMAS)
    assert found is not None
    assert found[0] == code
    assert len(found[1]) < 300


def test_calls_that_fit() -> None:
    assert call_problem(Call("weather", {"city": "Rome", "days": 2, "unit": "C"}), SCHEMAS) is None
    assert call_problem(Call("now", {"anything": [1]}), SCHEMAS) is None
    assert "did you mean weather" in str(call_problem(PROBLEMS["unknown_tool"], SCHEMAS))


def test_a_pattern_that_is_a_trap_ends_in_time() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a|aa)+$"}}}
    start = time.process_time()
    assert call_problem(Call("f", {"a": "a" * 60 + "!"}), {"f": schema}) is None
    assert time.process_time() - start < 1
    assert call_problem(Call("f", {"a": "b"}), {"f": schema}) == (
        "invalid_argument",
        "f: a: 'b' does not match '^(a|aa)+$'",
    )


# ------------------------------------------------------------------------------------------------ matching


def want(name: str, **arguments: Any) -> Wanted:
    return Wanted(Call(name, arguments))


MATCHES = [
    (Call("weather", {"city": "Rome"}), want("weather", city="Rome"), True, True),
    (Call("weather", {"city": "rome"}), want("weather", city="Rome"), True, False),
    (Call("weather", {"city": "Rome", "days": 1}), want("weather", city="Rome"), True, False),  # the default
    (Call("weather", {"city": "Rome", "days": 2}), want("weather", city="Rome"), False, False),
    (Call("weather", {"city": "Rome"}), want("weather", city="Rome", days=1), True, False),
    (Call("weather", {"city": "Rome"}), want("weather", city="Rome", days=2), False, False),
    (Call("weather", {"city": "Oslo"}), want("weather", city="Rome"), False, False),
    (Call("now", {"city": "Rome"}), want("weather", city="Rome"), False, False),
    (Call("now", {"a": 1.0}), want("now", a=1), True, True),
    (Call("now", {"a": True}), want("now", a=1), False, False),
    (Call("now", {"a": [1, {"b": "X y"}]}), want("now", a=[1, {"b": "x-y"}]), True, False),
    (Call("now", {"a": None}), want("now"), False, False),
]


@pytest.mark.parametrize(("said", "wanted", "matches", "exact"), MATCHES)
def test_one_right_call(said: Call, wanted: Wanted, matches: bool, exact: bool) -> None:
    assert calls_match([said], [wanted], SCHEMAS) is matches
    assert calls_match([said], [wanted], SCHEMAS, exact=True) is exact


def test_parallel_calls_match_in_any_order_and_one_for_one() -> None:
    rome, oslo = Call("weather", {"city": "Rome"}), Call("weather", {"city": "Oslo"})
    wanted = [Wanted(oslo), Wanted(rome)]
    assert calls_match([rome, oslo], wanted, SCHEMAS)
    assert not calls_match([rome, rome], wanted, SCHEMAS)
    assert not calls_match([rome], wanted, SCHEMAS)
    assert not calls_match([rome, oslo, oslo], wanted, SCHEMAS)
    # The first wanted call accepts both, the second one only: taking the first that fits would fail.
    either = Wanted(rome, {"city": ["Oslo", "Rome"]})
    assert calls_match([rome, oslo], [either, Wanted(rome, {"city": ["Rome"]})], SCHEMAS)


def test_alternatives_and_what_may_be_left_out() -> None:
    wanted = Wanted(Call("weather", {}), {"city": ["Rome", "Roma"], "days": ["", 1]})
    assert calls_match([Call("weather", {"city": "Roma"})], [wanted], SCHEMAS)
    assert exact_call(Call("weather", {"city": "Roma", "days": 1}), wanted)
    assert not calls_match([Call("weather", {"city": "Rome", "days": 3})], [wanted], SCHEMAS)
    assert not calls_match([Call("weather", {"city": "Rome", "unit": "C"})], [wanted], SCHEMAS)


def test_values_nested_without_end_match_nothing() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert not calls_match([Call("now", {"a": deep})], [Wanted(Call("now", {"a": copy.copy(deep)}))], SCHEMAS)


# ------------------------------------------------------------------------------------------------ BFCL's checker


@pytest.fixture(scope="module")
def bfcl() -> tuple[Any, Path]:
    """(ast_checker, the folder of questions) of bfcl-eval. Of its table of models, which imports the client of every
    vendor, the checker reads one flag."""
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        pytest.skip("the package bfcl-eval, whose checker is the oracle, is not installed (pip install --no-deps)")
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"plain": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules[table.__name__] = table
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    finally:
        del sys.modules[table.__name__]

    def check(functions: Any, said: Any, answers: Any, category: str) -> bool:
        return bool(ast_checker(functions, said, answers, Language.PYTHON, category, "plain")["valid"])

    return check, Path(found.origin).parent / "data"


def first(accepted: Any) -> Any:
    value = next((one for one in accepted if one != ""), "") if isinstance(accepted, list) else accepted
    if isinstance(value, dict):
        return {key: first(ones) for key, ones in value.items() if not (isinstance(ones, list) and "" in ones)}
    if isinstance(value, list):
        return [first([item]) if isinstance(item, dict) else item for item in value]
    return value


def spoiled(calls: list[dict[str, Any]], wanted: list[Wanted], rng: random.Random) -> list[dict[str, Any]]:
    """One of the mistakes, or harmless differences, that answers have."""
    calls = copy.deepcopy(calls)
    call = rng.choice(calls)
    name = next(iter(call))
    arguments = call[name]
    key = rng.choice([*arguments, ""]) if arguments else ""
    match rng.choice(("drop", "extra", "order", "rename", "omit", "other", "text", "case", "integer", "float", "list")):
        case "drop":
            arguments.pop(key, None)
        case "extra":
            arguments["surplus"] = 1
        case "order":
            rng.shuffle(calls)
        case "rename":
            call[name + "_"] = call.pop(name)
        case "omit":
            calls.pop()
        case "other":
            accepts = next(one.accepts for one in wanted if one.call.name == name) or {}
            arguments |= {
                key: value
                for key, ones in accepts.items()
                if (value := rng.choice(ones or [""])) != "" and not isinstance(value, dict | list)
            }
        case "text" if key:
            arguments[key] = str(arguments[key])
        case "case" if key and isinstance(arguments[key], str):
            arguments[key] = arguments[key].upper().replace(" ", "-")
        case "integer" if key and isinstance(arguments[key], float):
            arguments[key] = int(arguments[key])
        case "float" if key and type(arguments[key]) is int:
            arguments[key] = float(arguments[key])
        case "list" if key:
            arguments[key] = [arguments[key]]
    return calls


CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_parallel",
              "live_parallel_multiple")  # fmt: skip


@pytest.mark.parametrize("category", CATEGORIES)
def test_verdicts_are_those_of_bfcls_checker(category: str, bfcl: tuple[Any, Path]) -> None:
    """On every question: the right calls, and three spoiled versions of them."""
    check, data = bfcl
    rng = random.Random(category)
    answers = read(data / "possible_answer" / f"BFCL_v4_{category}.json")
    verdicts: list[bool] = []
    for id, row in read(data / f"BFCL_v4_{category}.json").items():
        truth = answers[id]["ground_truth"]
        tools = {name_of(tool): parameters_of(tool) for tool, _ in map(normalised_tool, row["function"])}
        wanted = [Wanted(Call(name, {}), accepts) for one in truth for name, accepts in one.items()]
        right = [
            {name: {key: first(ones) for key, ones in accepts.items() if "" not in ones}}
            for one in truth
            for name, accepts in one.items()
        ]
        for said in (right, *(spoiled(right, wanted, rng) for _ in range(3))):
            theirs = bool(said) and check(row["function"], copy.deepcopy(said), truth, category)
            calls = [Call(name, arguments) for one in said for name, arguments in one.items()]
            ours = calls_match(calls, wanted, tools)
            if ours and not theirs:
                # Their checker gives each wanted call the first that fits it, which may have been another one's only.
                theirs = any(check(row["function"], said, list(order), category) for order in permutations(truth))
            assert ours is theirs, (id, said, truth)
            verdicts.append(theirs)
    assert 0.3 * len(verdicts) < sum(verdicts) < 0.9 * len(verdicts), "both verdicts are among them"


def read(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["id"]: row for row in rows}
