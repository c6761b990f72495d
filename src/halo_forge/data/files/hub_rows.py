"""Rows of a data set of the Hub, or of a folder laid out like one.

    in the Hub cache, or a folder   its files, by the readers for local files, so that every row is checked alike
    prepared by `datasets` before   its Arrow cache
    else, with a network            a few rows: streamed; many: the files of the split are downloaded, then read
Which files are the train split of a configuration is said by the data set's card; the `datasets` library reads it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from halo_forge.data.files.arrow_rows import without_absent
from halo_forge.data.files.raw_batches import ROWS_PER_BATCH, RawBatch, row_batches
from halo_forge.data.files.rows import Row, Say, checked_row, shown_path
from halo_forge.data.files.sources import read_rows, saved_files
from halo_forge.errors import DataError

STREAMED_ROWS = 10_000
"""Fewer rows than this are not worth the download of a whole data set."""
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?=\.|$)")
DATA_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".zst", ".gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """Where to load from. `label` stands for the file name in ledgers and reports."""

    source: str
    config: str | None
    format: str | None
    label: str
    split: str = "train"


def require_dataset(dataset: HubDataset) -> None:
    """Raises DataError where the data set is not on this machine and cannot be fetched."""
    if _local_directory(dataset) is None and not _prepared_before(dataset):
        _require_network(dataset)


def dataset_rows(dataset: HubDataset, max_rows: int | None, say: Say = lambda text: None) -> Iterator[Row]:
    """Rows of the split, numbered from 1. Offline and not in the cache: a DataError in under a second that
    names the command which downloads it."""
    return islice(_rows(dataset, max_rows, say), max_rows)


def dataset_batches(
    dataset: HubDataset, max_rows: int | None, say: Say = lambda text: None, rows_per_batch: int = ROWS_PER_BATCH
) -> Iterator[RawBatch]:
    """`dataset_rows` in batches for worker processes."""
    return row_batches(dataset.label, dataset_rows(dataset, max_rows, say), rows_per_batch)


def _rows(dataset: HubDataset, max_rows: int | None, say: Say) -> Iterator[Row]:
    directory = _local_directory(dataset)
    if directory is None and not _prepared_before(dataset):
        _require_network(dataset)
        if max_rows is None or max_rows > STREAMED_ROWS:
            directory = _downloaded(dataset)
    if directory is not None:
        yield from _folder_rows(dataset, directory, say)
    else:
        streaming = not _prepared_before(dataset)
        if streaming:
            say(f"{dataset.label}: {max_rows} rows are streamed from the Hub, nothing is kept")
        for number, value in enumerate(_loaded(dataset, streaming), start=1):
            yield checked_row(dataset.label, number, without_absent(value))


def _folder_rows(dataset: HubDataset, directory: Path, say: Say) -> Iterator[Row]:
    files = saved_files(directory) or _split_files(dataset, directory)
    _check_whole(dataset, files)
    number = 0
    for file in files:
        for row in read_rows(file, say):
            number += 1
            yield replace(row, path=dataset.label, line=number)


def _split_files(dataset: HubDataset, directory: Path) -> list[Path]:
    import datasets  # type: ignore[import-untyped]

    with _told(dataset):
        builder = datasets.load_dataset_builder(str(directory), dataset.config)
        files = (builder.config.data_files or {}).get(dataset.split)
        if not files:
            raise ValueError(f"it has no split called {dataset.split}")
        return [Path(file) for file in files]


def _check_whole(dataset: HubDataset, files: list[Path]) -> None:
    """A download that was broken off leaves some shards of a split; they are not the split."""
    shards: dict[tuple[str, int], set[int]] = defaultdict(set)
    for file in files:
        if match := SHARD.match(str(file)):
            shards[match[1], int(match[3])].add(int(match[2]))
    for (stem, total), numbers in shards.items():
        if len(numbers) < total:
            raise DataError(
                f"only {len(numbers)} of {total} files of this data set are on this machine",
                where=f"{dataset.label}: {shown_path(Path(stem).name)}",
                fix=f"with a network: hf download --repo-type dataset {dataset.source}",
            )


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
    return snapshot if any(path.name.endswith(DATA_SUFFIXES) for path in snapshot.rglob("*")) else None


def _prepared_before(dataset: HubDataset) -> bool:
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(cache.glob(f"{dataset.source.replace('/', '___').lower()}*")) or any(
        cache.glob(f"{dataset.source.replace('/', '___')}*")
    )


def _require_network(dataset: HubDataset) -> None:
    from halo_forge.models.hub import is_offline, unreachable_reason

    switched_off = is_offline() or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    reason = "the Hub is switched off (HF_HUB_OFFLINE=1)" if switched_off else unreachable_reason()
    if reason:
        raise DataError(
            f"the data set {dataset.source} is not on this machine, and {reason}",
            where=dataset.label,
            fix=f"with a network: hf download --repo-type dataset {dataset.source}",
        )


def _downloaded(dataset: HubDataset) -> Path:
    """The folder with the files of the train split, all of them, and the card."""
    import datasets
    import huggingface_hub

    with _told(dataset), _without_progress_bars():
        builder = datasets.load_dataset_builder(dataset.source, dataset.config)
        files = (builder.config.data_files or {}).get(dataset.split)
        if not files:
            raise ValueError(f"it has no split called {dataset.split}")
        # of a repository, not of a bucket, which alone has no such path
        names = [str(huggingface_hub.HfFileSystem().resolve_path(file).path_in_repo) for file in files]  # type: ignore[union-attr]
        return Path(
            huggingface_hub.snapshot_download(
                dataset.source, repo_type="dataset", allow_patterns=["README.md", *names]
            )
        )  # fmt: skip


def _loaded(dataset: HubDataset, streaming: bool) -> Iterable[dict[str, Any]]:
    import datasets

    with _told(dataset), _without_progress_bars():
        loaded = datasets.load_dataset(dataset.source, dataset.config, split=dataset.split, streaming=streaming)
        for name, feature in (loaded.features or {}).items():
            if isinstance(feature, datasets.Audio | datasets.Image):  # bytes as they were sent: decoding is ours
                loaded = loaded.cast_column(name, type(feature)(decode=False))
        yield from loaded


@contextmanager
def _told(dataset: HubDataset) -> Iterator[None]:
    """What the libraries of the Hub raise, in one line."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (OSError, ValueError, RuntimeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(
            f"the data set cannot be loaded: {reason}",
            where=dataset.label,
            expected="a text data set with a train split; org/name:config picks one of several configurations",
            fix=f"https://huggingface.co/datasets/{dataset.source} shows what it holds, and its terms if it is gated",
        ) from None


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """datasets and huggingface_hub draw on stderr, which belongs to the command line."""
    import datasets
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drawn, drawn_by_hub = not datasets.are_progress_bars_disabled(), not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()
        if drawn_by_hub:
            enable_progress_bars()
