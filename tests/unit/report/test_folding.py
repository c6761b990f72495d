"""Long lines fit the reader's terminal, and nothing is lost or broken on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.cli.folding import NARROWEST_CHARS, folded, reading_width

LINES = st.lists(st.text(alphabet="ab1%-.", max_size=90), max_size=20).map(" ".join)


@given(st.lists(LINES, max_size=4), st.integers(0, 20), st.integers(1, 120))
def test_every_word_is_there_once_and_in_its_order(lines: list[str], hanging: int, width: int) -> None:
    text = "\n".join(lines)
    told = folded(text, hanging, width)
    assert told.split() == text.split()
    room = max(width, NARROWEST_CHARS)
    for line in told.split("\n"):
        assert len(line) <= room or len(line.split()) == 1


def test_what_follows_stands_under_the_words() -> None:
    told = folded("  FAIL  " + "word " * 12, 6, 40)
    first, *others = told.split("\n")
    assert first.startswith("  FAIL  word")
    assert others
    assert all(line.startswith(" " * 8 + "word") for line in others)


def test_a_line_that_fits_stays_as_it_is() -> None:
    assert folded("a   b", 4, 80) == "a   b"


def test_a_pipe_gets_whole_lines_unless_columns_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 50
    monkeypatch.delenv("COLUMNS", raising=False)
    assert reading_width() is None
    assert folded(long, 2, reading_width()) == long
    monkeypatch.setenv("COLUMNS", "100")
    assert reading_width() == 100
    monkeypatch.setenv("COLUMNS", "wide")
    assert reading_width() is None
