"""How other tools name data sets, one or many: what they say as data.train_file, data.dataset or data.sources.

    Axolotl, TRL             datasets: [{path, type, fraction, ...}]
    LLaMA-Factory            dataset: a,b     mix_strategy: interleave_under     interleave_probs: 0.7,0.3
    ms-swift                 dataset: [a#500, b]     interleave_prob: [0.7, 0.3]
    open-instruct            dataset_mixer_list: [a, 1.0, b, 5000]     dataset_mixer: {a: 1.0}
    alignment-handbook       dataset_mixture: {datasets: [{id, weight}], test_split_size}
    torchtune                dataset: [{_component_, source, data_files}]

One data set, or files of one format, stay data.dataset or data.train_file; everything else becomes data.sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

from halo_forge.config.alias_rules import Misfit, NotOffered, Path, Reading, is_empty
from halo_forge.config.alias_values import validation_share
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

TORCHTUNE_FORMATS = {
    "alpaca_dataset": "instruction",
    "alpaca_cleaned_dataset": "instruction",
    "instruct_dataset": None,
    "chat_dataset": None,
    "text_completion_dataset": "text",
}
TORCHTUNE_STYLES = {"openai": "messages", "sharegpt": "sharegpt"}

MIXING = ("interleave_probs", "interleave_prob", "mix_strategy")
"""Keys beside a list of data sets that give them shares."""

_LOCAL_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz", ".zst", ".arrow")
_LOADERS = ("json", "csv", "parquet", "text")
_ITEM_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "split": ("train",),
    "ds_type": _LOADERS,
    "field_messages": ("messages", "conversations"),
    "chat_template": ("tokenizer_default",),
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn",),
    "field": ("text",),
}
"""Keys of a data set entry that may be given with the values that hold here anyway."""
_ITEM_KEYS = ("path", "type", "data_files", "fraction")
_TORCHTUNE_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "split": ("train",),
    "packed": (True, False),  # training.packing regroups documents without changing the gradient
    "train_on_input": (False,),
    "column": ("text",),
    "conversation_column": ("messages", "conversations"),
}
_TORCHTUNE_KEYS = ("_component_", "source", "data_files", "conversation_style")

Source = dict[str, Any]
"""An entry of data.sources."""


def dataset_or_file(value: Any) -> Reading:
    """A data set's name or the path of a file; several of them; or torchtune's data set components."""
    items = [value] if isinstance(value, str | dict) else value
    if not isinstance(items, list) or not items:
        raise Misfit("the name of a data set or the path of a file")
    sources: list[Source] = []
    for number, item in enumerate(items):
        at: Path = (number,) if isinstance(value, list) else ()
        if isinstance(item, str):
            names = item.split(",") if isinstance(value, str) else [item]
            sources += [_named_source(name.strip(), at) for name in names]
        elif isinstance(item, dict):
            sources.append(_torchtune_source(item, at))
        else:
            raise Misfit("the name of a data set or the path of a file", at)
    return _reading(sources)


def axolotl_datasets(value: Any) -> Reading:
    """`datasets: [{path, type}]`; TRL's `fraction` is a share of the mix in which no row is taken twice, as here."""
    if not isinstance(value, list) or not value:
        raise Misfit("a list of data sets, each with path and type")
    return _reading([source for number, item in enumerate(value) for source in _axolotl_sources(item, number)])


def axolotl_test_datasets(value: Any) -> Reading:
    """`test_datasets` with one local file is data.validation_file."""
    meant = axolotl_datasets(value).values
    path = meant.get("data.train_file")
    if not isinstance(path, str):
        raise NotOffered("test_datasets other than one local file is not part of this release", "data.validation_file")
    return Reading({"data.validation_file": path})


def dataset_mixer(value: Any) -> Reading:
    """`{name: fraction}` or `[name, fraction or number of rows, ...]`."""
    if isinstance(value, dict) and value:
        pairs: list[tuple[Any, Any, Path]] = [(name, amount, (name,)) for name, amount in value.items()]
    elif isinstance(value, list) and value and len(value) % 2 == 0:
        pairs = [(value[at], value[at + 1], (at + 1,)) for at in range(0, len(value), 2)]
    else:
        raise Misfit("data sets, each with a fraction or a number of its rows")
    sources = []
    for name, amount, at in pairs:
        if not isinstance(name, str) or not name:
            raise Misfit("names of data sets, each with a fraction or a number of its rows", at)
        sources.append(_place(name) | _amount(amount, at))
    return _reading(sources)


def dataset_mixture(value: Any) -> Reading:
    """alignment-handbook's `{datasets: [{id, config, split, columns, weight}], seed, test_split_size}`, where a weight
    is the fraction of the data set's own rows."""
    if not isinstance(value, dict) or not isinstance(value.get("datasets"), list) or not value["datasets"]:
        raise Misfit("a mapping with a list of datasets")
    sources = []
    for number, item in enumerate(value["datasets"]):
        at: Path = ("datasets", number)
        name = item.get("id", item.get("path")) if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            raise Misfit("datasets with an id each", at)
        for key, setting in item.items():
            if key in ("id", "path", "weight") or is_empty(setting) or (key, setting) == ("split", "train"):
                continue
            raise NotOffered(f"{key} of a data set is not part of this release", "id and weight", (*at, key))
        sources.append(_place(name) | _amount(item.get("weight", 1.0), (*at, "weight")))
    values = dict(_reading(sources).values)
    for key, setting in value.items():
        if key == "test_split_size" and not is_empty(setting):
            values |= validation_share(setting).values
        elif key not in ("datasets", "seed", "test_split_size") and not is_empty(setting):
            raise NotOffered(f"{key} of a mixture is not part of this release", "remove it", (key,))
    return Reading(values, "rows are chosen by content, so the mixture's seed has no part in it")


def mix_strategy(value: Any) -> Reading:
    if value == "concat":
        return Reading(note="every source is taken whole")
    if value in ("interleave_under", "first_exhausted"):
        return Reading(note="the source that runs out first limits the mix")
    raise NotOffered(
        f"{shown_value(value)} repeats rows, which is not part of this release", "interleave_under, or loss_weight"
    )


def interleave_probs(value: Any) -> Reading:
    if shares_of("interleave_probs", value):
        return Reading(note="the shares of data.sources")
    raise Misfit("a number above 0 for each data set")


def shares_of(key: str, value: Any) -> list[float] | None:
    """The weights that a key of MIXING holds: an empty list for equal ones, None for none."""
    if key == "mix_strategy":
        return [] if value == "interleave_under" else None
    items: Sequence[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    shares = []
    for item in items:
        try:
            shares.append(float("nan") if isinstance(item, bool | None) else float(item))
        except (TypeError, ValueError):
            return None
    return shares if shares and all(0 < share < math.inf for share in shares) else None


def row_type(value: Any) -> Reading:
    """The `type` of a data set, by their names or ours."""
    if isinstance(value, str) and value in (*FORMATS, *OUR_FORMATS):
        return Reading({"data.format": FORMATS.get(value, value)})
    raise NotOffered(f"the data set type {shown_value(value)} is not part of this release", " | ".join(FORMATS))


def own_format(value: Any) -> Reading:
    return Reading({"data.format": FORMATS.get(value, value) if isinstance(value, str) else value})


def own_sources(value: Any) -> Reading:
    """Our data.sources, whose formats may have their names too."""
    if not isinstance(value, list):
        return Reading({"data.sources": value})
    entries = [
        entry | {"format": FORMATS.get(entry["format"], entry["format"])}
        if isinstance(entry, dict) and isinstance(entry.get("format"), str)
        else entry
        for entry in value
    ]
    return Reading({"data.sources": entries})


# ------------------------------------------------------------------------------------------------ one source


def _reading(sources: list[Source]) -> Reading:
    """The simplest of our keys that say the same: files of one format, one data set, else data.sources."""
    files = [source["path"] for source in sources if "path" in source]
    names = [source["dataset"] for source in sources if "dataset" in source]
    formats = list(dict.fromkeys(source["format"] for source in sources if "format" in source))
    plain = all(source.keys() <= {"path", "dataset", "format"} for source in sources)
    if not plain or len(formats) > 1 or len(names) + bool(files) > 1:
        return Reading({"data.sources": sources})
    values: dict[str, Any] = {}
    if files:
        values["data.train_file"] = files[0] if len(files) == 1 else files
    if names:
        values["data.dataset"] = names[0]
    if formats:
        values["data.format"] = formats[0]
    return Reading(values)


def _is_local(name: str) -> bool:
    return name.lower().endswith(_LOCAL_SUFFIXES) or name.startswith(("./", "../", "/", "~"))


def _place(name: str) -> Source:
    return {"path": name} if _is_local(name) else {"dataset": name}


def _named_source(name: str, at: Path) -> Source:
    """ms-swift writes `name#500` for five hundred of its rows."""
    bare, sign, number = name.partition("#")
    if not bare or (sign and not (number.isascii() and number.isdigit() and int(number))):
        raise Misfit("the name of a data set or the path of a file", at)
    return _place(bare) | ({"max_rows": int(number)} if sign else {})


def _amount(value: Any, at: Path) -> Source:
    """A fraction of a data set's rows (only 1 is offered) or a number of them."""
    if isinstance(value, bool | str | None) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise Misfit("a fraction or a number of rows above 0", at)
    if value == 1:
        return {}
    if isinstance(value, int):
        return {"max_rows": value}
    raise NotOffered(
        f"the fraction {value:g} of a data set's rows is not part of this release",
        "a number of rows (max_rows of an entry of data.sources), or a share of the mix",
        at,
    )


def _axolotl_sources(item: Any, number: int) -> list[Source]:
    if not isinstance(item, dict):
        raise Misfit("a mapping with path and type", (number,))
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise Misfit("a mapping with a path", (number, "path") if "path" in item else (number,))
    _check_item(item, _ITEM_KEYS, _ITEM_DEFAULTS, "path and type", (number,))
    source: Source = {}
    row_format = _row_format(item, number)
    if row_format is not None:
        source["format"] = row_format
    fraction = item.get("fraction")
    if fraction is not None:
        if isinstance(fraction, bool | str) or not isinstance(fraction, int | float) or not 0 < fraction < math.inf:
            raise Misfit("data sets whose fraction is a number above 0", (number, "fraction"))
        source["share"] = fraction
    data_files = item.get("data_files")
    if is_empty(data_files):
        return [_place(path) | source]
    names = [str(name) for name in (data_files if isinstance(data_files, list) else [data_files])]
    if not all(_is_local(name) for name in names):
        raise NotOffered("data_files inside a Hub data set is not part of this release", "path", (number, "data_files"))
    if fraction is not None and len(names) > 1:
        raise NotOffered("one fraction for several files is not part of this release", "a fraction for each file",
                         (number, "fraction"))  # fmt: skip
    return [{"path": name} | source for name in names]


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


def _torchtune_source(item: dict[str, Any], at: Path) -> Source:
    component = item.get("_component_")
    kind = component.rpartition(".")[2] if isinstance(component, str) else None
    if kind not in TORCHTUNE_FORMATS:
        raise NotOffered(
            f"the data set component {shown_value(component)} is not part of this release",
            " | ".join(TORCHTUNE_FORMATS),
            (*at, "_component_") if "_component_" in item else at,
        )
    _check_item(item, _TORCHTUNE_KEYS, _TORCHTUNE_DEFAULTS, "source and data_files", at)
    name, files = item.get("source"), item.get("data_files")
    if name in _LOADERS and isinstance(files, str):
        source: Source = {"path": files}
    elif isinstance(name, str) and name and is_empty(files):
        source = _place(name)
    elif name is None and kind.startswith("alpaca"):
        source = {"dataset": "tatsu-lab/alpaca" if kind == "alpaca_dataset" else "yahma/alpaca-cleaned"}
    else:
        raise Misfit("a data set with a source (and data_files for local ones)", at)
    style = item.get("conversation_style")
    row_format = TORCHTUNE_FORMATS[kind] or (TORCHTUNE_STYLES.get(style) if isinstance(style, str) else None)
    return source | ({"format": row_format} if row_format else {})


def _check_item(
    item: dict[str, Any], read: Sequence[str], defaults: dict[str, tuple[Any, ...]], instead: str, at: Path
) -> None:
    for key, value in item.items():
        where: Path = (*at, key)
        if key in read or is_empty(value):
            continue
        if key not in defaults:
            raise NotOffered(f"{key} of a data set is not part of this release", instead, where)
        if value not in defaults[key]:
            allowed = " or ".join(str(word) for word in defaults[key])
            raise NotOffered(f"{key}: {value} of a data set is not part of this release", f"{key}: {allowed}", where)
