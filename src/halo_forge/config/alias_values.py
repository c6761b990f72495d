"""Readings that need more than a word-for-word table: schedules, shares, adapter targets."""

from __future__ import annotations

from typing import Any

from halo_forge.config.alias_rules import Misfit, NotOffered, Reading, Rule, is_empty

SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def validation_share(value: Any) -> Reading:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        raise NotOffered("a number of rows to validate on is not part of this release", "a share, for instance 0.05")
    return Reading({"data.validation_split": value})


def schedule(value: Any) -> Reading:
    """transformers' schedule names. Its cosine and linear end at zero, ours at training.min_lr_ratio of the peak."""
    name = str(value)
    if name not in SCHEDULES:
        raise NotOffered(f"the schedule {name!r} is not part of this release", "cosine, linear or constant")
    note = "the rate ends at training.min_lr_ratio of the peak" if name in ("cosine", "linear") else None
    return Reading({"training.lr_scheduler": SCHEDULES[name]}, note)


def own_schedule(value: Any) -> Reading:
    return Reading({"training.lr_scheduler": SCHEDULES.get(value, value) if isinstance(value, str) else value})


def schedule_options(value: Any) -> Reading:
    """`lr_scheduler_kwargs`: the floor as a share of the peak is training.min_lr_ratio."""
    if not isinstance(value, dict) or not value:
        raise Misfit("a mapping")
    for key in value:
        if key not in ("min_lr_rate", "min_lr_ratio"):
            raise NotOffered(
                f"the schedule option {key!r} is not part of this release", "training.min_lr_ratio", (key,)
            )
    return Reading({"training.min_lr_ratio": next(iter(value.values()))})


def warmup(value: Any) -> Reading:
    """transformers 5 reads a number below 1 as a share of all steps."""
    if isinstance(value, float) and 0 < value < 1:
        return Reading({"training.warmup_ratio": value})
    return Reading({"training.warmup_steps": value})


def max_steps(value: Any) -> Reading:
    """transformers writes -1 for "by epochs"."""
    return Reading({"training.max_steps": None if value == -1 and not isinstance(value, bool) else value})


def grad_norm(value: Any) -> Reading:
    """transformers writes 0 for "no clipping"."""
    off = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
    return Reading({"training.max_grad_norm": None if off else value})


def target_modules(value: Any) -> Reading:
    """`all`, a list, or names with commas between them."""
    if not isinstance(value, str):
        return Reading({"lora.target_modules": value})
    if value.strip() in ("all", "all-linear"):
        return Reading({"lora.target_modules": "all-linear"})
    return Reading({"lora.target_modules": [name.strip() for name in value.split(",") if name.strip()]})


def trackers(value: Any) -> Reading:
    """transformers' `report_to`: a name, a list, "none", or "all", which means what happens to be installed."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Misfit("names of trackers")
    if names == ["none"]:
        return Reading(note="nothing to do")
    if "all" in names:
        raise NotOffered("every tracker that happens to be installed is not part of this tool", ", ".join(TRACKERS))
    if others := [name for name in names if name not in TRACKERS]:
        raise NotOffered(f"the tracker {others[0]!r} is not part of this release", ", ".join(TRACKERS))
    return Reading({"output.trackers": list(dict.fromkeys(names))})


def trained_roles(value: Any) -> Reading:
    """Axolotl's `roles_to_train`: role names in any of the usual spellings."""
    roles = {"assistant": "assistant", "gpt": "assistant", "model": "assistant", "user": "user", "human": "user"}
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Misfit("a list of roles")
    if "tool" in value:
        raise NotOffered("results of tools are never trained", "assistant, user or system")
    if unknown := [name for name in value if name not in {*roles, "system"}]:
        raise Misfit(f"assistant, user or system, not {unknown[0]!r}")
    trained = list(dict.fromkeys(roles.get(name, name) for name in value))
    return Reading({"data.train_on": "assistant" if trained == ["assistant"] else trained})


def stage(value: Any) -> Reading:
    """LLaMA-Factory's `stage`: sft is what this tool does, pt is plain text."""
    if value == "sft":
        return Reading(note="supervised fine-tuning is what this tool does")
    if value == "pt":
        return Reading({"data.format": "text"})
    raise NotOffered(f"the stage {value!r} is not part of this tool", "sft, or pt for plain text")


def switched_epochs(key: str) -> Rule:
    """`steps` is how it is here; `epoch` is not offered."""

    def read(value: Any) -> Reading:
        if value == "steps":
            return Reading(note=f"{key} says how often")
        raise NotOffered(f"{value!r} is not part of this release: {key} says how often", f"steps, and {key}")

    return Rule(read)


def evaluation_strategy(value: Any) -> Reading:
    if value == "no" or value is False:
        return Reading({"data.validation_split": 0.0})
    return switched_epochs("training.eval_steps").read(value)


_EXTRA_TOKENS = ("pad_token", "additional_special_tokens")


def special_tokens(value: Any) -> Reading:
    """A pad token changes nothing where nothing is padded; every other special token is the model's own."""
    if isinstance(value, dict):
        others = [key for key, token in value.items() if key not in _EXTRA_TOKENS and not is_empty(token)]
        extra = value.get("additional_special_tokens")
        if not others and not is_empty(extra):
            return Reading({"model.add_special_tokens": extra})
        if not others:
            return Reading(note="batches have no padding here, so no pad token is needed")
        raise NotOffered(f"setting {others[0]} is not part of this release", "the model's own tokens", (others[0],))
    raise Misfit("a mapping of token names")


def checkpointing_options(value: Any) -> Reading:
    if isinstance(value, dict) and set(value) <= {"use_reentrant"} and value.get("use_reentrant") in (False, None):
        return Reading(note="recomputation is not reentrant here")
    raise NotOffered("these options of gradient checkpointing are not part of this release", "use_reentrant: false")


def resume(value: Any) -> Reading:
    if value is True:
        return Reading(note="the same command resumes by itself")
    if value is False:
        return Reading(note="only an unfinished run of the same configuration is resumed")
    raise NotOffered("a checkpoint to resume from is not part of the configuration", f"--resume {value}")
