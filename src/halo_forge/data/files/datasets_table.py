"""The data sets with a short name, and what a name stands for.

`halo-forge sft datasets` prints the table; `--dataset NAME` takes a short name, a Hub id (`org/name`, with
`org/name:config` where it has several configurations) or a local folder laid out like a Hub data set.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halo_forge.data.files.hub_rows import HubDataset, dataset_batches, dataset_rows
from halo_forge.errors import DataError

__all__ = ["BY_NAME", "DATASETS", "DatasetEntry", "HubDataset", "dataset_batches", "dataset_rows", "find_dataset"]

Domain = Literal["Code", "Reasoning", "VLM", "Audio", "Agentic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One line of the table. `format` is what its rows are read as; `source` is where the Hub keeps them today when
    `hub_id` (the name people know) has moved; `config` is the Hub's configuration name, `split` the
    rows that are trained on."""

    name: str
    hub_id: str
    domain: Domain
    size: str
    format: str
    source: str | None = None
    config: str | None = None
    split: str = "train"
    note: str = ""
    documented: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "hub_id": self.hub_id, "domain": self.domain, "size": self.size, "format": self.format,
            "note": self.note,
        }  # fmt: skip


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
        name="llava", hub_id="liuhaotian/LLaVA-Instruct-150K", domain="VLM", size="150K", format="sharegpt",
        note="its pictures are COCO's train2017: run where they lie, or name your own copy of the rows beside them",
    ),
    DatasetEntry(
        name="librispeech_sft", hub_id="librispeech_asr", domain="Audio", size="100h", format="speech",
        source="openslr/librispeech_asr", config="clean", split="train.100",
    ),
    DatasetEntry(
        name="common_voice_sft", hub_id="mozilla-foundation/common_voice_17_0", domain="Audio", size="en",
        format="speech", config="en", note="gated: accept its terms on the Hub, then `hf auth login`", documented=False,
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


def find_dataset(name: str) -> HubDataset:
    """What a short name or Hub id means. Raises DataError for a name that is neither."""
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
    source = entry.source or entry.hub_id
    label = f"dataset:{entry.name}"
    return HubDataset(source=source, config=entry.config, format=entry.format, label=label, split=entry.split)
