"""`halo-forge bench`: a benchmark with rows of our own, killed in the middle, broken in several ways."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
NUM_ROWS = 24
KILLED = """
import os, signal, sys
from halo_forge.evaluate.answer_cache import AnswerCache
keep, count, last = AnswerCache.keep, 0, int(sys.argv[1])
def keep_and_die(self, *args, **values):
    global count
    keep(self, *args, **values)
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerCache.keep = keep_and_die
sys.argv = ["halo-forge", *sys.argv[2:]]
from halo_forge.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as HellaSwag has them."""
    directory = tmp_path_factory.mktemp("tree")
    rows = [
        {
            "ind": n, "activity_label": "Cooking", "ctx_a": f"A person cuts {n} apples.", "ctx_b": "they",
            "ctx": f"A person cuts {n} apples. they",
            "endings": [f"eat {n + k} of them in the {'warm ' * k}afternoon." for k in range(4)],
            "source_id": str(n), "split": "val", "split_type": "indomain", "label": str(n % 4),
        }
        for n in range(NUM_ROWS)
    ]  # fmt: skip
    folder = directory / "Rowan" / "hellaswag" / "default"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: default/train.parquet\n"
        "  - split: validation\n    path: default/validation.parquet\n---\n"
    )
    return directory


def bench(*arguments: str, die_after: int | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-m", "halo_forge.cli.main"] if die_after is None else ["-c", KILLED, str(die_after)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *program, "bench", *arguments], capture_output=True, text=True, env=environment, timeout=200
    )


def shown(path: Path) -> dict[str, Any]:
    """A report without what differs between two runs of the same."""
    report = json.loads((path / "report.json").read_text())
    for run in report["runs"]:
        run.pop("time_s")
    return {name: value for name, value in report.items() if name not in ("provenance", "time_s")}


def cached(path: Path) -> list[str]:
    return [
        json.loads(line)["key"]
        for file in (path / "cache").glob("*.jsonl")
        for line in file.read_text().splitlines()
        if line
    ]


def test_a_killed_run_goes_on_and_repeats_nothing(tiny_model_dir: Path, tree: Path, tmp_path: Path) -> None:
    command = [
        "run",
        "--model",
        str(tiny_model_dir),
        "--tasks",
        "hellaswag,no_such_task",
        "--tree",
        str(tree),
        "--json",
    ]
    killed = bench(*command, "--out", str(tmp_path / "killed"), die_after=30)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(cached(tmp_path / "killed")) == 30
    again = bench(*command, "--out", str(tmp_path / "killed"))
    whole = bench(*command, "--out", str(tmp_path / "whole"))
    assert again.returncode == whole.returncode == 5, again.stderr
    keys = cached(tmp_path / "killed")
    assert len(keys) == len(set(keys)) == 4 * NUM_ROWS, "work of before the kill was done twice"
    assert shown(tmp_path / "killed") == shown(tmp_path / "whole")
    assert (tmp_path / "killed" / "items.jsonl").read_bytes() == (tmp_path / "whole" / "items.jsonl").read_bytes()

    report = json.loads(whole.stdout)
    found = {row["metric"]: row for row in report["measurements"]}
    assert found["bench.hellaswag"]["status"] == "measured"
    assert found["bench.hellaswag"]["n"] == NUM_ROWS
    assert not found["bench.hellaswag"]["subsampled"]
    assert found["bench.no_such_task"]["status"] == "failed"
    assert found["bench.no_such_task"]["value"] is None
    assert "no_such_task" in found["bench.no_such_task"]["note"]


def test_a_limit_is_marked_and_a_mirror_serves_the_same_rows(tiny_model_dir: Path, tree: Path, tmp_path: Path) -> None:
    mirrored = bench("mirror", str(tmp_path / "copy"), "--tasks", "hellaswag", "--from", str(tree), "--json")
    assert mirrored.returncode == 0, mirrored.stderr
    manifest = json.loads((tmp_path / "copy" / "mirror.json").read_text())
    assert manifest["Rowan/hellaswag/default/validation.parquet"]["rows"] == NUM_ROWS
    command = ["run", "--model", str(tiny_model_dir), "--tasks", "hellaswag", "--limit", "5", "--json"]
    found = bench(*command, "--tree", str(tmp_path / "copy"), "--out", str(tmp_path / "out"))
    assert found.returncode == 0, found.stderr
    row = json.loads(found.stdout)["measurements"][0]
    assert (row["metric"], row["n"], row["subsampled"]) == ("bench.hellaswag", 5, True)


def test_mistakes_are_told_in_words(tmp_path: Path) -> None:
    assert "gsm8k" in bench("list").stdout
    for arguments in (
        ("run",),
        ("run", "--model", "x", "--tree", str(tmp_path / "none")),
        ("mirror", "t", "--tasks", "x"),
    ):
        found = bench(*arguments)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
