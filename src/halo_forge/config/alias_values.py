"""Readings that need more than a word-for-word table: data sets, schedules, shares, adapter targets."""

from __future__ import annotations

from typing import Any, get_args

from halo_forge.config.alias_rules import Misfit, NotOffered, Path, Reading, Rule, is_empty
from halo_forge.config.schema import RowFormat
from halo_forge.config.yaml_text import shown_value

FORMATS = {
    "chat_template": "messages",
    "openai": "messages",
    "chatml": "messages",
    "alpaca": "instruction",
    "sharegpt": "sharegpt",
    "completion": "text",
}
"""Row formats by Axolotl's and LLaMA-Factory's names."""

OUR_FORMATS = get_args(RowFormat)

SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}

_LOCAL_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz", ".zst", ".arrow")
_ITEM_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "split": ("train",),
    "ds_type": ("json", "csv", "parquet", "text"),
    "field_messages": ("messages", "conversations"),
    "chat_template": ("tokenizer_default",),
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn",),
    "field": ("text",),
}
"""Keys of an Axolotl data set entry that may be given with the values that hold here anyway."""


def dataset_or_file(value: Any) -> Reading:
    """A data set's name or the path of a file."""
    if not isinstance(value, str):
        raise Misfit("the name of a data set or the path of a file")
    if "," in value:
        raise NotOffered("several data sets at once are not part of this release", "join the files, or train on one")
    return Reading({"data.train_file" if _is_local(value) else "data.dataset": value})


def row_type(value: Any) -> Reading:
    """The `type` of a data set, by their names or ours."""
    if isinstance(value, str) and value in (*FORMATS, *OUR_FORMATS):
        return Reading({"data.format": FORMATS.get(value, value)})
    raise NotOffered(f"the data set type {shown_value(value)} is not part of this release", " | ".join(FORMATS))


def own_format(value: Any) -> Reading:
    return Reading({"data.format": FORMATS.get(value, value) if isinstance(value, str) else value})


def axolotl_datasets(value: Any) -> Reading:
    """`datasets: [{path, type}]`: files become data.train_file, a Hub id data.dataset, the type data.format."""
    if not isinstance(value, list) or not value:
        raise Misfit("a list of data sets, each with path and type")
    files: list[str] = []
    hub_ids: list[str] = []
    formats: dict[str, int] = {}
    for number, item in enumerate(value):
        path, row_format = _axolotl_item(item, number)
        for name in path:
            (files if _is_local(name) else hub_ids).append(name)
        if row_format is not None:
            formats.setdefault(row_format, number)
    if len(formats) > 1:
        names = " and ".join(formats)
        instead = "convert the files to one format, or leave `type` away: every file's format is detected"
        raise NotOffered(f"{names} in one run need data.format: auto", instead, (list(formats.values())[1],))
    if len(hub_ids) + bool(files) > 1:
        raise NotOffered("more than one data set besides local files is not part of this release", "name one data set")
    values: dict[str, Any] = {}
    if files:
        values["data.train_file"] = files[0] if len(files) == 1 else files
    if hub_ids:
        values["data.dataset"] = hub_ids[0]
    if formats:
        values["data.format"] = next(iter(formats))
    return Reading(values)


def axolotl_test_datasets(value: Any) -> Reading:
    """`test_datasets` with one local file is data.validation_file."""
    meant = axolotl_datasets(value).values
    path = meant.get("data.train_file")
    if not isinstance(path, str):
        raise NotOffered("test_datasets other than one local file is not part of this release", "data.validation_file")
    return Reading({"data.validation_file": path})


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


def special_tokens(value: Any) -> Reading:
    """A pad token changes nothing where nothing is padded; every other special token is the model's own."""
    if isinstance(value, dict):
        others = [key for key, token in value.items() if key != "pad_token" and not is_empty(token)]
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


def _is_local(name: str) -> bool:
    return name.lower().endswith(_LOCAL_SUFFIXES) or name.startswith(("./", "../", "/", "~"))


def _axolotl_item(item: Any, number: int) -> tuple[list[str], str | None]:
    if not isinstance(item, dict):
        raise Misfit("a mapping with path and type", (number,))
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise Misfit("a mapping with a path", (number, "path") if "path" in item else (number,))
    for key, value in item.items():
        where: Path = (number, key)
        if key in ("path", "type", "data_files") or is_empty(value):
            continue
        if key not in _ITEM_DEFAULTS:
            raise NotOffered(f"{key} of a data set is not part of this release", "path and type", where)
        if value not in _ITEM_DEFAULTS[key]:
            allowed = " or ".join(str(word) for word in _ITEM_DEFAULTS[key])
            raise NotOffered(f"{key}: {value} of a data set is not part of this release", f"{key}: {allowed}", where)
    row_format = _row_format(item, number)
    data_files = item.get("data_files")
    if is_empty(data_files):
        return [path], row_format
    names = [str(name) for name in (data_files if isinstance(data_files, list) else [data_files])]
    if not all(_is_local(name) for name in names):
        raise NotOffered("data_files inside a Hub data set is not part of this release", "path", (number, "data_files"))
    return names, row_format


def _row_format(item: dict[str, Any], number: int) -> str | None:
    kind = item.get("type")
    if is_empty(kind):
        return None
    if kind == "chat_template" and item.get("field_messages") == "conversations":
        return "sharegpt"
    try:
        return str(row_type(kind).values["data.format"])
    except NotOffered as refusal:
        raise NotOffered(refusal.why, refusal.instead, (number, "type")) from None
