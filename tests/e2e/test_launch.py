"""The real command with several processes: a worker killed, the whole stopped, two nodes, an error that comes home."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from halo_forge.errors import UsageError
from halo_forge.launch import Launch
from training_runs import final_weights, losses, write_rows

HALO_FORGE = Path(sys.executable).parent / "halo-forge"
NUM_STEPS = 210
pytestmark = pytest.mark.timeout(900)  # each test starts the command several times
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 60)


@pytest.fixture(scope="module")
def start(tiny_model_dir: Path, rows: Path) -> Start:
    def begin(output: Path, *flags: str) -> subprocess.Popen[str]:
        settings = {"training.bf16": "false", "evaluation.enabled": "false", "output.save_steps": "20",
                    "training.max_steps": str(NUM_STEPS), "training.eval_steps": "1000"}  # fmt: skip
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command = [str(HALO_FORGE), "sft", "train", "--data", str(rows), "--model", str(tiny_model_dir),
                   "-o", str(output), "--max-seq-length", "256", "--batch-size", "4",
                   "--gradient-accumulation", "1"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [*command, *chosen, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    return begin


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    _, said = ended(start(run, "--nproc-per-node", "2"), 0)
    assert "2 processes train" in said
    return run


def ended(process: subprocess.Popen[str], exit_code: int) -> tuple[str, str]:
    out, said = process.communicate(timeout=240)
    assert process.returncode == exit_code, said
    assert "Traceback" not in said
    return out, said


def wait_for_steps(run: Path, num_steps: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= num_steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {num_steps} steps: {process.communicate()}")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "halo_forge.cli.worker" in child.cmdline()]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert final_weights(one) == final_weights(other)
    assert read(one, "latest/state.json")["samples_sha256"] == read(other, "latest/state.json")["samples_sha256"]


def read(run: Path, name: str) -> dict[str, object]:
    return json.loads((run / name).read_bytes())  # type: ignore[no-any-return]


@pytest.mark.soak
def test_a_worker_is_killed_and_the_command_stopped_and_the_run_is_the_same_bit_for_bit(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, "--nproc-per-node", "2")
    wait_for_steps(run, 40, process)
    workers(process)[1].send_signal(signal.SIGKILL)
    time.sleep(1)  # its metrics are still those of before
    wait_for_steps(run, 110, process)
    family = workers(process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = ended(process, 130)
    assert time.monotonic() - began < 10
    assert "resumed from checkpoint-" in said
    assert "stopped by SIGTERM" in said
    assert not any(worker.is_running() for worker in family)
    assert len(losses(run)) < NUM_STEPS
    ended(start(run, "--nproc-per-node", "2"), 0)
    assert_equal_runs(run, undisturbed)


@pytest.mark.soak
def test_workers_with_a_part_each_are_killed_and_the_run_is_the_same(start: Start, tmp_path: Path) -> None:
    flags = ("--nproc-per-node", "2", "--shard", "--sharded-checkpoints")
    ended(start(tmp_path / "expected", *flags), 0)
    run = tmp_path / "run"
    process = start(run, *flags)
    for num_steps, victim in ((40, 1), (110, 0)):
        wait_for_steps(run, num_steps, process)
        workers(process)[victim].send_signal(signal.SIGKILL)
        time.sleep(1)
    _, said = ended(process, 0)
    assert "resumed from checkpoint-" in said
    assert_equal_runs(run, tmp_path / "expected")


@pytest.mark.soak
def test_workers_do_not_outlive_a_killed_command(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--nproc-per-node", "2")
    wait_for_steps(tmp_path / "run", 30, process)
    family = workers(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert len(family) == 2
    assert not alive
    ended(start(tmp_path / "run", "--nproc-per-node", "2"), 0)
    assert_equal_runs(tmp_path / "run", undisturbed)


@pytest.mark.soak
def test_two_nodes_meet_and_train_as_one_does(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    flags = ("--nnodes", "2", "--rdzv-endpoint", endpoint)
    nodes = [start(tmp_path / "run", *flags, "--node-rank", rank) for rank in "01"]
    said = [ended(node, 0)[1] for node in nodes]
    assert "node 1 waits for node 0" in said[1]
    assert (tmp_path / "run" / "report.html").exists()
    # A worker alone on its node takes all cores, and more threads sum in another order.
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-4)
    assert (
        read(tmp_path / "run", "latest/state.json")["samples_sha256"]
        == read(undisturbed, "latest/state.json")["samples_sha256"]
    )


def test_what_stops_a_worker_is_the_command_s_own_error(start: Start, tmp_path: Path) -> None:
    flags = ("--set", "training.optimizer=adafactor", "--shard")
    _, said = ended(start(tmp_path / "run", "--nproc-per-node", "2", *flags), 2)
    assert "training.optimizer adafactor does not work on a sharded model" in said
    assert said.count("error:") == 1


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({"nnodes": 2}, "a place to meet"),
        ({"nnodes": 2, "node_rank": 2, "rdzv_endpoint": "a:1"}, "not one of 2 nodes"),
        ({"sharded_checkpoints": True}, "needs --shard"),
    ],
)
def test_flags_that_do_not_fit_are_refused(launch: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Launch(**launch)  # type: ignore[arg-type]
