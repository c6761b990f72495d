"""Rebuild src/halo_forge/texts/lexicons/toxicity.npz from the linear model that alt-profanity-check ships.

    python -m venv /tmp/toxicity && /tmp/toxicity/bin/pip install alt-profanity-check==1.9.1
    /tmp/toxicity/bin/python dev/export_toxicity_weights.py [OUTPUT]

The wheel holds pickles, so this runs in a throw-away environment and never in the package: the package reads plain
arrays. Source: alt-profanity-check 1.9.1, MIT, (c) 2018 Victor Zhou, 2021 Menelaos Kotoglou, and Dimitrios Mistriotis;
the licence stands in lexicons/README.md.

The model averages five calibrated linear classifiers over L2-normed TF-IDF of single words. All five are linear in the
same input, so their mean logit is one weight per word and one offset; the exported score is the sigmoid of it instead
of the mean of five sigmoids. The largest difference on a few texts is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-not-found]
import numpy as np
import profanity_check  # type: ignore[import-not-found]

OUTPUT = Path(__file__).resolve().parents[1] / "src/halo_forge/texts/lexicons/toxicity.npz"
TEXTS = ("you are a stupid idiot", "I like apples", "what the hell", "He used 3 balls of wool.", "shut up, you moron")


def mean_logit(model: Any) -> tuple[np.ndarray, float]:
    """Weights [V] and offset of the mean logit: each classifier f is calibrated as sigmoid(-(a f + b))."""
    weights, offset = np.zeros(model.calibrated_classifiers_[0].estimator.coef_.shape[1]), 0.0
    for part in model.calibrated_classifiers_:
        (calibrator,) = part.calibrators
        weights -= calibrator.a_ * part.estimator.coef_[0]
        offset -= calibrator.a_ * float(part.estimator.intercept_[0]) + calibrator.b_
    num_parts = len(model.calibrated_classifiers_)
    return weights / num_parts, offset / num_parts


def main(output: Path) -> None:
    data = Path(profanity_check.__file__).parent / "data"
    vectorizer, model = joblib.load(data / "vectorizer.joblib"), joblib.load(data / "model.joblib")
    weights, offset = mean_logit(model)
    words = sorted(vectorizer.vocabulary_)
    order = [vectorizer.vocabulary_[word] for word in words]
    np.savez_compressed(
        output,
        words=np.frombuffer("\n".join(words).encode(), dtype=np.uint8),
        idf=vectorizer.idf_[order].astype(np.float32),
        weights=weights[order].astype(np.float32),
        offset=np.float64(offset),
    )
    exact = model.predict_proba(vectorizer.transform(TEXTS))[:, 1]
    ours = 1 / (1 + np.exp(-(vectorizer.transform(TEXTS) @ weights + offset)))
    for text, before, after in zip(TEXTS, exact, ours, strict=True):
        print(f"{before:.4f} {after:.4f}  {text}")
    print(f"{len(words)} words, {output.stat().st_size} bytes, largest difference {abs(exact - ours).max():.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
