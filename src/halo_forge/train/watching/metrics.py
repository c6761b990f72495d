"""metrics.jsonl: the truth about a run, one line a step. Truncated on resume to what its checkpoint had seen, so that
no step appears twice."""

from __future__ import annotations

import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from halo_forge.runs import write_json


class MetricsLog:
    """Append-only. `sync` makes everything written so far durable and returns its size in bytes."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self.path = path
        # Unbuffered: what a full disk did not take must not come again when the file is closed.
        self._file: FileIO = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.truncate(keep_bytes)

    def append(self, **fields: Any) -> None:
        line = json.dumps(fields).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:  # it does not say of which file
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def sync(self) -> int:
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a torn last line of a killed process is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def write_training_log(run: Path, logging_steps: int) -> None:
    """training_log.json of seed 000: the loss history every logging_steps, and every validation."""
    history = [
        {key: value for key, value in line.items() if key != "kind"} | {"event": line["kind"]}
        for line in read_metrics(run / "metrics.jsonl")
        if line["kind"] != "train" or line["step"] % logging_steps == 0 or line["step"] == 1
    ]
    write_json(run / "training_log.json", {"log_history": history})
