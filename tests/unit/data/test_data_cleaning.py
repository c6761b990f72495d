"""Characters and marks: what is found, what a mend makes of it, and what is left alone."""

from __future__ import annotations

import time
import unicodedata

import pytest

from halo_forge.data.rules.cleaning import (
    CONTROL,
    broken_mark,
    html_remains,
    mojibake_runs,
    normalised,
    open_fence,
    with_closed_fence,
    without_control_characters,
    without_mojibake,
)

SENTENCES = (
    "Müller fährt nach Köln.", "Où est la bibliothèque ? C’est là.", "El niño comió más piñas.", "Привет, как дела?",
    "naïve café – “quoted” … €5", "日本語の文です。", "Ça va 👍 bien", "Smörgåsbord på Åland",
)  # fmt: skip
FINE = (
    *SENTENCES,
    "UMA MAÇÃ” DISSE ELE",
    "IL DIT : « CAFÉ’S »",
    "É”, é…» È—",
    "SÃO PAULO, Â",
    "©®°±²³ 5 µm ½",
    "Íñigo €£¥",
)


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_mojibake_is_undone_where_it_can_be(text: str, encoding: str) -> None:
    try:
        damaged = text.encode().decode(encoding)
    except UnicodeDecodeError:
        damaged = "".join(_sloppy(byte) for byte in text.encode())
    mended = without_mojibake(damaged)
    if mojibake_runs(damaged):
        assert mojibake_runs(mended) == []
        if not any(letter > "\u00ff" and unicodedata.name(letter, "").startswith("CJK") for letter in text):
            assert mended == text
    else:
        assert mended == damaged
        assert text.startswith("日本")  # three-byte scripts are not decoded: other letters look alike


def _sloppy(byte: int) -> str:
    try:
        return bytes((byte,)).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


@pytest.mark.parametrize("text", FINE)
def test_sound_text_is_not_taken_for_mojibake(text: str) -> None:
    assert mojibake_runs(text) == []
    assert without_mojibake(text) == text


def test_text_damaged_twice_is_mended() -> None:
    once = "naïve café".encode().decode("latin-1")
    assert without_mojibake(once.encode().decode("latin-1")) == "naïve café"


def test_control_characters_go_and_layout_stays() -> None:
    assert without_control_characters("\x1b[31mred\x1b[0m\ttab\r\nline") == "red\ttab\r\nline"
    assert without_control_characters("page\x0cnext\x0bnext") == "page\nnext\nnext"
    assert without_control_characters("a\u202eb\u2066c\x00\x07\x7f\x9b") == "abc"


@pytest.mark.parametrize("text", ["👩‍👩‍👧", "می\u200cخواهم", "a\u200fb", "क्\u200dष", "plain\ttext\n"])
def test_joiners_and_direction_marks_are_text(text: str) -> None:
    assert not CONTROL.search(text)
    assert without_control_characters(text) == text


def test_normalised_composes() -> None:
    assert normalised("cafe\u0301") == "café"
    assert normalised("plain") == "plain"


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("```python\nx = 1\n```", None),
        ("```python\nx = 1", "```"),
        ("one\n```\na\n```\ntwo\n```\nb", "```"),
        ("````\n```\n````", None),
        ("~~~\ncode", "~~~"),
        ("~~~\n```\n~~~", None),
        ("inline ```code``` only", None),
        ("no fence", None),
        ("```\na\n```python\nb\n```", None),
    ],
)
def test_open_fence(text: str, marks: str | None) -> None:
    assert open_fence(text) == marks
    assert open_fence(with_closed_fence(text)) is None
    assert with_closed_fence(text) == text if marks is None else with_closed_fence(text).startswith(text)


@pytest.mark.parametrize(
    "text", ["**Bold and on it goes\n\nnext", "see [the page](http://a.b/c", "a **b** and **c then"]
)
def test_broken_markdown_is_seen(text: str) -> None:
    assert broken_mark(text)


@pytest.mark.parametrize(
    "text",
    [
        "**Bold** and *so* on", "2**10 = 1024 and 3 ** 2", "`**kwargs`", "```\n**x\n```", "f(*args, **kwargs)",
        "/** a comment */", "[1](2)", "a [link](http://x.y/z) here", "src/**/*.py", "**a** **b** **c**", "5 ** 2",
    ],
)  # fmt: skip
def test_sound_markdown_and_code_are_left_alone(text: str) -> None:
    assert broken_mark(text) is None


def test_html_remains_only_where_nobody_asked_for_markup() -> None:
    assert html_remains("First<br>second", "Tell me a joke")
    assert html_remains("Fish &amp; chips</p>", "What do the British eat?")
    assert html_remains("First<br>second", "Write HTML for two lines") is None
    assert html_remains("```html\n<br>\n```", "Tell me") is None
    assert html_remains("<<48/2=24>>24 and a < b && c > d; e", "How many?") is None
    assert html_remains("Use <b>bold</b>", "What does <i> do?") is None


HOSTILE = {
    "escapes": "\x1b[" * 500_000,
    "mojibake": "Ã©" * 500_000,
    "lone Â": "Â" * 1_000_000,
    "Cyrillic": "Ð¿" * 500_000,
    "fences": "```\n" * 250_000,
    "backticks": "`" * 1_000_000,
    "stars": "**" * 500_000,
    "stars and letters": " **a" * 250_000,
    "brackets": "[" * 1_000_000,
    "links": "[a](" * 250_000,
    "entities": "&amp" * 250_000 + ";",
    "tags": "</" * 500_000,
    "combining": "e\u0301" * 300_000,
    "spaces": " " * 1_000_000 + "</p>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_text(name: str) -> None:
    text = HOSTILE[name]
    started = time.process_time()
    for function in (
        mojibake_runs,
        without_mojibake,
        without_control_characters,
        normalised,
        with_closed_fence,
        broken_mark,
    ):
        function(text)
    html_remains(text, "prompt")
    assert time.process_time() - started < 5.0  # about 1 s on an idle core
