"""Base against tuned on the frozen holdout: every number with its n, its interval and its status.

evaluate.py    the stage                        items.py         rows -> what is asked and what counts
heldout.py     likelihood of the answers        scorers.py       text x reference -> score
statistics.py  intervals of paired data         json_answers.py  JSON and schemas, strictly
compare.py     measured models -> comparisons   answer_cache.py  nothing is computed twice
retention.py   general texts: what was forgotten baseline.py      baseline_metrics.json
                                                 ../models/generate.py  greedy answers, batched
"""

from halo_forge.evaluate.evaluate import ModelPair, check_evaluation, evaluate
from halo_forge.evaluate.heldout import answer_nll
from halo_forge.evaluate.scorers import METRICS, Metric
from halo_forge.models.generate import Generation, Prompt, generate

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
