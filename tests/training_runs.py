"""Small real training runs for tests: rows through the real data stage, a tiny Llama, a run directory."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import PreparedData, TrainedModel
from halo_forge.config import Config, load_config
from halo_forge.data import prepare
from halo_forge.errors import Interrupted
from halo_forge.models.compute import Compute
from halo_forge.runs import RunDirectory
from halo_forge.train import train

WORDS = ["apple", "river", "stone", "cloud", "lamp", "green", "seven", "quick", "paper", "door"]
CPU = torch.device("cpu")


def write_rows(path: Path, num_rows: int) -> Path:
    """Rows of clearly different lengths, so that a mean of means, a leak or a wrong order shows."""
    with open(path, "w") as file:
        for i in range(num_rows):
            question = " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(1 + i % 5)) + f" {i}?"
            answer = " ".join(WORDS[(i + k * k) % len(WORDS)] for k in range(1 + (i * 7) % 13)) + "."
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return path


@dataclass
class Prepared:
    config: Config
    run: RunDirectory
    data: PreparedData
    tokenizer: PreTrainedTokenizerBase


def settings(model: Path, rows: Path, output: Path, **training: Any) -> dict[str, tuple[Any, str]]:
    """Flags for load_config. Keys of `training` may be dotted for other sections ("lora.r")."""
    values: dict[str, Any] = {
        "model.name": str(model),
        "data.train_file": str(rows),
        "data.validation_split": 0.1,
        "data.holdout_split": 0.1,
        "data.max_seq_length": 256,
        "output.dir": str(output),
        "output.save_steps": 1000,
        "evaluation.sample_prompts": 0,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 2,
        "training.num_train_epochs": 2,
        "training.learning_rate": 1e-3,
        "training.bf16": False,
        "training.preflight": False,  # tests of the pre-flight turn it on; others count calls or seconds
        "lora.r": 4,
        "lora.dropout": 0.1,
    }
    values |= {(key if "." in key else f"training.{key}"): value for key, value in training.items()}
    return {key: (value, "test") for key, value in values.items()}


def prepared_run(
    tokenizer: PreTrainedTokenizerBase, model: Path, output: Path, num_rows: int = 60, **training: Any
) -> Prepared:
    output.mkdir(parents=True, exist_ok=True)
    rows = write_rows(output.parent / f"rows-{num_rows}.jsonl", num_rows)
    config = load_config(flags=settings(model, rows, output, **training)).config
    run = RunDirectory.open(output)
    return Prepared(config, run, prepare(config, run, tokenizer), tokenizer)


def train_now(prepared: Prepared, **options: Any) -> TrainedModel:
    compute = options.pop("compute", Compute(device=CPU, precision="float32"))
    return train(prepared.config, prepared.run, prepared.data, prepared.tokenizer, compute=compute, **options)


def final_weights(run: Path) -> str:
    """Hash of the trained tensors of final_model/."""
    names = sorted((run / "final_model").glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


class TwoProcesses:
    """Two gloo processes that train runs which were prepared beforehand; they import once and take many."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(2)]

    def train(self, model: Path, output: Path, **options: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            pool.submit(train_two_ranks, rank, port, str(model), str(output), **options)
            for rank, pool in enumerate(self.pools)
        ]
        for rank in started:
            rank.result(timeout=240)

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)


def train_two_ranks(
    rank: int, port: int, model: str, output: str, *, training: dict[str, Any], stop_after: int | None = None,
    bf16: bool = False, **compute: Any,
) -> None:  # fmt: skip
    """For a child process: one of two gloo ranks over the same run directory, prepared beforehand by the parent.

    stop_after  be told to stop, on the second rank alone, before this step
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    from transformers import AutoTokenizer

    from halo_forge.data import load_prepared

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Path(output).parent / "rows-60.jsonl"
    config = load_config(flags=settings(Path(model), rows, Path(output), **training)).config
    run = RunDirectory(Path(output))
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if rank == 1 and calls - 1 == stop_after:
            raise Interrupted("told to stop")

    precision: Any = "bfloat16" if bf16 else "float32"
    prepared = Prepared(config, run, load_prepared(run), tokenizer)
    try:
        with suppress(Interrupted):
            train_now(prepared, compute=Compute(device=CPU, precision=precision, **compute), check=check)
    finally:
        torch.distributed.destroy_process_group()
