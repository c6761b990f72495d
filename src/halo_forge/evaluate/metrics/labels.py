"""Classification: references that are few distinct labels, and answers that are one of them.

Axes: N items, L labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

MAX_LABELS = 50
MIN_ROWS_PER_LABEL = 5
MAX_LABEL_WORDS = 5
_EDGES = " \t\r\n\"'`*.,:;!"


def label_of(text: str) -> str:
    """A label without what stands around it: white space, quotes, a full stop, bold marks; in lower case."""
    return text.strip(_EDGES).casefold()


def why_no_labels(references: Sequence[str]) -> str | None:
    """Why these references are no labels, or None: at least two, each of a few words, MIN_ROWS_PER_LABEL rows to each
    on average."""
    labels = {label_of(reference) for reference in references}
    if len(labels) < 2:
        return f"the references are {len(labels)} distinct labels; at least two make a classification"
    most = min(MAX_LABELS, len(references) // MIN_ROWS_PER_LABEL)
    if len(labels) > most:
        return f"the {len(references)} references are {len(labels)} distinct texts; labels would be at most {most}"
    long = sum(not 0 < len(label.split()) <= MAX_LABEL_WORDS for label in labels)
    if long:
        return f"{long} of {len(labels)} distinct references are empty or longer than {MAX_LABEL_WORDS} words"
    return None


def class_accuracy(text: str, reference: str) -> float:
    return float(label_of(text) == label_of(reference))


def one_hot_labels(texts: Sequence[str], labels: Sequence[str]) -> FloatArray:
    """[N, L]; a row of zeros where a text is none of the labels."""
    place = {label: index for index, label in enumerate(labels)}
    found = np.zeros((len(texts), len(labels)))
    for row, text in enumerate(texts):
        if (index := place.get(label_of(text))) is not None:
            found[row, index] = 1
    return found


def macro_f1(counts: FloatArray, said: FloatArray, expected: FloatArray) -> FloatArray:
    """Mean over labels of 2 hits / (said + expected), for each line of `counts`: how often each item is taken.

    counts [R, N], said and expected one-hot [N, L] -> [R]. A label that a line neither says nor expects has no F1
    there and is left out of its mean. An answer that is no label is a miss of the label that was expected.
    """
    hits, told, asked = (counts @ part for part in (said * expected, said, expected))  # [R, L]
    seen = told + asked
    with np.errstate(invalid="ignore"):
        scores = np.where(seen > 0, 2 * hits / np.where(seen > 0, seen, 1), np.nan)
    return np.nanmean(scores, axis=1)
