"""What is wrong with a training run, in words, from the lines of its metrics.jsonl. No torch, no state, no clock.

curves.py      lines become series             findings.py  what was found, and the facts it is judged with
loss_rules.py  the loss itself                 step_rules.py  gradients, tokens, validation, schedule, sources
diagnose.py    all rules over one run          run_facts.py   a run directory's facts, finished or not
"""

from halo_forge.diagnosis.curves import Curves, Series, curves_of
from halo_forge.diagnosis.diagnose import diagnose
from halo_forge.diagnosis.findings import RunFacts, Severity, TrainingFinding, finding_of
from halo_forge.diagnosis.run_facts import Diagnosis, diagnose_lines, diagnose_run, metrics_lines, run_facts

__all__ = [
    "Curves",
    "Diagnosis",
    "RunFacts",
    "Series",
    "Severity",
    "TrainingFinding",
    "curves_of",
    "diagnose",
    "diagnose_lines",
    "diagnose_run",
    "finding_of",
    "metrics_lines",
    "run_facts",
]
