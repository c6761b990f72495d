"""SIGTERM in every phase of the real command: out within ten seconds with 130, and the same command finishes the run
with the weights of one that nobody stopped."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from faults.fault_runs import Job, every_time_or_soak, finish, start_process
from halo_forge.cli.main import main
from training_runs import final_weights, write_rows

LIMIT_S = 10.0
PHASES = {
    "reading rows": ("halo_forge.pipeline", "prepare"),
    "loading the model": ("halo_forge.train.session", "load_training_model"),
    "pre-flight": ("halo_forge.train.train", "preflight"),
    "restoring": ("halo_forge.train.train", "restore"),
    "a step": ("halo_forge.train.loop", "train_step"),
    "sampling": ("halo_forge.train.loop", "take_samples"),
    "validation": ("halo_forge.train.loop", "validate"),
    "a save": ("halo_forge.train.loop", "save_checkpoint"),
    "the final model": ("halo_forge.train.train", "save_final"),
    "evaluation": ("halo_forge.pipeline", "evaluate"),
}
"""Where the signal comes: on the way into this function, the first time that it is called."""
HALO_FORGE = Path(sys.executable).with_name("halo-forge")


def run_command(job: Job, config: Path, phase: str | None, said: Path) -> None:
    """For a child process: the command line; its SIGTERM comes on the way into the phase, which is slow from then."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    os.environ |= {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if phase is not None:
        module = importlib.import_module(PHASES[phase][0])
        setattr(module, PHASES[phase][1], signalled(getattr(module, PHASES[phase][1]), said.with_suffix(".time")))
    sys.argv = ["halo-forge", "run", str(config), "--until", "evaluate"]
    main()


def signalled(function: Callable[..., Any], moment: Path) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not moment.exists():
            moment.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGTERM)
            slow_down()
        return function(*args, **kwargs)

    return call


def slow_down() -> None:
    """As with a large model: each micro-batch of a validation, and each sample, takes a while from now on."""
    session = importlib.import_module("halo_forge.train.session")
    generate = importlib.import_module("halo_forge.models.generate")
    session.LossCounter.add = slow(session.LossCounter.add, 6)  # type: ignore[attr-defined]
    generate._Decoding.run = slow(generate._Decoding.run, 2)  # type: ignore[attr-defined]


def slow(function: Callable[..., Any], by_s: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(by_s)
        return function(*args, **kwargs)

    return call


def configured(root: Path, model: Path) -> Path:
    values = {
        "model": {"name": str(model)},
        "data": {"train_file": str(write_rows(root / "rows.jsonl", 60)), "validation_split": 0.2,
                 "holdout_split": 0.2, "max_seq_length": 256},
        "training": {"per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3, "bf16": False,
                     "eval_steps": 2, "packing": False},
        "output": {"dir": str(root / "out"), "save_steps": 1},
        "evaluation": {"max_new_tokens": 4, "max_prompts": 4, "bootstrap_samples": 100, "sample_prompts": 2},
    }  # fmt: skip
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def command(root: Path, model: Path, phase: str | None) -> tuple[int, str]:
    said = root / "said.txt"
    job = Job(model, root / "job" / "run", {})
    return finish(start_process(run_command, job, root / "config.yaml", phase, said)), said.read_text()


@pytest.fixture(scope="module")
def unstopped(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unstopped")
    configured(root, tiny_model_dir)
    code, said = command(root, tiny_model_dir, None)
    assert code == 0, said
    return root / "out"


@pytest.mark.parametrize("phase", every_time_or_soak(PHASES, {"a step", "validation", "evaluation"}))
def test_stopped_in_a_phase(phase: str, unstopped: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    configured(tmp_path, tiny_model_dir)
    code, said = command(tmp_path, tiny_model_dir, phase)
    took_s = time.time() - float((tmp_path / "said.time").read_text())
    assert code == 130, said
    assert took_s < LIMIT_S
    assert "stopped: stopped by SIGTERM" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    code, said = command(tmp_path, tiny_model_dir, None)
    assert code == 0, said
    assert_same_run(tmp_path / "out", unstopped)


def assert_same_run(run: Path, unstopped: Path) -> None:
    """Weights, answers of the samples, and what was measured."""
    assert final_weights(run) == final_weights(unstopped)
    for name in ("samples.jsonl", "eval/answers.jsonl"):
        assert (run / name).read_text() == (unstopped / name).read_text(), name
    for name in ("best_val", "best_train", "latest"):
        assert os.readlink(run / name) == os.readlink(unstopped / name), name


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_stopped_at_random_times(unstopped: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """From the first import on, in processes that start from nothing. Before the handler is there, SIGTERM ends them as
    it ends any process, and then there is nothing to lose."""
    rng, config, longest_s, codes = random.Random(143), configured(tmp_path, tiny_model_dir), 0.0, []
    environment = os.environ | {"NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(int(os.environ.get("HALO_FORGE_SOAK_STOPS", "40"))):
        process = subprocess.Popen(
            [HALO_FORGE, "run", str(config), "--until", "evaluate"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        time.sleep(rng.uniform(0, 11))
        process.terminate()
        started = time.monotonic()
        _, said = process.communicate(timeout=60)
        longest_s = max(longest_s, time.monotonic() - started)
        assert process.returncode in (130, -signal.SIGTERM, 0), said
        assert "Traceback" not in said
        codes.append(process.returncode)
        if process.returncode == 0:
            assert_same_run(tmp_path / "out", unstopped)
            subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)
    print({code: codes.count(code) for code in set(codes)}, f"longest {longest_s:.2f} s")
    assert longest_s < LIMIT_S
