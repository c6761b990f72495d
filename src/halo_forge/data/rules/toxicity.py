"""A lexical toxicity score, and a hook for a model that scores meaning.

The lexical score knows English words and no meaning (`lexicons/README.md` says where its weights come from): it finds
insults and slurs, misses polite cruelty, and can be wrong about quotations, names of groups and body parts. It is a
reason to look at a row, never a verdict.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from halo_forge.errors import ModelNotFound

TOXIC_SCORE = 0.9
"""From this lexical score on a text counts as toxic."""
STRONG_LOGIT = 7.0
"""A word that adds this much by itself is strong. A text without a strong word is not scored: no sum of mild words is
evidence."""
_WORD = re.compile(r"\w\w+")
BATCH_TEXTS = 16


@dataclass(frozen=True, slots=True)
class Lexicon:
    """`idf` and `weight` by lower-case word; `strong` are UTF-8 words, for a quick look at a row's words."""

    idf: dict[str, float]
    weight: dict[str, float]
    offset: float
    strong: frozenset[bytes]


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The word weights, read once per process (about 10 ms)."""
    source = resources.files("halo_forge.data.rules") / "lexicons" / "toxicity.npz"
    with resources.as_file(source) as path, np.load(path, allow_pickle=False) as arrays:
        words = arrays["words"].tobytes().decode().split("\n")
        weights, idf, offset = arrays["weights"].tolist(), arrays["idf"].tolist(), float(arrays["offset"])
    strong = frozenset(word.encode() for word, weight in zip(words, weights, strict=True) if weight >= STRONG_LOGIT)
    return Lexicon(dict(zip(words, idf, strict=True)), dict(zip(words, weights, strict=True)), offset, strong)


def lexical_toxicity(text: str) -> float:
    """Lexical toxicity score of one text, 0 to 1: the sigmoid of a weighted sum over its L2-normed TF-IDF words."""
    table = lexicon()
    counts = Counter(word for word in _WORD.findall(text.lower()) if word in table.idf)
    if not counts:
        return 1 / (1 + math.exp(-table.offset))
    values = {word: count * table.idf[word] for word, count in counts.items()}
    norm = math.sqrt(sum(value * value for value in values.values()))
    logit = table.offset + sum(value * table.weight[word] for word, value in values.items()) / norm
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


def model_scores(texts: Sequence[str], model_name: str) -> list[float]:
    """Toxicity of each text, 0 to 1, by a text-classification model (directory, or Hub id in the cache or online).

    The score is the probability of the model's toxic labels: their sum, or their largest where labels are independent.
    Long texts are cut at the model's limit. Raises ModelNotFound when the model cannot be loaded or none of its labels
    says which way is toxic.
    """
    if not texts:
        return []
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from halo_forge.models.quiet import quiet_transformers
    from halo_forge.models.resolve import resolve_model

    directory = resolve_model(model_name)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelNotFound(
            f"{model_name} cannot be loaded as a text classifier: {str(error).splitlines()[0]}",
            where="data.toxicity_model",
            expected="a text-classification model with safetensors weights",
        ) from None
    toxic = _toxic_labels(dict(model.config.id2label), model_name)
    independent = model.config.problem_type == "multi_label_classification"
    num_positions = getattr(model.config, "max_position_embeddings", None) or 512
    limit = min(num_positions - 2, tokenizer.model_max_length, 512)
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH_TEXTS):
            batch = list(texts[start : start + BATCH_TEXTS])
            inputs = tokenizer(batch, truncation=True, max_length=limit, padding=True, return_tensors="pt")
            logits = model(**inputs).logits.float()  # [B, L]
            if independent:
                scores += torch.sigmoid(logits)[:, toxic].amax(dim=1).tolist()
            else:
                scores += torch.softmax(logits, dim=1)[:, toxic].sum(dim=1).clamp(max=1.0).tolist()
    return scores


_TOXIC = re.compile(r"toxic|hate|hateful|offens|insult|obscen|threat|abus|profan|harass|unsafe|identity_attack")
_CLEAN = re.compile(r"^(?:non|not|no|neutral|clean|safe|ok|normal|none)(?:[^a-z]|$)|non[-_ ]?(?:toxic|hate|offens)")


def _toxic_labels(labels: dict[int, str], model_name: str) -> list[int]:
    names = {number: str(label).lower() for number, label in labels.items()}
    toxic = [number for number, name in names.items() if _TOXIC.search(name) and not _CLEAN.search(name)]
    if not toxic:
        raise ModelNotFound(
            f"none of the labels of {model_name} says toxic: {', '.join(map(str, labels.values()))}",
            where="data.toxicity_model",
            expected="labels such as toxic, hate, insult (config.json: id2label)",
        )
    return sorted(toxic)
