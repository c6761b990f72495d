"""Base against tuned on the frozen holdout: every number with its n, its interval and its status.

evaluate.py    the stage                        items.py         rows -> what is asked and what counts
heldout.py     likelihood of the answers        generate.py      greedy answers, batched (kv_cache.py)
scorers.py     text x reference -> score        json_answers.py  JSON and schemas, strictly
statistics.py  intervals of paired data         compare.py       measured models -> comparisons
answer_cache.py  nothing is computed twice      baseline.py      baseline_metrics.json
"""

from halo_forge.evaluate.evaluate import ModelPair, check_evaluation, evaluate
from halo_forge.evaluate.generate import Generation, Prompt, generate
from halo_forge.evaluate.heldout import answer_nll
from halo_forge.evaluate.scorers import METRICS, Metric

__all__ = [
    "METRICS",
    "Generation",
    "Metric",
    "ModelPair",
    "Prompt",
    "answer_nll",
    "check_evaluation",
    "evaluate",
    "generate",
]
