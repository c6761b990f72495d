"""Suites (halo_forge.suites) asked, judged and compared, beside the holdout.

stage.py        items -> questions -> what was said      scoring.py      one answer -> scores and a reason
comparing.py    judged answers -> comparisons            calibration.py  probabilities of choices, ECE, Brier
alone.py        one model without another to compare it with
"""
