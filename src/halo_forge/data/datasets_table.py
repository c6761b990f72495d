"""The data sets with a short name, and rows from the Hub.

`halo-forge sft datasets` prints the table; `--dataset NAME` takes a short name, a Hub id (`org/name`, with
`org/name:config` where it has several configurations) or a local folder laid out like a Hub data set.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halo_forge.data.rows import Row, checked_row
from halo_forge.data.tool_rows import glaive_row, xlam_row
from halo_forge.errors import DataError, RowError

Domain = Literal["Code", "Reasoning", "VLM", "Audio", "Agentic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One line of the table. `format` is what its rows are read as; `source` is where the Hub keeps them today when
    `hub_id` (the name people know) has moved; `config` is the Hub's configuration name."""

    name: str
    hub_id: str
    domain: Domain
    size: str
    format: str
    source: str | None = None
    config: str | None = None
    note: str = ""
    documented: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "hub_id": self.hub_id, "domain": self.domain, "size": self.size, "format": self.format,
            "supported": self.domain not in LATER_DOMAINS, "note": self.note,
        }  # fmt: skip


LATER_DOMAINS: frozenset[str] = frozenset({"VLM", "Audio"})
ADAPTERS = {"xlam": xlam_row, "glaive": glaive_row}
DATASETS: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="codealpaca", hub_id="sahil2801/CodeAlpaca-20k", domain="Code", size="20K", format="instruction"
    ),
    DatasetEntry(
        name="code_instructions_122k", hub_id="TokenBender/code_instructions_122k", domain="Code", size="122K",
        format="instruction", source="TokenBender/code_instructions_122k_alpaca_style",
        note="kept on the Hub as code_instructions_122k_alpaca_style",
    ),
    DatasetEntry(
        name="python_instructions", hub_id="iamtarun/python_code_instructions_18k_alpaca", domain="Code", size="18K",
        format="instruction", documented=False,
    ),
    DatasetEntry(
        name="metamath", hub_id="meta-math/MetaMathQA", domain="Reasoning", size="395K", format="query_response"
    ),
    DatasetEntry(
        name="gsm8k_sft", hub_id="gsm8k", domain="Reasoning", size="8.5K", format="question_answer",
        source="openai/gsm8k", config="main", note="kept on the Hub as openai/gsm8k",
    ),
    DatasetEntry(
        name="llava", hub_id="liuhaotian/LLaVA-Instruct-150K", domain="VLM", size="150K", format="images",
        note="images come with a later release",
    ),
    DatasetEntry(
        name="librispeech_sft", hub_id="librispeech_asr", domain="Audio", size="100h", format="speech",
        source="openslr/librispeech_asr", config="clean", note="audio comes with a later release",
    ),
    DatasetEntry(
        name="common_voice_sft", hub_id="mozilla-foundation/common_voice_17_0", domain="Audio", size="en",
        format="speech", config="en", note="audio comes with a later release", documented=False,
    ),
    DatasetEntry(
        name="xlam_sft", hub_id="Salesforce/xlam-function-calling-60k", domain="Agentic", size="60K", format="xlam",
        config="dataset", note="gated: accept its terms on the Hub, then `hf auth login`",
    ),
    DatasetEntry(
        name="glaive_sft", hub_id="glaiveai/glaive-function-calling-v2", domain="Agentic", size="113K", format="glaive"
    ),
)  # fmt: skip
BY_NAME: Mapping[str, DatasetEntry] = {entry.name: entry for entry in DATASETS}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """Where to load from. `label` stands for the file name in ledgers and reports."""

    source: str
    config: str | None
    format: str | None
    label: str


def find_dataset(name: str) -> HubDataset:
    """What a short name or Hub id means. Raises DataError for image and audio sets and for names that are neither."""
    from halo_forge.models.hub import is_hub_id

    entry = BY_NAME.get(name) or next((entry for entry in DATASETS if entry.hub_id == name), None)
    if entry is None:
        source, _, config = name.partition(":")
        if not Path(source).is_dir() and (not is_hub_id(source) or "/" not in source):
            close = difflib.get_close_matches(name, BY_NAME, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise DataError(
                f"no data set is called {name!r}",
                expected="a short name, or a Hub id such as openai/gsm8k",
                fix=f"{hint}`halo-forge sft datasets` lists them",
            )
        return HubDataset(source=source, config=config or None, format=None, label=f"dataset:{name}")
    if entry.domain in LATER_DOMAINS:
        raise DataError(
            f"{entry.name} holds {entry.format}; this release trains on text only",
            where=entry.hub_id,
            expected="a text data set",
            fix="halo-forge sft datasets",
        )
    source = entry.source or entry.hub_id
    return HubDataset(source=source, config=entry.config, format=entry.format, label=f"dataset:{entry.name}")


def dataset_rows(dataset: HubDataset, max_rows: int | None) -> Iterator[Row]:
    """Rows of the train split, numbered from 1. Offline and not in the cache: a DataError in under a second that
    names the command which downloads it."""
    directory = _local_directory(dataset)
    if directory is None:
        _require_network(dataset)
    adapt = ADAPTERS.get(dataset.format or "")
    for number, value in enumerate(_loaded(dataset, directory, max_rows), start=1):
        if adapt is None:
            yield checked_row(dataset.label, number, value)
            continue
        try:
            yield checked_row(dataset.label, number, adapt(value))
        except RowError as problem:
            yield Row(path=dataset.label, line=number, problem=problem, raw=str(value)[:400])


def _local_directory(dataset: HubDataset) -> Path | None:
    """A folder of that name, or the snapshot in the Hub cache when it holds data files."""
    if Path(dataset.source).is_dir():
        return Path(dataset.source)
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.source.replace('/', '--')}"
    try:
        snapshot = home / "snapshots" / (home / "refs" / "main").read_text().strip()
    except OSError:
        return None
    suffixes = (".parquet", ".json", ".jsonl", ".csv", ".zst", ".gz")
    return snapshot if any(path.name.endswith(suffixes) for path in snapshot.rglob("*")) else None


def _prepared_before(dataset: HubDataset) -> bool:
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(cache.glob(f"{dataset.source.replace('/', '___').lower()}*")) or any(
        cache.glob(f"{dataset.source.replace('/', '___')}*")
    )


def _require_network(dataset: HubDataset) -> None:
    from halo_forge.models.hub import is_offline, unreachable_reason

    if _prepared_before(dataset):
        return
    switched_off = is_offline() or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    reason = "the Hub is switched off (HF_HUB_OFFLINE=1)" if switched_off else unreachable_reason()
    if reason:
        raise DataError(
            f"the data set {dataset.source} is not on this machine, and {reason}",
            where=dataset.label,
            fix=f"with a network: hf download --repo-type dataset {dataset.source}",
        )


def _loaded(dataset: HubDataset, directory: Path | None, max_rows: int | None) -> Iterable[dict[str, Any]]:
    import datasets  # type: ignore[import-untyped]

    split = f"train[:{max_rows}]" if max_rows else "train"
    try:
        with _without_progress_bars():
            loaded: Iterable[dict[str, Any]] = datasets.load_dataset(
                str(directory) if directory else dataset.source, dataset.config, split=split
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the data set cannot be loaded: {str(error).splitlines()[0][:300]}",
            where=dataset.label,
            expected="a text data set with a train split; org/name:config picks one of several configurations",
            fix=f"https://huggingface.co/datasets/{dataset.source} shows what it holds, and its terms if it is gated",
        ) from None
    return loaded


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """datasets draws on stderr, which belongs to the command line."""
    import datasets

    drawn = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()
