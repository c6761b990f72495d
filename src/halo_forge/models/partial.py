"""Training some of a model's own weights: names and numbers of modules become a choice of parameters."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence

from transformers import PreTrainedModel

from halo_forge.errors import UsageError
from halo_forge.models.bottleneck import decoder_layers
from halo_forge.runs import Notify, silent

_RANGE = re.compile(r"(\d+)-(\d+)")
_LAST = re.compile(r"last_(\d+)")


def train_only(model: PreTrainedModel, patterns: Sequence[str], notify: Notify = silent) -> None:
    """Freeze every weight that no pattern names.

    A pattern is matched against the parts of a weight's dotted name, from any part on: `layers.3` is layer 3, `norm`
    every module of that name, `layers.28-29` and `layers.last_2` several layers, `*` within a part anything. After
    `re:` stands a regular expression that the name begins with. Gradients are computed down to the lowest chosen
    weight and no further. Raises UsageError for a pattern that names nothing.
    """
    names: dict[str, str] = {}  # every name, tied ones too, -> the first name of that weight
    first_names = {parameter: name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = first_names[parameter]
    num_layers = len(decoder_layers(model)[1]) if any("last_" in pattern for pattern in patterns) else 0
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if _names(pattern, name, num_layers)]
        if not found:
            _refuse(pattern, list(names))
        for name in found:
            if names[name] != name:
                text = f"{name} is the same weight as {names[name]} (tied embeddings): both ends are trained"
                notify("note", {"text": text})
        chosen |= {names[name] for name in found}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def _names(pattern: str, name: str, num_layers: int) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(_is_part(want, part, num_layers) for want, part in zip(wanted, parts[start:], strict=False))
        for start in range(len(parts) - len(wanted) + 1)
    )


def _is_part(want: str, part: str, num_layers: int) -> bool:
    if part.isdigit():
        if found := _RANGE.fullmatch(want):
            return int(found[1]) <= int(part) <= int(found[2])
        if found := _LAST.fullmatch(want):
            return num_layers - int(found[1]) <= int(part) < num_layers
    return fnmatch.fnmatchcase(part, want)


def _refuse(pattern: str, names: Sequence[str]) -> None:
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    near = difflib.get_close_matches(pattern.rpartition(".")[2], parts, n=1)
    raise UsageError(
        f"no weight of this model is named by {pattern}",
        where="training.trainable",
        expected=f"layers.N, layers.N-M, layers.last_N, or some of: {', '.join(parts)}",
        fix=f"did you mean {near[0]}?" if near else None,
    )
