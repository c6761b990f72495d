"""What cannot go together among the method, its options and new tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

from halo_forge.artifacts import LORA_METHODS
from halo_forge.config.schema import Config
from halo_forge.config.yaml_text import shown_value

Contradiction = tuple[tuple[str, ...], str, str | None]
"""(keys involved, message, suggestion)"""

_LAYER_RANGE = re.compile(r"(\d+)-(\d+)")


def method_contradictions(config: Config) -> Iterator[Contradiction]:
    yield from _lora_problems(config)
    yield from _trainable_problems(config)
    yield from _token_problems(config)


def _lora_problems(config: Config) -> Iterator[Contradiction]:
    lora, method = config.lora, config.training.method
    if method not in LORA_METHODS:
        return
    if lora.target_modules == []:
        message = "lora.target_modules is an empty list: no layer would get an adapter"
        yield ("lora.target_modules",), message, "target_modules: all-linear"
    if lora.layers_to_transform == []:
        message = "lora.layers_to_transform is an empty list: no layer would get an adapter"
        yield ("lora.layers_to_transform",), message, "layers_to_transform: null"
    for dotted, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for pattern in patterns:
            if not _is_regex(pattern):
                message = f"lora.{dotted}: {shown_value(pattern)} is neither a name nor a regular expression"
                yield (f"lora.{dotted}",), message, "a module's name, for instance q_proj"


def _trainable_problems(config: Config) -> Iterator[Contradiction]:
    trainable, method = config.training.trainable, config.training.method
    if trainable is None:
        return
    keys = ("training.trainable", "training.method")
    if method != "full":
        message = f"training.trainable chooses among the model's own weights, and training.method is {method}"
        yield keys, message, "training.method: full"
    if not trainable:
        yield ("training.trainable",), "training.trainable is an empty list: nothing would be trained", None
    for pattern in trainable:
        if pattern.startswith("re:") and not _is_regex(pattern.removeprefix("re:")):
            message = f"training.trainable: {shown_value(pattern)} is not a regular expression"
            yield ("training.trainable",), message, None
        elif not pattern.strip():
            yield ("training.trainable",), "training.trainable holds an empty text", None
        elif not pattern.startswith("re:"):
            for part in pattern.split("."):
                found = _LAYER_RANGE.fullmatch(part)
                if found and int(found[1]) > int(found[2]):
                    message = f"training.trainable: {part} runs backwards"
                    yield ("training.trainable",), message, f"{found[2]}-{found[1]}"


def _token_problems(config: Config) -> Iterator[Contradiction]:
    model = config.model
    tokens = [*model.add_tokens, *model.add_special_tokens]
    key = "model.add_special_tokens" if not model.add_tokens else "model.add_tokens"
    if tokens and config.training.method == "adapter":
        message = f"{key} adds embeddings, and bottleneck adapters train none"
        yield (key, "training.method"), message, "training.method: lora, or full"
    for dotted, given in (
        ("model.add_tokens", model.add_tokens),
        ("model.add_special_tokens", model.add_special_tokens),
    ):
        for token in given:
            if not token or token != token.strip():
                message = f"{dotted}: {shown_value(token)} is empty or has white space at an end"
                yield (dotted,), message, "a string without white space around it"
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        yield (key,), f"the new token {shown_value(twice)} is given twice", "keep one of the two"


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return bool(pattern)
