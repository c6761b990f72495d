"""Rows that somebody wrote against failures: are they fit to be trained on, and what does the next run read?

    the run's train split      as it is (format `prepared`)
    the added rows             through every check of the data stage, after the run's own, so that of copies theirs go
    validation and holdout     as they are, byte for byte: before and after are measured on the same items

An added row that repeats a held-out prompt, in the same words or nearly, is left out (`in_holdout`), and so is one that
repeats a validation prompt (`in_validation`, `contaminated`): it would mend the item and not the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halo_forge.artifacts import PreparedData
from halo_forge.config import Config, ResolvedConfig
from halo_forge.data import check
from halo_forge.data.files.rows import shown_path
from halo_forge.data.reasons import REASONS
from halo_forge.errors import DataError, UsageError
from halo_forge.failures.records import LeftOutRow
from halo_forge.runs import Notify, RunDirectory
from halo_forge.sampling.run import RunFacts

BEFORE, ADDED = "before", "added"
"""Names of the two sources of training rows."""
SHOWN_ROWS = 5


def next_config(run: RunFacts, rows: Path, output: Path) -> ResolvedConfig:
    """The run's own configuration over its frozen splits and the added rows."""
    config = run.config.to_dict()
    data: dict[str, Any] = config["data"]
    splits = {name: run.directory.file(split.conversations) for name, split in run.prepared.splits.items()}
    present = {name: str(splits[name]) for name in splits if run.prepared.splits[name].rows}
    policies = {"contaminated": "skip", **data["policies"]}
    config["data"] = data | {
        "train_file": None,
        "dataset": None,
        "sources": [
            {"path": present["train"], "format": "prepared", "name": BEFORE},
            {"path": str(rows), "format": "auto", "name": ADDED},
        ],
        "format": "prepared",
        "validation_file": present.get("validation"),
        "validation_split": data["validation_split"] if "validation" in present else 0.0,
        "holdout_file": present.get("holdout"),
        "holdout_split": data["holdout_split"] if "holdout" in present else 0.0,
        "split_by": None,
        "stratify_by": None,
        "max_samples": None,
        "decontaminate": [*data["decontaminate"], *([present["validation"]] if "validation" in present else [])],
        "policies": policies,
    }
    config["output"] = config["output"] | {"dir": str(output)}
    return ResolvedConfig.of(Config.model_validate(config))


def refuse_unfit(config: Config, rows: Path, notify: Notify) -> None:
    """The data check on the added rows alone. Raises DataError for damaged ones (an unfilled template's among them),
    naming the first, and where no row would be trained on; UsageError where there is no such file."""
    if not rows.is_file():
        raise UsageError(
            "there is no such file of rows", where=str(rows), fix="halo-forge inspect RUN writes a template"
        )
    alone = config.data.model_copy(
        update={"sources": [entry for entry in config.data.sources or [] if entry.name == ADDED]}
    )
    found = check(config.model_copy(update={"data": alone}), notify)
    label = shown_path(rows)
    told = [row for row in found.rows if row["file"] == label]
    dropped = [row for row in told if row["action"] == "dropped"]
    damaged = [row for row in dropped if REASONS[row["code"].split(",")[0]].kind == "damage"]
    if damaged:
        raise DataError(
            f"{len(damaged)} of the rows cannot be trained on\n  " + _lines(damaged), where=str(rows),
            expected="every row of the template filled in, or taken out", fix=f"halo-forge data check {rows}",
        )  # fmt: skip
    read = next(source["read"] for source in found.sources if source["path"] == label)
    if len(dropped) == read:
        raise DataError(
            f"none of the {read} rows can be added\n  " + _lines(dropped), where=str(rows),
            expected="rows whose prompts stand neither in the holdout nor among the validation rows",
        )  # fmt: skip


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    shown = [f"line {row['line']}: {row['reason']} [{row['code']}]" for row in rows[:SHOWN_ROWS]]
    more = [f"and {len(rows) - SHOWN_ROWS} more"] if len(rows) > SHOWN_ROWS else []
    return "\n  ".join([*shown, *more])


def added_and_left_out(
    directory: RunDirectory, prepared: PreparedData, rows: Path
) -> tuple[int, int, tuple[LeftOutRow, ...]]:
    """(rows read of the file, rows of it that are trained on, those that are not and why), by the new run's ledger."""
    label = shown_path(rows)
    num_read, left_out = 0, []
    with open(directory.file(prepared.ledger), encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["file"] != label:
                continue
            num_read += 1
            if entry.get("split") != "train":
                left_out.append(LeftOutRow(line=entry["line"], code=entry["code"], reason=entry["reason"]))
    return num_read, num_read - len(left_out), tuple(left_out)


def same_splits(run: RunFacts, prepared: PreparedData) -> None:
    """Raises DataError where validation or holdout are not the bytes that they were: nothing would be comparable."""
    for name in ("validation", "holdout"):
        before, after = run.prepared.splits[name], prepared.splits[name]
        if before.rows and before.sha256 != after.sha256:
            raise DataError(
                f"the {name} rows of the new run are not those of the run before: found {after.sha256}",
                where=after.conversations, expected=f"sha256 {before.sha256}",
                fix="report it: rows of a run are taken over as they are",
            )  # fmt: skip
