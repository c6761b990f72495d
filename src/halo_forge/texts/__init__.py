"""What a text shows by itself, for every room: no torch, no files but our own word list.

privacy.py   personal data and secrets, found by their shapes
toxicity.py  a lexical toxicity score
"""
