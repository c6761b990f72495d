"""Answers by the dozen, judged by rules: rows for rejection-sampling fine-tuning, pairs for preference training.

questions.py  prompts from files or a run's split      generation.py  K samples a prompt, kept as they are drawn
verdicts.py   samples -> judged, kept, counted         handoff.py     the package for DPO and RAFT
"""
