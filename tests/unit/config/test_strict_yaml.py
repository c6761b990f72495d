"""The strict reader: YAML 1.2 scalars, places of keys and values, and an error for all that is ambiguous or hostile."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_forge.config.strict_yaml import MAX_DEPTH, MAX_NODES, Place, parse_value, parse_yaml, read_yaml
from halo_forge.config.yaml_text import yaml_value
from halo_forge.errors import ConfigError, ConfigProblem


def problem_of(text: str, **options: Any) -> Any:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml", **options)
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2e-5", 2e-5),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("2.0e-5", 2e-5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5", -1.5),
        ("10", 10),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'2e-5'", "2e-5"),
        ('"true"', "true"),
        ("-.inf", -math.inf),
        ("1e", "1e"),
        ("e5", "e5"),
        ("v1.2", "v1.2"),
    ],
)
def test_scalars_follow_the_core_schema(written: str, meant: Any) -> None:
    value = parse_yaml(f"key: {written}\n", "file.yaml").to_plain()["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_not_a_number_is_read_as_one() -> None:
    assert math.isnan(parse_yaml("key: .nan", "file.yaml").to_plain()["key"])


def test_every_key_and_value_has_its_place() -> None:
    document = parse_yaml("# comment\nmodel:\n  name: abc\ndata:\n  files: [a, bc]\n", "file.yaml")
    model = document.entries()["model"]
    name = model.node.value["name"]
    files = document.entries()["data"].node.value["files"]
    assert model.place == Place(2, 1, 5)
    assert (name.place, name.node.place) == (Place(3, 3, 4), Place(3, 9, 3))
    assert files.node.place_at((1,)) == Place(5, 14, 2)
    assert document.where(name.node.place) == "file.yaml:3:9"
    assert document.snippet(name.node.place) == "3 |   name: abc\n  |         ^^^"


def test_the_caret_stands_under_its_column_after_wide_characters() -> None:
    document = parse_yaml("a: [你好, x]\n", "file.yaml")
    line, caret = document.snippet(document.entries()["a"].node.place_at((1,))).splitlines()
    # the two characters before it take two columns each on a terminal
    assert line.index("x") + 2 == caret.index("^")


def test_a_long_line_is_shown_around_the_place() -> None:
    document = parse_yaml(f"a: {{b: {'x' * 500}, c: here}}\n", "file.yaml")
    line, caret = document.snippet(document.entries()["a"].node.place_at(("c",))).splitlines()
    assert len(line) < 140
    assert line[caret.index("^") : caret.index("^") + 4] == "here"


@pytest.mark.parametrize(
    ("text", "words", "where"),
    [
        ("a: 1\nb: 2\na: 3\n", "given twice; the first is in line 1", "file.yaml:3:1"),
        ("a:\n  b: 1\n  'b': 2\n", "given twice", "file.yaml:3:3"),
        ("a: &x 1\n", "anchor", "file.yaml:1:4"),
        ("a: &x [*x]\n", "anchor", "file.yaml:1:4"),
        ("a: 1\nb: *x\n", "*x refers to another place", "file.yaml:2:4"),
        ("a: !!python/object/apply:os.system [x]\n", "tag", "file.yaml:1:4"),
        ("a: !local 1\n", "tag", "file.yaml:1:4"),
        ("%YAML 1.1\n---\na: 1\n", "%YAML", "file.yaml:1:1"),
        ("a: 1\n---\nb: 2\n", "second document", "file.yaml:2:1"),
        ("- a\n- b\n", "holds a list", "file.yaml:1:1"),
        ("just words\n", "holds a single value", "file.yaml:1:1"),
        ("a:\n\tb: 1\n", "tab", "file.yaml:2:1"),
        ("a: 1\t# comment\n", "tab", "file.yaml:1:5"),
        ("a: 'x\x00y'\n", "U+0000", "file.yaml:1:6"),
        ("a: \x1b[31m\n", "U+001B", "file.yaml:1:4"),
        ("a: 1e999\n", "too large", "file.yaml:1:4"),
        (f"a: {'9' * 4301}\n", "4301 digits; at most 4300", "file.yaml:1:4"),
        (f"a: 0x{'f' * 4000}\n", "digits", "file.yaml:1:4"),
        ("? [a, b]\n: 1\n", "key is a single word", "file.yaml:1:3"),
        ("a: {<<: {b: 1}}\n", "<< merges", "file.yaml:1:5"),
        ('a: "\\ud800"\n', "half a character", "file.yaml:1:4"),
        ('a: "\\U00110000"\n', "names no character", "file.yaml:1:7"),
        ("a: b: c\n", "not valid YAML", "file.yaml:1:5"),
        ("a: [1,\n", "not valid YAML", "file.yaml:2:1"),
        ("a: 'x\n", "not valid YAML", "file.yaml:2:1"),
    ],
)
def test_what_is_refused(text: str, words: str, where: str) -> None:
    problem = problem_of(text)
    assert words in problem.message
    assert problem.where == where
    assert "^" in problem.snippet


def test_all_refusals_of_a_file_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a: 1\na: 2\nb: &x 1\nc: *x\nd: !t 1\n", "file.yaml")
    assert [problem.where for problem in caught.value.problems] == [
        "file.yaml:2:1",
        "file.yaml:3:4",
        "file.yaml:4:4",
        "file.yaml:5:4",
    ]


def test_an_alias_bomb_is_refused_without_being_built() -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "anchor" in problem_of("l0: &l0 [x]\n" + "\n".join(levels)).message


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "[" * 100_000, "{a: " * 50_000, "- " * 50_000])
def test_depth_is_bounded(text: str) -> None:
    assert f"more than {MAX_DEPTH} levels" in problem_of(text).message


def test_64_levels_are_read() -> None:
    assert parse_yaml("a: " + "[" * 63 + "]" * 63, "file.yaml").root is not None


def test_values_are_counted() -> None:
    assert f"more than {MAX_NODES}" in problem_of(f"a: [{'1, ' * MAX_NODES}]").message
    assert len(parse_yaml(f"a: [{'1, ' * (MAX_NODES - 3)}]", "file.yaml").to_plain()["a"]) == MAX_NODES - 3


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "--- \n...\n"])
def test_a_file_without_values(text: str) -> None:
    document = parse_yaml(text, "file.yaml")
    assert document.root is None
    assert document.to_plain() == {}


def test_tabs_are_fine_where_they_are_content() -> None:
    assert parse_yaml('a: "x\ty"\n# c\tc\n', "file.yaml").to_plain() == {"a": "x\ty"}


def test_json_is_read_with_tabs_and_surrogate_pairs(tmp_path: Path) -> None:
    value = {"a": {"b": [1, 2.5, None, True, "x\u0001 😀\n/"]}, "c": ""}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(value, indent="\t"))
    assert read_yaml(path).to_plain() == value


@pytest.mark.parametrize(
    ("content", "words", "place"),
    [
        (b"a: 1\nb: \xe9\n", "not UTF-8", ":2:4"),
        ("a: 1".encode("utf-16"), "UTF-16", ":1:1"),
        (b"a: 1\n#" + b"x" * 1_000_000, "larger than", ""),
    ],
)
def test_bytes_that_are_no_configuration(tmp_path: Path, content: bytes, words: str, place: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert words in caught.value.problems[0].message
    assert caught.value.problems[0].where == f"{path}{place}"


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\rc: 3\n")
    assert read_yaml(path).to_plain() == {"a": 1, "b": 2, "c": 3}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for path, words in ((tmp_path, "a directory"), (tmp_path / "fifo.yaml", "not a regular file")):
        with pytest.raises(ConfigError, match=words):
            read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "x\0y")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1e-4", 1e-4),
        ("Answer: yes # really", "Answer: yes # really"),
        ("[a, 2]", ["a", 2]),
        ("[{metric: perplexity, max: 20}]", [{"metric": "perplexity", "max": 20}]),
        ("'007'", "007"),
        ("null", None),
        ("", None),
        ("&not an anchor", "&not an anchor"),
    ],
)
def test_values_of_settings(text: str, meant: Any) -> None:
    assert parse_value(text, "--set") == meant


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=80), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=80), json_values, max_size=5))
def test_what_we_write_is_read_back(value: dict[str, Any]) -> None:
    assert parse_yaml(yaml_value(value), "file.yaml").to_plain() == value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=80), json_values, max_size=4))
def test_json_files_are_read_as_json(value: dict[str, Any]) -> None:
    text = json.dumps(value, indent="\t")
    if "Infinity" not in text:
        assert parse_yaml(text, "file.json", json=True).to_plain() == value


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab01:-?,[]{}#&*!|>'\"%@` \n\t\\\r.~<\u2028\ufeffé"), max_size=40))
def test_no_text_does_anything_but_load_or_be_refused(text: str) -> None:
    problems: list[ConfigProblem] = []
    try:
        parse_yaml(text, "file.yaml")
    except ConfigError as error:
        problems = error.problems
    assert all(problem.where.startswith("file.yaml:") for problem in problems)
