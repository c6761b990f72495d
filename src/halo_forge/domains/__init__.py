"""What differs between domains, as data. `halo-forge DOMAIN sft` is `sft train` with that domain's defaults.

No torch here: the command line reads this table to build itself. A model that sees or hears is opened by the domain
that names its type; which that is, its config.json says, so no setting can contradict it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from halo_forge.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One kind of data to train on.

    title        as tables show it
    reads        what its models read
    defaults     dotted config key -> value, in place of the schema's default; a config file or a flag overrules it
    datasets     short names of data sets (`halo-forge sft datasets`) that belong here
    note         one sentence for `halo-forge domains` and the command's help
    model_types  `model_type` of the models that it opens, as config.json has it; none for a domain of text
    opens        "module:function" of (config, tokenizer, model directory) -> Media (domains/media.py)
    """

    name: str
    title: str
    reads: Literal["text", "image", "audio"] = "text"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    note: str = ""
    model_types: tuple[str, ...] = ()
    opens: str = ""


def _defaults(model: str, dataset: str, output: str, num_epochs: int) -> Mapping[str, Any]:
    return {
        "model.name": model,
        "data.dataset": dataset,
        "output.dir": output,
        "training.num_train_epochs": num_epochs,
    }


_ALL = (
    Domain(
        name="text",
        title="Code",
        datasets=("codealpaca", "code_instructions_122k", "python_instructions"),
    ),
    Domain(
        name="reasoning",
        title="Reasoning",
        defaults={
            **_defaults("Qwen/Qwen2.5-3B-Instruct", "metamath", "models/reasoning_sft", 2),
            "data.final_answer": "hashes",
            "evaluation.max_new_tokens": 512,
        },
        datasets=("metamath", "gsm8k_sft"),
        note="Worked solutions in one answer convention, #### and the final answer: prompt, target and scorer agree.",
    ),
    Domain(
        name="agentic",
        title="Agentic",
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
        reads="image",
        defaults=_defaults("Qwen/Qwen2-VL-2B-Instruct", "llava", "models/vlm_sft", 2),
        datasets=("llava",),
        note="Questions and answers about images: the answers are trained, image tokens never are.",
        model_types=("idefics3", "smolvlm", "llava", "qwen2_vl", "gemma3"),
        opens="halo_forge.domains.vlm:open_vision",
    ),
    Domain(
        name="audio",
        title="Audio",
        reads="audio",
        defaults={
            **_defaults("openai/whisper-small", "librispeech_sft", "models/audio_sft", 3),
            "audio.language": "en",
        },
        datasets=("librispeech_sft", "common_voice_sft"),
        note="Speech to text, and chats about sounds: the transcript or the answer is trained.",
        model_types=("whisper", "qwen2_audio"),
        opens="halo_forge.domains.audio:open_speech",
    ),
)
ENTRY_POINTS = "halo_forge.domains"


def domain_names() -> list[str]:
    """Ours and those of installed packages, none of which is loaded: a broken one must not stand in the way of help."""
    names = [*(domain.name for domain in _ALL), *(entry.name for entry in entry_points(group=ENTRY_POINTS))]
    return list(dict.fromkeys(names))


@cache
def all_domains() -> Mapping[str, Domain]:
    """Ours, and those of installed packages: each entry point of the group `halo_forge.domains` is a Domain.

    Raises UsageError for one that cannot be loaded, is no Domain, is not called what its entry point is, or takes a
    name or a model type that is taken."""
    found = {domain.name: domain for domain in _ALL}
    for entry in entry_points(group=ENTRY_POINTS):
        where = f"entry point {entry.name} = {entry.value}"
        try:
            domain = entry.load()
        except Exception as error:  # a stranger's module may raise anything
            raise UsageError(f"a domain cannot be loaded: {type(error).__name__}: {error}", where=where) from error
        if not isinstance(domain, Domain):
            raise UsageError(f"this is no Domain but {type(domain).__name__}", where=where)
        if domain.name != entry.name:
            raise UsageError(f"the domain `{domain.name}` stands under the name `{entry.name}`", where=where)
        known_types = {model_type for other in found.values() for model_type in other.model_types}
        taken = {domain.name} & set(found) or set(domain.model_types) & known_types
        if taken:
            raise UsageError(f"another domain has this already: {', '.join(sorted(taken))}", where=where)
        found[domain.name] = domain
    return found


def domain_that_reads(model_type: str) -> Domain | None:
    """The domain that opens models of a type; None for a type that none names, which is a model of text."""
    return next((domain for domain in all_domains().values() if model_type in domain.model_types), None)


def get_domain(name: str) -> Domain:
    """The domain called `name`; raises UsageError with the names there are."""
    domains = all_domains()
    if name in domains:
        return domains[name]
    near = difflib.get_close_matches(name, domains, n=1)
    raise UsageError(
        f"there is no domain `{name}`",
        expected=", ".join(domains),
        fix=f"did you mean {near[0]}?" if near else None,
    )
