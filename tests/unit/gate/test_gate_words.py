"""What the gate says: numbers in the reason, what would have changed it, what to do next; and rules checked early."""

from __future__ import annotations

import subprocess
import sys

import pytest

from halo_forge.artifacts import Comparison, Measurement
from halo_forge.config.schema import GateRule, GateSection
from halo_forge.errors import ConfigError
from halo_forge.evaluate import METRICS
from halo_forge.gate import KNOWN_METRICS, check_rules, require_known_metrics
from halo_forge.gate.bounds import Bound, Margin
from halo_forge.gate.judge import Evidence, judge_bound
from halo_forge.gate.rules import SHARES, UNDIRECTED
from halo_forge.gate.words import items_to_decide, number
from halo_forge.metrics import METRIC_FACTS, SUITE_METRICS


def exact_match_of(value: float, low: float, high: float) -> Comparison:
    measured = Measurement(metric="exact_match", value=value, n=60, low=low, high=high)
    return Comparison(metric="exact_match", base=measured, tuned=measured, delta=measured)


def evidence_of(row: Comparison) -> Evidence:
    return Evidence(section=GateSection(), comparisons=(row,))


def test_a_pass_shows_its_numbers_and_what_would_have_failed() -> None:
    row = exact_match_of(0.83, 0.72, 0.91)
    result = judge_bound(Bound("exact_match", "min", 0.7), evidence_of(row))
    assert result.rule == "exact_match is at least 0.7"
    assert result.reason.startswith("exact_match 0.83 (95 % interval 0.72 to 0.91, n = 60) is at least 0.7. ")
    assert "would have failed with the whole interval below 0.7" in result.reason
    assert result.evidence == "0.83 (95 % interval 0.72 to 0.91, n = 60)"
    assert result.next_action is None


def test_a_gain_is_told_with_both_sides() -> None:
    def measured(value: float, low: float, high: float) -> Measurement:
        return Measurement(metric="perplexity", value=value, n=60, low=low, high=high, direction="lower")

    row = Comparison(
        metric="perplexity",
        base=measured(18.2, 15.0, 22.0),
        tuned=measured(3.4, 3.0, 3.9),
        delta=measured(-14.8, -18.0, -12.0),
    )
    result = judge_bound(Bound("perplexity", "min_delta", 0.0), evidence_of(row))
    assert "goes from 18.2 to 3.4, a gain of 14.8 (95 % interval of the gain 12 to 18, n = 60)" in result.reason
    assert result.evidence == "base 18.2, tuned 3.4, change -14.8 (95 % interval -18 to -12, n = 60)"


def test_an_undecided_rule_says_how_many_items_would_decide() -> None:
    result = judge_bound(Bound("exact_match", "min", 0.8), evidence_of(exact_match_of(0.9, 0.75, 0.97)))
    assert result.verdict == "INCONCLUSIVE"
    # 0.9 is 0.10 above the limit and the interval reaches 0.15 down: (0.15 / 0.10)^2 x 60 = 135.
    assert "about 140 items" in (result.next_action or "")


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (Margin(0.1, -0.05, 0.2), 140),  # 60 x 1.5^2 = 135, two digits up
        (Margin(-0.1, -0.3, 0.1), 240),  # towards a fail: 60 x 2^2
        (Margin(0.0, -0.1, 0.1), None),
        (Margin(1e-9, -0.1, 0.1), None),
    ],
)
def test_items_to_decide(margin: Margin, expected: int | None) -> None:
    assert items_to_decide(margin, 60) == expected


def test_numbers_beside_a_limit_never_look_equal_to_it_by_rounding() -> None:
    assert number(0.69996) == "0.7"
    assert number(0.69996, 0.7) == "0.69996"
    assert number(0.7, 0.7) == "0.7"


def test_the_gate_knows_exactly_the_metrics_that_are_measured() -> None:
    facts = METRIC_FACTS | SUITE_METRICS
    assert not METRICS.keys() & SUITE_METRICS.keys()
    assert METRICS.keys() | SUITE_METRICS.keys() == KNOWN_METRICS
    assert {name for name, fact in facts.items() if fact.is_share} == SHARES
    assert {"macro_f1", "exact_match", "token_f1"} <= SHARES
    assert not {"perplexity", "answer_length", "length_to_base", "general_kl"} & SHARES
    assert {name for name, fact in facts.items() if fact.direction == "none"} == UNDIRECTED


def test_rules_are_checked_before_anything_is_trained() -> None:
    rules = [
        GateRule(metric="exactmatch", min=0.7),
        GateRule(metric="exact_match", min=70),
        GateRule(metric="answer_length", min_delta=1),
        GateRule(metric="token_f1", min=0.5, min_delta=-0.02),
        GateRule(metric="zzzzz", max=1),
    ]
    problems = check_rules(rules)
    assert [problem.split(":")[0] for problem in problems] == [f"rule {n} of gate.rules" for n in (1, 2, 3, 5)]
    assert "did you mean 'exact_match'?" in problems[0]
    assert "did you mean 0.7?" in problems[1]
    assert "answer_length" in problems[3]
    with pytest.raises(ConfigError) as raised:
        require_known_metrics(GateSection(rules=rules))
    assert len(raised.value.problems) == 4
    require_known_metrics(GateSection())


def test_the_gate_loads_neither_torch_nor_the_evaluation() -> None:
    code = (
        "import sys, halo_forge.gate; print([m for m in ('torch', 'numpy', 'halo_forge.evaluate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_released_version_is_compared_without_torch() -> None:
    """Loading it took ten seconds of `halo-forge gate` where a rule says `against: released`."""
    modules = "halo_forge.verdict, halo_forge.publish.released, halo_forge.evaluate.released"
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
