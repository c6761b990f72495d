"""`halo-forge iterate RUN --rows FILE`: the same run with more rows, and what they did.

    inspect RUN           which validation answers are wrong (kept from before where that is known)
    check the rows        nothing damaged, nothing of the holdout, nothing of the validation rows
    train                 RUN's own configuration, its train rows and the added ones, into a directory of its own
    compare               on RUN's holdout, item by item; per cluster of failures, on RUN's validation rows

Every step keeps what it did, so the same command goes on after a kill.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halo_forge.config import ResolvedConfig
from halo_forge.errors import RunConflict
from halo_forge.failures.added_rows import ADDED, added_and_left_out, next_config, refuse_unfit, same_splits
from halo_forge.failures.inspection import inspect_run
from halo_forge.failures.outcome import measured_iteration
from halo_forge.failures.records import Iteration
from halo_forge.failures.validation import validation_rows
from halo_forge.models.forward import keep_going
from halo_forge.pipeline import RunResult, plan, run
from halo_forge.runs import (
    Notify,
    RunDirectory,
    provenance,
    sha256_file,
    silent,
    write_artifact,
)
from halo_forge.sampling.run import RunFacts

RECORD = "iteration.json"
_NUMBERED = re.compile(r"(.*)-iter(\d+)")


def next_directory(parent: Path) -> Path:
    """RUN-iter2 beside RUN, RUN-iter3 beside RUN-iter2."""
    parent = parent.resolve() if parent.name in ("", ".", "..") else parent
    found = _NUMBERED.fullmatch(parent.name)
    stem, number = (found[1], int(found[2])) if found else (parent.name, 1)
    return parent.with_name(f"{stem}-iter{number + 1}")


def iterate_run(
    path: Path,
    rows: Path,
    output: Path | None = None,
    *,
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> Iteration:
    """Train on RUN's rows and the added ones, measure, and write iteration.json into the new run.

    output  the new run's directory; default: RUN-iter2 beside RUN
    Raises DataError for rows that cannot be added and for a holdout that would not be the same, RunConflict where
    `output` holds another run, and what `inspect_run` and `pipeline.run` raise.
    """
    parent, place, resolved = _prepared(path, rows, output, notify)
    before = inspect_run(path, notify=notify, check=check)
    check()
    begun = _begin(run(resolved, until="data", notify=notify), parent, rows)
    notify("note", {"text": f"{begun.num_added} of {begun.num_read} rows are added to {begun.num_train_rows_before}"})
    result = run(resolved, until="gate", notify=notify)
    after = inspect_run(place, metric=before.record.metric, notify=notify, check=check)
    with RunDirectory.open(place) as directory:
        done = measured_iteration(begun, parent, result, before, after)
        write_artifact(directory.file(RECORD), done)
    return done


def plan_iteration(path: Path, rows: Path, output: Path | None = None, notify: Notify = silent) -> dict[str, Any]:
    """What `iterate_run` would do, with the rows checked and prepared in a temporary directory. Raises what it would
    raise before anything is trained."""
    parent, place, resolved = _prepared(path, rows, output, notify)
    planned = plan(resolved, notify=notify)
    same_splits(parent, planned.prepared)
    before = parent.prepared.splits["train"].rows
    num_added = planned.prepared.splits["train"].rows - before
    read = next(source.read for source in planned.prepared.sources if source.name == ADDED)
    return {
        "run": str(path),
        "output": str(place),
        "rows": str(rows),
        "num_read": read,
        "num_added": num_added,
        "num_train_rows_before": before,
        "num_steps": planned.num_steps,
        "words": (
            f"{num_added} of {read} rows would be added to the {before} of {path}. {planned.words()}\n"
            f"The result would be in {place}; holdout and validation rows are the same."
        ),
    }


def _prepared(path: Path, rows: Path, output: Path | None, notify: Notify) -> tuple[RunFacts, Path, ResolvedConfig]:
    """What both begin with: the run read and its rows found unchanged, the added ones fit."""
    parent = RunFacts.read(path)
    _ = parent.final_model  # raises where nothing was trained
    validation_rows(parent)
    place = output if output is not None else next_directory(path)
    if place.resolve() == path.resolve():
        raise RunConflict(
            "an iteration is a run of its own", where=str(place), fix="give another directory with --output"
        )
    resolved = next_config(parent, rows, place)
    refuse_unfit(resolved.config, rows, notify)
    return parent, place, resolved


def _begin(result: RunResult, parent: RunFacts, rows: Path) -> Iteration:
    """The lineage, on disk before anything is trained; and the proof that both runs are measured on the same rows."""
    assert result.prepared is not None
    assert parent.trained is not None
    prepared, trained = result.prepared, parent.trained
    same_splits(parent, prepared)
    num_read, num_added, left_out = added_and_left_out(RunDirectory(result.directory), prepared, rows)
    inputs = {
        "parent": trained.weights_sha256,
        "rows": sha256_file(rows),
        "holdout": prepared.splits["holdout"].sha256,
        "validation": prepared.splits["validation"].sha256,
    }
    begun = Iteration(
        provenance=provenance(prepared.provenance.config_sha256, inputs),
        parent=str(parent.directory.path), parent_weights_sha256=trained.weights_sha256, run=str(result.directory),
        rows=str(rows), rows_sha256=inputs["rows"], holdout_sha256=inputs["holdout"],
        validation_sha256=inputs["validation"], num_read=num_read, num_added=num_added, left_out=left_out,
        num_train_rows_before=parent.prepared.splits["train"].rows, num_train_rows=prepared.splits["train"].rows,
    )  # fmt: skip
    write_artifact(result.directory / RECORD, begun)
    return begun
