"""Toxicity by a model that scores meaning, beside the lexical score of texts/toxicity.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

from halo_forge.errors import ModelNotFound

BATCH_TEXTS = 16


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
