"""`halo-forge generate`: prompts in, judged samples out, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from halo_forge.artifacts import PreparedData, TrainedModel
from halo_forge.config import Config, load_config
from halo_forge.config.schema import RowFormat
from halo_forge.data.prepare import load_prepared
from halo_forge.data.split import SplitName
from halo_forge.errors import UsageError
from halo_forge.models.compute import known_compute
from halo_forge.models.forward import keep_going
from halo_forge.models.load import load_tokenizer
from halo_forge.models.precision import choose_device
from halo_forge.models.resolve import resolve_model
from halo_forge.models.save import load_trained, weights_sha256
from halo_forge.runs import Notify, RunDirectory, read_artifact, silent, write_atomic
from halo_forge.sampling.generation import Drawing, Sampled, draw_samples
from halo_forge.sampling.questions import (
    Asked,
    Asking,
    asking_as_trained,
    choose_prompts,
    prompts_of_files,
    prompts_of_split,
    question_key,
    split_rows,
)
from halo_forge.sampling.verdicts import Keep, count_verdicts, json_line, judge_samples, kept_candidates, training_row
from halo_forge.sandbox import sandbox_status
from halo_forge.verify import Verifier, make_verifiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of which model. Prompts come from `prompts` (files), else from `split` of `run`.

    model    a name or directory; without one, the run's final model
    holdout  files whose prompts may not be asked, beside the held-out rows of `run`
    """

    output: Path
    prompts: tuple[str, ...] = ()
    run: Path | None = None
    split: SplitName = "validation"
    model: str | None = None
    drawing: Drawing = field(default_factory=Drawing)
    verifiers: tuple[str, ...] = ()
    keep: Keep = "passed"
    holdout: tuple[str, ...] = ()
    row_format: RowFormat = "auto"
    limit: int | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A trained run, read from its records."""

    directory: RunDirectory
    config: Config
    prepared: PreparedData
    trained: TrainedModel | None

    @classmethod
    def read(cls, path: Path) -> RunFacts:
        if not (path / "config.resolved.yaml").is_file():
            raise UsageError("this is not a run directory", where=str(path), expected="config.resolved.yaml in it")
        directory = RunDirectory(path)
        record = directory.file("trained.json")
        return cls(
            directory=directory, config=load_config(path / "config.resolved.yaml").config,
            prepared=load_prepared(directory),
            trained=read_artifact(record, TrainedModel) if record.is_file() else None,
        )  # fmt: skip

    def keys(self, split: SplitName) -> frozenset[str]:
        rows = split_rows(self.directory, self.prepared, split)
        return frozenset(question_key(row) for row in rows if row.messages[0].role != "document")

    @property
    def final_model(self) -> Path:
        if self.trained is None:
            raise UsageError(
                "this run has not been trained", where=str(self.directory.path), fix="halo-forge run CONFIG, or --model"
            )
        return self.directory.file(self.trained.final_model)


def sample_command(request: Request, notify: Notify = silent, check: Callable[[], None] = keep_going) -> dict[str, Any]:
    """Draw, judge and write; the record of it. Verifiers, model and prompts are looked at before anything is drawn.

    The samples lie beside the output (`NAME.samples.jsonl`): after a kill, and after a change of verifiers or of what
    is kept, the same command draws only what is missing.
    """
    began = time.perf_counter()
    samples_file = samples_path(request.output)
    if request.output.exists() and not samples_file.exists() and not request.overwrite:
        raise UsageError("this file exists", where=str(request.output), fix="give another --output, or --force")
    run = RunFacts.read(request.run) if request.run is not None else None
    asking, sampled, num_known, verifiers, model = draw(request, run, samples_file, notify, check)
    judged = judge_samples(sampled, verifiers)
    rows = [training_row(prompt, kept) for prompt in judged for kept in kept_candidates(prompt, request.keep)]
    write_atomic(request.output, "".join(map(json_line, rows)))
    return {
        "output": str(request.output),
        "rows": len(rows),
        "keep": request.keep,
        "prompts": asking.counts(),
        **count_verdicts(judged, list(verifiers)),
        "samples_reused": num_known,
        "model": model,
        "drawing": asdict(request.drawing),
        "sandbox": asdict(sandbox_status()) if runs_code(request.verifiers) else None,
        "time_s": time.perf_counter() - began,
    }


def samples_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.samples.jsonl")


def runs_code(verifiers: tuple[str, ...]) -> bool:
    return any(name in ("compile", "unit-test") for name in verifiers)


def draw(
    request: Request,
    run: RunFacts | None,
    samples_file: Path,
    notify: Notify,
    check: Callable[[], None],
    train: frozenset[str] = frozenset(),
) -> tuple[Asking, list[Sampled], int, dict[str, Verifier], dict[str, str]]:
    """(prompts, their samples, how many were there before, verifiers, model). `train`: prompts not to be asked."""
    request.drawing.check()
    if request.model is None and run is None:
        raise UsageError("no model was named", expected="--model NAME or --run RUN")
    verifiers = make_verifiers(request.verifiers)
    asking = chosen_prompts(request, run, notify, train)
    source = str(run.final_model) if request.model is None and run is not None else str(request.model)
    directory = resolve_model(source, notify=notify) if not Path(source).is_dir() else Path(source)
    tokenizer = load_tokenizer(str(directory), notify=notify)
    weights = weights_sha256(directory)
    model, precision = _load(directory, run, notify)
    sampled, num_known = draw_samples(
        model, tokenizer, asking, request.drawing, samples_file, f"{weights}-{precision}", notify, check
    )
    return asking, sampled, num_known, verifiers, {"name": source, "weights_sha256": weights, "precision": precision}


def chosen_prompts(
    request: Request, run: RunFacts | None, notify: Notify, train: frozenset[str] = frozenset()
) -> Asking:
    """The prompts that may be asked. Raises UsageError for a split that may not be used, DataError for bad files."""
    if not request.prompts and run is None:
        raise UsageError("there is nothing to ask", expected="--prompts FILE, or --run RUN for the prompts of a run")
    if not request.prompts and request.split == "holdout":
        raise UsageError(
            "the holdout is for measuring, not for rows to train on", where="--split holdout",
            expected="train or validation",
        )  # fmt: skip
    held: set[str] = set(run.keys("holdout")) if run is not None else set()
    for asked in prompts_of_files(request.holdout, notify=notify) if request.holdout else ():
        if isinstance(asked, Asked):
            held.add(asked.key)
    system = run.config.data.system_prompt if run is not None else None
    found: Iterator[Asked | str]
    if request.prompts:
        found = prompts_of_files(request.prompts, request.row_format, system, notify)
        if run is not None:
            found = (asking_as_trained(item, run.config.data) for item in found)
    else:
        assert run is not None
        found = prompts_of_split(run.directory, run.prepared, request.split)
    return choose_prompts(chain(found), frozenset(held), train, request.limit)


def _load(directory: Path, run: RunFacts | None, notify: Notify) -> tuple[torch.nn.Module, str]:
    """The model in eval mode, in the type that the run computed in; float32 on a CPU and bfloat16 on a GPU without."""
    device = choose_device()
    known = known_compute(run.directory.path) if run is not None else None
    precision = known.precision if known is not None else "float32" if device.type == "cpu" else "bfloat16"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return load_trained(directory, dtype=dtype, device=device, attn_implementation="sdpa", notify=notify), precision
