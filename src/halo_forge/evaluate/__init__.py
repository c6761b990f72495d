"""Base against tuned on the frozen holdout: every number with its n, its interval and its status.

stage.py      the stage                           items.py        rows -> what is asked and what counts
measure.py    what one model does with them       heldout.py      likelihood of the answers
retention.py  general texts: what was forgotten   answer_cache.py nothing is computed twice, the base once for all runs

score.py      answers -> scores of every item     metrics/        each metric, a file to a family
slices.py     by source, label and length         flips.py        which items were won and lost
compare.py    two models -> comparisons           baseline.py     baseline_metrics.json
code_scores.py generated code under its tests
statistics.py intervals of paired data            paired_tests.py McNemar, paired bootstrap

What a metric is (name, direction, kind) stands in ../metrics.py, where the gate reads it too; answers come from
../models/generate.py.

Two versions' kept scores are compared without torch (released.py, compare.py), so the names below load their module on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# public name -> the module here that defines it
_PUBLIC = {
    "METRICS": "metrics",
    "Metric": "metrics",
    "ModelPair": "stage",
    "answer_nll": "heldout",
    "check_evaluation": "stage",
    "compare_items": "compare",
    "evaluate": "stage",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'halo_forge.evaluate' has no attribute {name!r}")
    return getattr(import_module(f"halo_forge.evaluate.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
