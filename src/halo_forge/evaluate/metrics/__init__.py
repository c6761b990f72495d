"""One answer against its reference, a file to a family.

overlap.py       same text, number, words    labels.py   classification
json_answers.py  JSON, schemas, repair       formats.py  regex, Markdown         lengths.py  repetition, conciseness
own.py           the user's scorers          table.py    name -> how it is computed (what it is: ../../metrics.py)
"""

from halo_forge.evaluate.metrics.own import OwnScorer, ScorerFailed, load_scorers, own_score
from halo_forge.evaluate.metrics.table import METRICS, Answer, Given, Metric

__all__ = ["METRICS", "Answer", "Given", "Metric", "OwnScorer", "ScorerFailed", "load_scorers", "own_score"]
