"""A local tree of benchmark rows, laid out as `datasets` reads a folder: made once with a network, used without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from halo_forge.errors import DataError, UsageError
from halo_forge.evaluate.bench.tasks import BENCHMARKS
from halo_forge.runs import Notify, sha256_file, silent, write_atomic, write_json

MANIFEST = "mirror.json"


def build_mirror(names: Iterable[str], tree: Path, *, source: Path | None = None, notify: Notify = silent) -> Path:
    """Write the rows of known benchmarks into `tree` as parquet, each data set with a README.md that names its files,
    and mirror.json with the sha256 and rows of every file.

    source  another tree to copy from instead of the Hub
    What the tree has already stays. Raises UsageError for an unknown name, DataError where rows cannot be fetched.
    """
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown:
        raise UsageError(
            f"there is no benchmark {unknown[0]!r} to mirror",
            expected=", ".join(BENCHMARKS),
            fix="halo-forge bench list",
        )
    for name in wanted:
        for hub_id, configuration in BENCHMARKS[name].data:
            files = _mirror_data_set(hub_id, configuration, tree, source)
            notify("note", {"text": f"{name}: {hub_id}, {len(files)} files"})
    entries = {
        str(path.relative_to(tree)): {"sha256": sha256_file(path), "rows": _num_rows(path)}
        for path in sorted(tree.rglob("*.parquet"))
    }
    write_json(tree / MANIFEST, entries)
    return tree / MANIFEST


def _mirror_data_set(hub_id: str, configuration: str | None, tree: Path, source: Path | None) -> list[Path]:
    where = str((source / hub_id).resolve()) if source is not None else hub_id
    try:
        names = [configuration] if configuration else _configurations(hub_id, source)
        files: dict[str, dict[str, Path]] = {}
        for name in names:
            missing = not any((tree / hub_id / name).glob("*.parquet"))
            if missing:
                (tree / hub_id / name).mkdir(parents=True, exist_ok=True)
                _fetch(hub_id, name, tree / hub_id / name, source)
            files[name] = {path.stem: path for path in sorted((tree / hub_id / name).glob("*.parquet"))}
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the rows of {hub_id} cannot be fetched: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=where,
            fix="run `halo-forge bench mirror` where the Hub can be reached, or give `--from TREE`",
        ) from error
    write_atomic(tree / hub_id / "README.md", _front_matter(files))
    return [path for own in files.values() for path in own.values()]


def _fetch(hub_id: str, name: str, folder: Path, source: Path | None) -> None:
    """Write a parquet file for each split; one that is there is whole."""
    if source is not None:
        if not any((source / hub_id / name).glob("*.parquet")):
            raise FileNotFoundError(f"no rows in {source / hub_id / name}")
        for path in sorted((source / hub_id / name).glob("*.parquet")):
            shutil.copyfile(path, folder / f"{path.stem}.partial")
            (folder / f"{path.stem}.partial").replace(folder / path.name)
        return
    for split, rows in import_module("datasets").load_dataset(hub_id, name).items():
        partial = folder / f"{split}.partial"
        rows.to_parquet(str(partial))
        partial.replace(folder / f"{split}.parquet")


def _configurations(hub_id: str, source: Path | None) -> list[str]:
    if source is not None:
        return sorted(path.name for path in (source / hub_id).iterdir() if path.is_dir())
    names = import_module("datasets").get_dataset_config_names(hub_id)
    # MMLU's training rows and its "all" repeat the subjects.
    return [name for name in names if name not in ("all", "auxiliary_train", "default")] or [hub_id.split("/")[-1]]


def _front_matter(files: dict[str, dict[str, Path]]) -> str:
    lines = ["---", "configs:"]
    for name, splits in files.items():
        lines += [f"- config_name: {json.dumps(name)}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {json.dumps(f'{name}/{path.name}')}"]
    return "\n".join([*lines, "---", ""])


def _num_rows(path: Path) -> int:
    return int(import_module("pyarrow.parquet").read_metadata(path).num_rows)
