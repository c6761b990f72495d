"""The entries of data.sources against each other and against the rest of the configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from halo_forge.config.schema import Config, SourceEntry
from halo_forge.config.yaml_text import shown_value

ENTRY_HINTS = {
    "weight": "share (rows in the mix), or loss_weight (the lambda of an objective)",
    "lambda": "loss_weight",
    "fraction": "share",
    "proportion": "share",
    "prob": "share",
    "probability": "share",
    "ratio": "share",
    "file": "path",
    "train_file": "path",
    "files": "path",
    "source": "path, or dataset",
    "id": "dataset",
    "hf_id": "dataset",
    "dataset_name": "dataset",
    "type": "format",
    "limit": "max_rows",
    "max_samples": "max_rows",
    "num_samples": "max_rows",
    "cap": "max_rows",
}
"""What other words for the keys of a source mean here."""

SourceProblem = tuple[tuple[str | int, ...], str, str | None]


def source_problems(config: Config) -> Iterator[SourceProblem]:
    """What no single key of a source is wrong about: (path inside data.sources, message, suggestion)."""
    sources = config.data.sources
    if sources is None:
        return
    if not sources:
        yield (), "data.sources is an empty list", "name at least one source"
    elif all(source.replay for source in sources):
        message = "every source is replay, so no row could be validated on or held out"
        yield (0, "replay"), message, "replay: true only for general data beside that of the task"
    seen: dict[str, int] = {}
    for number, source in enumerate(sources):
        name = f"source {number + 1} of data.sources"
        yield from _path_problems(source, number, config.output.dir)
        for what, key in _identities(source):
            earlier = seen.setdefault(key, number)
            if earlier != number:
                place: tuple[str | int, ...] = (number, what)
                shown = shown_value(getattr(source, what))
                yield place, f"{name}: {shown} is source {earlier + 1} already", "give each source once"


def idle_sources(config: Config) -> Iterator[tuple[str, str]]:
    """Keys about mixing and splitting that do nothing here, and why."""
    data = config.data
    shares = [source for source in data.sources or [] if source.share is not None]
    if len(shares) < 2:
        yield "data.mix_temperature", "fewer than two entries of data.sources have a share"
    if (data.validation_file or not data.validation_split) and (data.holdout_file or not data.holdout_split):
        for dotted in ("data.split_by", "data.stratify_by"):
            yield dotted, "no rows are split"


def _identities(source: SourceEntry) -> Iterator[tuple[str, str]]:
    if source.path is not None:
        yield "path", f"path {os.path.normpath(source.path)}"
    if source.dataset is not None:
        yield "dataset", f"dataset {source.dataset}"
    if source.name is not None:
        yield "name", f"name {source.name}"


def _path_problems(source: SourceEntry, number: int, output: str) -> Iterator[SourceProblem]:
    for key in ("path", "dataset", "name"):
        text = getattr(source, key)
        if text is None:
            continue
        name = f"source {number + 1} of data.sources: {key}"
        if not text.strip():
            yield (number, key), f"{name} is an empty text", None
        elif key == "path" and (reference := re.search(r"\$\{?[A-Za-z_]\w*\}?", text)):
            message = f"{name}: {reference.group()} is not replaced by the environment's value"
            yield (number, key), message, "write the path out"
        elif not text.isprintable():
            yield (number, key), f"{name} holds a character that does not belong there", None
    if source.path and os.path.normpath(os.path.dirname(source.path) or ".") == os.path.normpath(output):
        yield (number, "path"), "output.dir is the directory that these rows lie in", "give another output.dir"
