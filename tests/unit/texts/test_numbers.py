"""Numbers as people write them: which texts are one, and what is equal to what. Nothing hostile takes long."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_forge.texts.numbers import Number, last_number, leading_number, read_number, same_number

READ = {
    "72": 72, "1,000": 1000, "1000.0": 1000, "$1,000.00": 1000, "1,00,000": 100000, "1'000": 1000, "+5": 5, "18.": 18,
    "1/2": Fraction(1, 2), "0.5": Fraction(1, 2), ".5": Fraction(1, 2), "1 1/2": Fraction(3, 2), "2½": Fraction(5, 2),
    r"\frac{1}{2}": Fraction(1, 2), r"\dfrac12": Fraction(1, 2), r"-\frac{3}{4}": Fraction(-3, 4),
    r"1\frac{1}{2}": Fraction(3, 2), r"$18$": 18, r"\(18\)": 18, "**18**": 18, r"\text{18 apples}": 18, r"\$5": 5,
    "-5": -5, "−5": -5, "- 5": -5, "-$5": -5, "$-5": -5, "1e3": 1000, "1.5E-3": Fraction(3, 2000), "10^6": 10**6,
    r"1.5 \times 10^{3}": 1500, "1.5 × 10³": 1500, "10⁶": 10**6, "2 million": 2000000, r"1\,000": 1000,
    "1{,}000": 1000, "1\u202f000": 1000, "１８": 18, "18 dollars per day": 18, "5 km/h": 5, "5km": 5, "5 cm²": 5,
    r"90^\circ": 90, "x = 5": 5, "x=5": 5, "= 5": 5, "about 5": 5, "Natalia sold 72 clips.": 72, "5/6 of the cake":
    Fraction(5, 6), "€3.50": Fraction(7, 2), "5 m": 5, "(5)": 5,
}  # fmt: skip
NONE = [
    "", " ", "eighteen", "nan", "inf", "3x", "3 x", "3x^2", "x^2", "3 + x", "2\\pi", "2 pi", r"\sqrt{2}", "5!", "1/0",
    r"\frac{\pi}{2}", r"\frac{1}{0}", "10:30", "3:4", "5-10", "5 or 6", "(3, 4)", "1,5", "1.000.000", "1/3/4", "1e3e3",
    "0x1F", "+-5", "--5", "1 000", "two dozen 5", "__import__('os')", "9**9**9", "1e999999", "9" * 200, "1," * 200,
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), READ.items())
def test_a_number_is_read_however_it_is_written(text: str, value: Fraction) -> None:
    assert read_number(text) == Number(Fraction(value))


@pytest.mark.parametrize("text", NONE)
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert read_number(text) is None


def test_percent_means_the_number_or_the_share() -> None:
    half, percent, fifty = read_number("0.5"), read_number("50 %"), read_number("50")
    assert half is not None
    assert percent == Number(Fraction(50), is_percent=True) == read_number("50 percent") == read_number(r"50\%")
    assert fifty is not None
    assert same_number(percent, half)
    assert same_number(fifty, percent)
    assert not same_number(half, fifty)
    assert not same_number(percent, Number(Fraction(1, 2), is_percent=True))


FORMS = (
    "{0}", "{0}.0", "{0:,}", "${0}", r"\${0}", "{0} apples", "\\frac{{{0}}}{{1}}", "{0}/1", "**{0}**", "${0}$", "{0}.",
    "{0}e0", r"\text{{{0}}}",
)  # fmt: skip


@given(st.integers(-(10**12), 10**12), st.sampled_from(FORMS), st.sampled_from(FORMS), st.integers(-3, 3))
def test_equality_is_symmetric_and_blind_to_the_form(value: int, form: str, other: str, apart: int) -> None:
    one, two = read_number(form.format(value)), read_number(other.format(value + apart))
    assert one is not None, form.format(value)
    assert two is not None, other.format(value + apart)
    assert same_number(one, two) == same_number(two, one) == (apart == 0)


@given(st.fractions(max_denominator=1000))
def test_fractions_are_exact(value: Fraction) -> None:
    plain = Number(value)
    tex = f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert read_number(f"{value.numerator}/{value.denominator}") == read_number(tex) == plain


def test_a_third_is_not_its_decimals() -> None:
    third, decimals = read_number("1/3"), read_number("0.3333333333333333")
    assert third is not None
    assert decimals is not None
    assert float(third.value) == float(decimals.value)
    assert not same_number(third, decimals)


@pytest.mark.parametrize(
    ("text", "value"),
    [("so 48 + 24 = 72", 72), ("He pays $1,234.50 in all.", 1234.5), ("10-5", 5), ("10 -5", -5), ("none", None),
     ("48x2=96 ok", 96), ("a1b2", None), ("It is 5. Or 6.", 6), ("1/0", None)],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, value: float | None) -> None:
    found = last_number(text)
    assert (None if found is None else found.value) == (None if value is None else Fraction(str(value)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("18 a day for 5 days", 18), ("$18.00, that is", 18), ("3x", None), ("3 + x", None), ("5 (since 2+3=5)", 5),
     ("1. First step", None), ("Step 3", None), ("1/2 of it", Fraction(1, 2))],
)  # fmt: skip
def test_the_number_that_a_text_begins_with(text: str, value: Fraction | None) -> None:
    found = leading_number(text)
    assert (None if found is None else found.value) == value


HOSTILE = (
    "9", "1,", "1/", "\\frac{", "\\frac{1}", "- ", "{", "1 ", "10^", "\\text{", "1e", "½", "ﷺ", "⁰", ".,", "1'", "$",
    "%", "1 1/", "-+", "a ", "\\,", "1e9", "()", "°",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_no_time(piece: str) -> None:
    start = time.process_time()
    for times in (100, 30_000):
        for read in (read_number, last_number, leading_number):
            read(piece * times)
            read("5 " + piece * times + " 5")
    assert time.process_time() - start < 1.0  # 0.05 s where it was measured


@given(st.text(alphabet="0123456789.,/%$-+eE^{}\\ fracxpi()", max_size=60))
def test_any_text_is_a_number_or_none(text: str) -> None:
    for read in (read_number, last_number, leading_number):
        found = read(text)
        assert found is None or abs(found.value.numerator) < 10**700
