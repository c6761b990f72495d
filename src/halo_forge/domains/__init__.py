"""What differs between domains, as data. `halo-forge DOMAIN sft` is `sft train` with that domain's defaults.

No torch here: the command line reads this table to build itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halo_forge.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One kind of data to train on.

    title      as tables show it
    available  False: the command exists, says `note`, and exits with 2
    defaults   dotted config key -> value, in place of the schema's default; a config file or a flag overrules it
    datasets   short names of data sets (`halo-forge sft datasets`) that belong here
    note       one sentence the command prints, or None
    """

    name: str
    title: str
    available: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    note: str | None = None


def _defaults(model: str, dataset: str, output: str, num_epochs: int) -> Mapping[str, Any]:
    return {
        "model.name": model,
        "data.dataset": dataset,
        "output.dir": output,
        "training.num_train_epochs": num_epochs,
    }


def _later(what: str) -> str:
    return (
        f"Fine-tuning on {what} comes with a later release; this one trains text only, and will not pretend by "
        f"dropping the {what} and training the words."
    )


_ALL = (
    Domain(
        name="text",
        title="Code",
        available=True,
        datasets=("codealpaca", "code_instructions_122k", "python_instructions"),
    ),
    Domain(
        name="reasoning",
        title="Reasoning",
        available=True,
        defaults=_defaults("Qwen/Qwen2.5-3B-Instruct", "metamath", "models/reasoning_sft", 2),
        datasets=("metamath", "gsm8k_sft"),
        note="Reasoning rows are trained as text: the answer with its steps, as the data set writes them.",
    ),
    Domain(
        name="agentic",
        title="Agentic",
        available=True,
        defaults={
            **_defaults("Qwen/Qwen2.5-7B-Instruct", "xlam_sft", "models/agentic_sft", 2),
            "model.tool_format": "auto",
        },
        datasets=("xlam_sft", "glaive_sft"),
        note="Calls are trained as the model's own template writes them, and held against their tools' schemas before.",
    ),
    Domain(
        name="vlm",
        title="VLM",
        available=False,
        defaults=_defaults("Qwen/Qwen2-VL-2B-Instruct", "llava", "models/vlm_sft", 2),
        datasets=("llava",),
        note=_later("images"),
    ),
    Domain(
        name="audio",
        title="Audio",
        available=False,
        defaults=_defaults("openai/whisper-small", "librispeech_sft", "models/audio_sft", 3),
        datasets=("librispeech_sft", "common_voice_sft"),
        note=_later("audio"),
    ),
)
DOMAINS: Mapping[str, Domain] = {domain.name: domain for domain in _ALL}


def get_domain(name: str) -> Domain:
    """The domain called `name`; raises UsageError with the names there are."""
    if name in DOMAINS:
        return DOMAINS[name]
    near = difflib.get_close_matches(name, DOMAINS, n=1)
    raise UsageError(
        f"there is no domain `{name}`",
        expected=", ".join(DOMAINS),
        fix=f"did you mean {near[0]}?" if near else None,
    )
