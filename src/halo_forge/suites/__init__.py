"""Prompt suites as data: what is asked and what counts as right. No torch; the evaluation asks and judges.

suite.py   a JSONL file -> items, strictly          instruction_checks.py   checks of verifiable instructions
metrics.py what suites measure, one row a metric    items/                  the suites that come with halo-forge

They are called mini because they are: a few dozen items of our own, never to be compared with published benchmarks.
"""
