"""Other tools' boards: TensorBoard, Weights & Biases, MLflow, Trackio, through accelerate's tracker classes.

metrics.jsonl stays the truth; a tracker gets a copy. A missing package stops a run before anything is read; a tracker
that fails later (network, quota, disk), or takes too long, is told once and switched off, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.config.keys import flat_values
from halo_forge.config.schema import Config
from halo_forge.errors import UsageError
from halo_forge.runs import Notify, write_json

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "halo-forge"
"""Project or experiment, unless WANDB_PROJECT, TRACKIO_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""
RECORD = "trackers.json"
"""Tracker -> the id of this run there, so that a resumed run goes on in the same one."""
LOGS = "trackers"
MAX_CALL_S = 10.0
"""A tracker whose call takes longer holds up the training and is switched off. Calls usually take milliseconds."""
TRAIN_FIELDS = ("loss", "learning_rate", "grad_norm", "epoch", "num_supervised_tokens", "num_tokens", "time_s")


def require_trackers(names: Sequence[str]) -> None:
    """Raise UsageError with the install line if the package of a tracker is missing. Imports nothing."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a directory of that name, not the package
            raise UsageError(
                f"the package of the tracker {name} is not installed",
                where="output.trackers",
                fix=f"pip install {name}, or remove {name} from output.trackers",
            )


class Trackers:
    """The trackers that still work. No method raises for what a tracker does."""

    def __init__(self, trackers: Mapping[str, GeneralTracker], notify: Notify) -> None:
        self._trackers = dict(trackers)
        self._notify = notify

    def log(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of one line of metrics.jsonl; lines without any (findings) are not sent."""
        values = tracked_values(line)
        if values:
            self._each(lambda tracker: tracker.log(values, step=line["step"]))

    def describe(self, values: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.store_init_configuration(dict(values)))

    def close(self) -> None:
        """Finish the runs over there, however long the last numbers take to be sent."""
        for name, tracker in self._trackers.items():
            failure = _failure_of(lambda name=name, tracker=tracker: _finish(name, tracker))  # type: ignore[misc]
            if failure is not None:
                _tell_off(name, failure, self._notify)
        self._trackers.clear()

    def _each(self, call: Callable[[GeneralTracker], Any]) -> None:
        for name, tracker in list(self._trackers.items()):
            started = time.monotonic()
            failure = _failure_of(lambda tracker=tracker: call(tracker))  # type: ignore[misc]
            took_s = time.monotonic() - started
            if failure is None and took_s > MAX_CALL_S:
                failure = f"one call took {took_s:.0f} s"
            if failure is not None:
                del self._trackers[name]
                _tell_off(name, failure, self._notify)


def tracked_values(line: Mapping[str, Any]) -> dict[str, float]:
    """`train/loss`, `validation/loss`, `train/loss/<source>`, ...: what of a line is a number to follow."""
    kind = line.get("kind")
    if kind not in ("train", "validation"):
        return {}
    values = {f"{kind}/{name}": float(line[name]) for name in TRAIN_FIELDS if line.get(name) is not None}
    for source, of_source in (line.get("by_source") or {}).items():
        values[f"{kind}/loss/{source}"] = float(of_source["loss"])
    return values


def start_trackers(config: Config, run: Path, first_step: int, notify: Notify) -> Trackers:
    """Start what output.trackers names, in the tracker's run of this run directory.

    first_step  steps that are done: above 0 the tracker's run is continued, and TensorBoard drops what it had beyond
    """
    names = config.output.trackers
    if not names:
        return Trackers({}, notify)
    from accelerate import PartialState

    PartialState()  # accelerate's trackers write to its log, which wants this to exist
    known = _known_ids(run)
    started: dict[str, GeneralTracker] = {}
    for name in names:
        tracker = _make(name, run, known, first_step)
        failure = _failure_of(tracker.start)
        if failure is not None:
            _tell_off(name, failure, notify)
            continue
        started[name] = tracker
        known.setdefault(name, _run_id(name, tracker))
    write_json(run / RECORD, known)
    trackers = Trackers(started, notify)
    if first_step == 0:
        trackers.describe({key: _plain(value) for key, value in flat_values(config).items()})
    return trackers


def _make(name: str, run: Path, known: Mapping[str, str], first_step: int) -> GeneralTracker:
    from accelerate import tracking

    title = run.resolve().name
    if name == "tensorboard":
        # What was written beyond the checkpoint is trained again: the first event purges it.
        return tracking.TensorBoardTracker(title, logging_dir=str(run / LOGS), purge_step=first_step + 1)
    if name == "wandb":
        return tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=title,
            id=known.get(name) or uuid.uuid4().hex[:16],
            resume="allow",
            dir=str(run),
            settings={"silent": True, "console": "off"},
        )
    if name == "mlflow":
        return tracking.MLflowTracker(PROJECT, run_name=title, run_id=known.get(name))
    return tracking.TrackioTracker(
        os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=known.get(name) or f"{title}-{uuid.uuid4().hex[:6]}",
        resume="allow",
    )


def _finish(name: str, tracker: GeneralTracker) -> None:
    if name == "trackio":
        import trackio

        trackio.finish()  # finishing only the run would have it finished again at exit, with words on stdout
    else:
        tracker.finish()


def _run_id(name: str, tracker: GeneralTracker) -> str:
    """How the tracker finds this run again."""
    if name == "tensorboard":
        return LOGS
    if name == "mlflow":
        return str(tracker.tracker.info.run_id)
    return str(tracker.tracker.id if name == "wandb" else tracker.tracker.name)


def _known_ids(run: Path) -> dict[str, str]:
    try:
        return {str(name): str(value) for name, value in json.loads((run / RECORD).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _failure_of(call: Callable[[], Any]) -> str | None:
    """Why a call failed, or None. What a tracker prints goes to stderr: stdout is the command's result."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            call()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def _tell_off(name: str, failure: str, notify: Notify) -> None:
    notify("note", {"text": f"the tracker {name} is switched off ({failure}); metrics.jsonl has every figure"})


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
