"""Error rates of transcripts against jiwer over whole sets, and Whisper's normaliser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

jiwer = pytest.importorskip("jiwer")

from halo_forge.evaluate.compare import Comparing, _compare_errors  # noqa: E402
from halo_forge.evaluate.metrics.transcripts import ERROR_RATES, error_rate, units  # noqa: E402
from halo_forge.evaluate.score import Scored  # noqa: E402
from halo_forge.evaluate.statistics import Resampling, compare_error_rates  # noqa: E402

PAIRS = [
    ("the quick brown fox", "the quick brown fox"),
    ("the quick brown", "the quick brown fox jumped"),
    ("", "the lazy dog"),
    ("one two three four five six", "seven"),
    ("a a a b", "a b a b a b"),
]
WORDS = st.lists(st.sampled_from(["apple", "river", "stone", "a", "the"]), max_size=8).map(" ".join)


def test_the_rate_of_all_is_jiwers() -> None:
    said, expected = [list(side) for side in zip(*PAIRS, strict=True)]
    for metric, oracle in (("wer_raw", jiwer.wer), ("cer", jiwer.cer)):
        rates = [error_rate(metric, *pair, "basic") for pair in PAIRS]
        sizes = [units(metric, reference, "basic") for reference in expected]
        total = sum(rate * size for rate, size in zip(rates, sizes, strict=True) if rate is not None) / sum(sizes)
        assert total == pytest.approx(oracle(expected, said))
        assert total != pytest.approx(float(np.mean([rate for rate in rates if rate is not None])))


@given(said=WORDS, expected=WORDS.filter(bool))
def test_a_rate_is_the_edit_distance_of_words(said: str, expected: str) -> None:
    one, two = said.split(), expected.split()
    table = np.zeros((len(two) + 1, len(one) + 1))
    table[:, 0], table[0] = range(len(two) + 1), range(len(one) + 1)
    for i, word in enumerate(two, start=1):
        for j, other in enumerate(one, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (word != other))
    assert error_rate("wer_raw", said, expected, "basic") == pytest.approx(table[-1, -1] / len(two))


def test_normalising_forgives_case_punctuation_and_spelling_of_numbers() -> None:
    said, expected = "Mr. Fox won't pay twenty-five dollars", "mister fox will not pay $25"
    assert error_rate("wer", said, expected, "english") == 0
    assert error_rate("wer_raw", said, expected, "english") > 0.5
    assert error_rate("wer", "Straße, ja!", "straße ja", "basic") == 0
    assert error_rate("wer", "apple", "?!", "english") is None, "a reference without a word has no rate"


def test_the_report_has_corpus_rates_with_intervals() -> None:
    said, expected = [list(side) for side in zip(*PAIRS, strict=True)]
    tuned = np.array([error_rate("wer_raw", *pair, "basic") for pair in PAIRS], dtype=np.float64)
    base = np.minimum(1.0, tuned + 0.5)
    sizes = np.array([units("wer_raw", reference, "basic") for reference in expected], dtype=np.float64)
    nothing = np.zeros(0)
    scored = Scored(
        base={"wer_raw": base}, tuned={"wer_raw": tuned}, inapplicable={}, words=(nothing, nothing, nothing),
        units={"wer_raw": sizes},
    )  # fmt: skip
    (row,) = _compare_errors("wer_raw", scored, Comparing(Resampling(), {}))
    assert row.tuned.value == pytest.approx(jiwer.wer(expected, said))
    assert row.tuned.low is not None
    assert row.tuned.low <= row.tuned.value <= (row.tuned.high or 0)
    assert row.tuned.direction == "lower"
    assert row.tuned.n == len(PAIRS)
    assert scored.kind("wer_raw") == "count"


def test_no_error_is_no_proof_of_none() -> None:
    """60 faultless transcripts leave a few faulty ones possible; the interval says so, and the difference's too."""
    words = np.full(60, 8.0)
    found = compare_error_rates(np.full(60, 4.0), np.zeros(60), words, Resampling())
    assert found.tuned_interval is not None
    assert found.tuned_interval.low == 0
    assert 0.04 < found.tuned_interval.high < 0.08
    assert found.delta_interval is not None
    assert found.delta_interval.low >= -0.5 - 1e-9
    assert -0.47 < found.delta_interval.high < -0.4


def test_only_speech_is_measured_by_them() -> None:
    from halo_forge.evaluate.metrics import METRICS, Given

    for name in ERROR_RATES:
        assert METRICS[name].inapplicable(["apple"], Given()) == "the model hears no speech"
        assert METRICS[name].inapplicable(["apple"], Given(speech="english")) is None
