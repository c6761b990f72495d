"""Rules and an evaluation report -> PASS, FAIL or INCONCLUSIVE, each with its evidence. No torch, no files.

rules.py       which rules make sense        bounds.py   one limit and its margin
judge.py       the verdict                   words.py    reasons, with what would have turned them
benchmarks.py  names, chance, what is broken actions.py  what to do next, with the command
"""

from halo_forge.gate.judge import decide, judge_rules
from halo_forge.gate.rules import KNOWN_METRICS, check_rules, require_known_metrics

__all__ = ["KNOWN_METRICS", "check_rules", "decide", "judge_rules", "require_known_metrics"]
