"""Layers into one set of values: the higher layer wins, and what one key means for another is settled here.

A key that would make a key of a higher layer ineffective is put aside: `--epochs 1` over a file with `max_steps: 5000`
trains one epoch, `--data FILE` over a file with `dataset:` trains on the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halo_forge.config.given import Findings, Layer, Setting
from halo_forge.config.keys import default_values

_ROWS = ("data.train_file", "data.dataset", "data.sources")
REPLACES = (
    *((higher, lower) for higher in _ROWS for lower in _ROWS if higher != lower),
    ("training.num_train_epochs", "training.max_steps"),
    ("training.warmup_ratio", "training.warmup_steps"),
)
"""A key that is set in a higher layer puts aside the other one of a lower layer."""

OVERRULES = {"training.max_steps": "training.num_train_epochs", "training.warmup_steps": "training.warmup_ratio"}
"""Within one layer the first makes the second ineffective; both together are reported."""


def merged(layers: Sequence[Layer], findings: Findings) -> Layer:
    """One setting per key from layers in rising precedence."""
    settings: Layer = {}
    for layer in layers:
        for higher, lower in REPLACES:
            if _is_set(layer, higher) and not _is_set(layer, lower) and _is_set(settings, lower):
                aside, by = settings.pop(lower), layer[higher]
                if not aside.given.origin.startswith("preset"):
                    by_words = higher if by.given.origin.startswith("--set") else by.given.origin
                    findings.notices.append(f"{by_words} replaces {lower} ({aside.given.origin})")
        for dotted, setting in layer.items():
            settings[dotted] = setting.joined_to(settings.get(dotted))
    for strong, weak in OVERRULES.items():
        if _is_set(settings, strong) and _is_set(settings, weak) and not _is_default(settings[weak]):
            findings.notices.append(
                f"{strong} ({settings[strong].given.shown}) overrules {weak} ({settings[weak].given.shown})"
            )
    return settings


def implied(settings: Layer, findings: Findings) -> dict[str, tuple[Any, str]]:
    """Values that follow from what is set: dotted key -> (value, origin)."""
    follows: dict[str, tuple[Any, str]] = {}
    if "training.early_stopping" not in settings:
        for dotted in ("training.early_stopping_patience", "training.early_stopping_threshold"):
            setting = settings.get(dotted)
            if setting is not None and not setting.given.origin.startswith("preset"):
                follows["training.early_stopping"] = (True, f"{setting.given.origin} ({dotted})")
                findings.notices.append(f"{dotted} ({setting.given.shown}) turns training.early_stopping on")
                break
    if "output.final" not in settings and not validates({key: setting.value for key, setting in settings.items()}):
        follows["output.final"] = ("latest", "default without validation rows")
    return follows


def validates(values: dict[str, Any]) -> bool:
    """Whether there are rows to validate on."""
    defaults = default_values()
    split = values.get("data.validation_split", defaults["data.validation_split"])
    return split != 0 or values.get("data.validation_file") is not None


def _is_set(layer: Layer, dotted: str) -> bool:
    return dotted in layer and layer[dotted].value is not None


def _is_default(setting: Setting) -> bool:
    return bool(default_values()[setting.dotted] == setting.value)
