"""Base against tuned on the frozen holdout: every number with its n, its interval and its status.

evaluate.py   the stage                           items.py        rows -> what is asked and what counts
measure.py    what one model does with them       heldout.py      likelihood of the answers
retention.py  general texts: what was forgotten   answer_cache.py nothing is computed twice, the base once for all runs

score.py      answers -> scores of every item     metrics/        each metric, a file to a family
slices.py     by source, label and length         flips.py        which items were won and lost
compare.py    two models -> comparisons           baseline.py     baseline_metrics.json
code_scores.py generated code under its tests
statistics.py intervals of paired data            paired_tests.py McNemar, paired bootstrap

What a metric is (name, direction, kind) stands in ../metrics.py, where the gate reads it too; answers come from
../models/generate.py.
"""

from halo_forge.evaluate.compare import compare_items
from halo_forge.evaluate.evaluate import ModelPair, check_evaluation, evaluate
from halo_forge.evaluate.heldout import answer_nll
from halo_forge.evaluate.metrics import METRICS, Metric
from halo_forge.models.generate import Generation, Prompt, generate

__all__ = [
    "METRICS",
    "Generation",
    "Metric",
    "ModelPair",
    "Prompt",
    "answer_nll",
    "check_evaluation",
    "compare_items",
    "evaluate",
    "generate",
]
