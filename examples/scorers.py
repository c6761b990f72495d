"""A metric of our own for the docstring task: `evaluation.scorers: ["examples/scorers.py:arguments_named"]`."""

import json


def arguments_named(answer, reference, row):
    """Share of the reference's arguments that the answer names too, defaults and all."""
    expected = set(json.loads(reference)["args"])
    try:
        named = set(json.loads(answer)["args"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    return len(expected & named) / len(expected)
