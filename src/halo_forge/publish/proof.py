"""Proof that the bytes about to be published are the model that was trained: loaded anew, asked, and compared.

The staged version is loaded in a fresh process with what a user has (plain transformers and peft) and asked golden
prompts; so is the run's final model, with the run's own tokenizer. Tokens must be the same, the template and tokenizer
those that the rows were prepared with, and the generation config must end an answer where the training data did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from halo_forge.artifacts import PreparedData, Record, TrainedModel
from halo_forge.config.schema import Config
from halo_forge.errors import HaloForgeError
from halo_forge.runs import RunDirectory

GOLDEN_PROMPTS = 20
GOLDEN_TOKENS = 32
PROOF_NAME = "proof.json"
TIMEOUT_S = 3600


class Mismatch(Record):
    """One thing that is not the same. `what` names it, `expected` is the trained model's, `found` the published."""

    what: str
    expected: str
    found: str


class Proof(Record):
    """`status` not_measured: nobody loaded these bytes. num_tokens counts the golden answers' tokens, num_recorded the
    answers that the evaluation had recorded and that were compared too."""

    schema_version: Literal[1] = 1
    status: Literal["measured", "not_measured"]
    ok: bool | None = None
    num_prompts: int = 0
    num_identical: int = 0
    num_tokens: int = 0
    num_recorded: int = 0
    dtype: str = ""
    device: str = ""
    stop_token_ids: tuple[int, ...] = ()
    base_model_sha256: str | None = None
    mismatches: tuple[Mismatch, ...] = ()
    note: str = ""


Prove = Callable[[Path, Config, RunDirectory, TrainedModel, PreparedData], Proof]
"""prove(staged version, config, run, trained, prepared) -> Proof"""

NOT_PROVEN = Proof(status="not_measured", note="the published bytes were not loaded and asked")


def prove_reload(
    staging: Path, config: Config, run: RunDirectory, trained: TrainedModel, prepared: PreparedData
) -> Proof:
    """Ask the trained and the staged model the same golden prompts in a process of their own.

    In float32 the answers must also be those that the evaluation recorded. Raises HaloForgeError where that process
    cannot load one of them or does not answer.
    """
    request = proof_request(staging, config, run, trained, prepared)
    return Proof.model_validate(in_fresh_process("prove", request, staging))


def proof_request(
    staging: Path, config: Config, run: RunDirectory, trained: TrainedModel, prepared: PreparedData
) -> dict[str, Any]:
    """What the fresh process is told."""
    rows = next((prepared.splits[name] for name in ("holdout", "validation", "train") if _rows(prepared, name)), None)
    answers = run.file("eval/answers.jsonl")
    return {
        "staging": str(staging),
        "final_model": str(run.file(trained.final_model)),
        "conversations": str(run.file(rows.conversations)) if rows is not None else None,
        "answers": str(answers) if answers.is_file() and trained.precision == "float32" else None,
        "model": config.model.model_dump(mode="json"),
        "config": config.model_dump(mode="json", include={"model", "vision", "audio"}),
        "method": trained.method,
        "precision": trained.precision,
        "template_sha256": prepared.template_sha256,
        "tokenizer_sha256": prepared.tokenizer_sha256,
        "num_prompts": GOLDEN_PROMPTS,
        "max_new_tokens": min(GOLDEN_TOKENS, config.evaluation.max_new_tokens),
    }


def _rows(prepared: PreparedData, name: str) -> int:
    return prepared.splits[name].rows if name in prepared.splits else 0


def in_fresh_process(task: str, request: dict[str, Any], where: Path) -> dict[str, Any]:
    """Run `python -m halo_forge.publish.reload TASK`, JSON in and out. The last line of its stdout is the answer."""
    environment = dict(os.environ) | {"PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "halo_forge.publish.reload", task],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise HaloForgeError(f"the model did not answer within {TIMEOUT_S} s", where=str(where)) from None
    if answer.returncode != 0:
        raise HaloForgeError(
            f"the model could not be loaded and asked in a fresh process: {_last_words(answer.stderr)}",
            where=str(where),
            expected="a model that loads with transformers and peft",
        )
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
