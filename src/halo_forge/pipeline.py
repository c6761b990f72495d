"""The whole system, stages in order. Each stage reads the records before it and writes its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from halo_forge.artifacts import EvalReport, GateDecision, JudgeReport, PreparedData, Release, TrainedModel
from halo_forge.chat import read_conversations, read_examples, token_view, view_as_ansi
from halo_forge.config import Config, ResolvedConfig, load_config
from halo_forge.data import load_prepared, prepare
from halo_forge.data.holdout import record_use, uses
from halo_forge.data.prepared_store import store_directory
from halo_forge.errors import DataError, HaloForgeError, storage_in_words
from halo_forge.evaluate import check_evaluation, evaluate
from halo_forge.evaluate.judge import judge_run
from halo_forge.evaluate.judge_client import JudgeClient
from halo_forge.evaluate.local_judge import LocalJudge
from halo_forge.gate import require_known_metrics
from halo_forge.launch import Launch, run_workers
from halo_forge.media.images import thumbnails
from halo_forge.metrics import scorer_names
from halo_forge.models.compute import Compute, known_compute, recall_compute, release_memory
from halo_forge.models.new_tokens import new_token_ids, tokenizer_of
from halo_forge.models.pair import ModelPair
from halo_forge.models.precision import apply_platform_settings
from halo_forge.publish import prove_reload, publish
from halo_forge.report import write_report
from halo_forge.runs import (
    Notify,
    RunDirectory,
    StopSignal,
    claim,
    read_artifact,
    silent,
    write_artifact,
    write_json,
)
from halo_forge.train import check_method, finished_training, step_counts, train
from halo_forge.train.planning.forecast import Forecast, forecast
from halo_forge.train.planning.workload import row_sizes
from halo_forge.train.watching.trackers import require_trackers
from halo_forge.verdict import judge_evaluation

Stage = Literal["data", "train", "evaluate", "gate", "publish"]
SHOWN_MASKS = 3
KEPT_MASKS = 20


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What a run left behind. Stages that did not run are None."""

    directory: Path
    prepared: PreparedData | None = None
    trained: TrainedModel | None = None
    report: EvalReport | None = None
    decision: GateDecision | None = None
    release: Release | None = None
    page: Path | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """Where a training starts from, and in how many processes."""

    resume_from: Path | None = None
    launch: Launch | None = None


def run(
    config: Config | ResolvedConfig | str | Path,
    *,
    until: Stage = "publish",
    fresh: bool = False,
    resume_from: Path | None = None,
    launch: Launch | None = None,
    notify: Notify = silent,
) -> RunResult:
    """Raw rows in; prepared data, a trained model, its evaluation against the base, a verdict and a version out.

    config       a Config, a resolved one, or the path of a YAML file
    until        the last stage to run; `publish` releases only what passed the gate
    fresh        start over in the output directory instead of going on
    resume_from  a checkpoint of this run to go back to
    launch       train in several processes; on other nodes than the first that is all that happens
    Called again it goes on where it stopped: finished stages are read, not repeated. Raises HaloForgeError.
    """
    resolved = for_this_machine(resolve(config), notify)
    settings = resolved.config
    require_known_metrics(settings.gate, scorer_names(settings.evaluation.scorers))
    check_evaluation(settings)
    check_method(settings)
    require_trackers(settings.output.trackers)
    if launch is not None and launch.node_rank > 0:
        notify("note", {"text": f"node {launch.node_rank} waits for node 0 at {launch.rdzv_endpoint}"})
        run_workers(launch, Path(settings.output.dir))
        return RunResult(directory=Path(settings.output.dir))
    with (
        StopSignal() as stop,
        storage_in_words(Path(settings.output.dir)),
        RunDirectory.open(Path(settings.output.dir)) as directory,
    ):
        claim(directory, resolved, fresh=fresh)
        result = RunResult(directory=directory.path)
        try:
            run_stages(settings, directory, result, until, Training(resume_from, launch), notify, stop.check)
        except HaloForgeError:
            with suppress(OSError):  # the page of a run that stopped must not hide why it stopped
                write_report(directory)
            raise
        result.page = write_report(directory, looks_at_holdout(result.prepared))
        return result


def run_stages(
    settings: Config,
    directory: RunDirectory,
    result: RunResult,
    until: Stage,
    training: Training,
    notify: Notify,
    check: Callable[[], None],
) -> None:
    """The pipeline itself: every stage reads what is in `result` and adds its own record."""
    notify("stage", {"name": "data", "title": "rows become examples"})
    tokenizer = tokenizer_of(settings.model, notify)
    result.prepared = prepared = prepare(settings, directory, tokenizer, notify, check)
    notify("stage.done", {"record": prepared})
    show_masks(directory, prepared, tokenizer, notify)
    check()
    if until == "data":
        return

    notify("stage", {"name": "train", "title": f"{settings.model.name} learns"})
    compute = recall_compute(directory, settings.training.bf16, notify)
    finished = None if training.resume_from else finished_training(settings, directory, prepared, compute)
    if finished is None and training.launch is not None:
        notify("note", {"text": f"{training.launch.num_processes} processes train"})
        run_workers(training.launch, directory.path, training.resume_from)
        finished = read_artifact(directory.file("trained.json"), TrainedModel)
    result.trained = trained = finished or train(
        settings, directory, prepared, tokenizer,
        compute=compute, resume_from=training.resume_from, notify=notify, check=check,
    )  # fmt: skip
    release_memory(compute.device)
    notify("stage.done", {"record": trained})
    if until == "train" or not settings.evaluation.enabled:
        return

    notify("stage", {"name": "evaluate", "title": "base and tuned answer the same unseen prompts"})
    pair = model_pair(settings, directory, trained, compute, notify)
    result.report = evaluate(settings, directory, prepared, trained, pair, tokenizer, notify, check)
    pair.close()
    record_look(prepared, directory, notify)
    notify("stage.done", {"record": result.report})
    if settings.judge.is_on:
        ask_judge(settings, directory, result.report, notify, check)
    if until == "evaluate":
        return

    result.decision = judge(settings, directory, result.report, notify)
    if until == "publish" and settings.publish.enabled and may_publish(settings, result.decision):
        result.release = release(settings, directory, result, notify)


def train_as_worker(
    run: Path,
    sharding: Mapping[str, Any],
    *,
    resume_from: Path | None,
    notify: Notify,
    check: Callable[[], None],
) -> None:
    """The training stage of a run whose directory another process holds, as one of several workers.

    sharding  fields of `Compute`: shard, shard_size, sharded_checkpoints
    """
    directory = RunDirectory(run)
    settings = Config.model_validate(json.loads(directory.file("run.json").read_bytes())["config"])
    compute = recall_compute(directory, settings.training.bf16)
    train(
        settings, directory, load_prepared(directory), tokenizer_of(settings.model),
        compute=replace(compute, **sharding),
        resume_from=resume_from, notify=notify, check=check,
    )  # fmt: skip


def resolve(config: Config | ResolvedConfig | str | Path) -> ResolvedConfig:
    if isinstance(config, ResolvedConfig):
        return config
    return ResolvedConfig.of(config) if isinstance(config, Config) else load_config(config)


def for_this_machine(resolved: ResolvedConfig, notify: Notify) -> ResolvedConfig:
    """The configuration with what this platform demands (Strix Halo: no loader workers, no pinned memory)."""
    settings, told = apply_platform_settings(resolved.config)
    for sentence in told:
        notify("note", {"text": sentence})
    return replace(resolved, config=settings)


def record_look(prepared: PreparedData, directory: RunDirectory, notify: Notify) -> None:
    """Count this look at the holdout. A cache that cannot be written is told, and stops nobody."""
    try:
        used = record_use(prepared.splits["holdout"].sha256, "evaluate", str(directory.path), holdout_log_directory())
    except DataError as error:
        notify("note", {"text": f"this look at the holdout could not be counted: {error.what}"})
    else:
        notify("note", {"text": used.words()})


def looks_at_holdout(prepared: PreparedData | None) -> str:
    """How often the holdout was looked at, in words; empty where nobody has."""
    if prepared is None:
        return ""
    try:
        used = uses(prepared.splits["holdout"].sha256, holdout_log_directory())
    except DataError:
        return ""
    return used.words() if used.num else ""


def holdout_log_directory() -> Path:
    return store_directory().parent


def ask_judge(
    settings: Config, directory: RunDirectory, report: EvalReport, notify: Notify, check: Callable[[], None]
) -> JudgeReport:
    """Have another model compare the answers; the gate reads what it says beside the report."""
    judge: JudgeClient | LocalJudge
    if settings.judge.endpoint is not None:
        notify("note", {"text": f"held-out prompts and answers are sent to {settings.judge.endpoint} to be judged"})
        judge = JudgeClient(settings.judge, check)
    else:
        judge = LocalJudge(settings.judge, recall_compute(directory, settings.training.bf16, notify), check)
    judged = judge_run(settings, directory, report, judge.ask, notify)
    notify("note", {"text": judged.words()})
    return judged


def judge(settings: Config, directory: RunDirectory, report: EvalReport, notify: Notify) -> GateDecision:
    notify("stage", {"name": "gate", "title": "is it better, and is that proven?"})
    decision = judge_evaluation(settings, directory, report)
    write_artifact(directory.file("gate.json"), decision)
    notify("stage.done", {"record": decision})
    return decision


def may_publish(settings: Config, decision: GateDecision) -> bool:
    return decision.verdict == "PASS" or settings.publish.force


def release(settings: Config, directory: RunDirectory, result: RunResult, notify: Notify) -> Release:
    notify("stage", {"name": "publish", "title": "a version with its lineage"})
    published = publish(
        settings, directory, result.trained, result.report, result.decision, result.prepared,
        notify=notify, prove=prove_reload,
    )  # fmt: skip
    write_artifact(directory.file("release.json"), published)
    notify("stage.done", {"record": published})
    return published


def publish_run(config: Config | ResolvedConfig | str | Path, notify: Notify = silent) -> Release:
    """Publish a finished run from the records in its directory. Raises HaloForgeError without a PASS or `force`."""
    settings = resolve(config).config
    with RunDirectory.open(Path(settings.output.dir)) as directory:
        result = RunResult(
            directory=directory.path,
            prepared=load_prepared(directory),
            trained=read_artifact(directory.file("trained.json"), TrainedModel),
            report=read_artifact(directory.file("eval/report.json"), EvalReport),
            decision=read_artifact(directory.file("gate.json"), GateDecision),
        )
        published = release(settings, directory, result, notify)
        write_report(directory)
        return published


def model_pair(
    settings: Config, directory: RunDirectory, trained: TrainedModel, compute: Compute, notify: Notify = silent
) -> ModelPair:
    """The base and the tuned model of a run, as its files hold them."""
    final_model = directory.file(trained.final_model)
    model = settings.model
    token_ids = new_token_ids(tokenizer_of(model), model) if model.add_tokens or model.add_special_tokens else []
    return ModelPair(model.name, model.revision, final_model, trained.method, compute, notify, token_ids)


def show_masks(
    directory: RunDirectory, prepared: PreparedData, tokenizer: PreTrainedTokenizerBase, notify: Notify
) -> None:
    """Keep the tokens and weights of some real rows for the report, and show the first ones."""
    split = prepared.splits["train"]
    examples = read_examples(directory.file(split.examples))
    chosen = [examples[i] for i in range(min(KEPT_MASKS, len(examples)))]
    conversations = read_conversations(directory.file(split.conversations), limit=KEPT_MASKS)
    sources = {c.id: f"{c.source.path}:{c.source.line}" for c in conversations}
    samples = []
    for example in chosen:
        views = token_view(example, tokenizer)
        samples.append(
            {
                "id": example.conversation_id,
                "source": sources.get(example.conversation_id, ""),
                "tokens": [view.text for view in views],
                "weights": [view.weight for view in views],
                **({"images": shown} if (shown := thumbnails(example.media)) else {}),
            }
        )
    write_json(directory.file("data/mask_samples.json"), samples)
    blocks = [view_as_ansi(token_view(example, tokenizer), color=True) for example in chosen[:SHOWN_MASKS]]
    notify(
        "masks", {"title": f"{len(blocks)} rows as the model sees them; marked tokens are trained", "blocks": blocks}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do, from the data as it is; nothing was trained."""

    prepared: PreparedData
    num_steps: int
    examples_per_step: int
    num_epochs: float

    def words(self) -> str:
        train_tokens = self.prepared.splits["train"].tokens
        return (
            f"{self.prepared.splits['train'].rows} examples, {self.examples_per_step} a step: {self.num_steps} steps, "
            f"{self.num_epochs:g} epochs, about {int(train_tokens * self.num_epochs):,} tokens. Nothing was trained."
        )


def plan(config: Config | ResolvedConfig | str | Path, *, num_processes: int = 1, notify: Notify = silent) -> Plan:
    """Check the configuration, the rows and the masks in a temporary directory. Raises what `run` would raise."""
    resolved = resolve(config)
    settings = resolved.config
    require_known_metrics(settings.gate, scorer_names(settings.evaluation.scorers))
    check_evaluation(settings)
    check_method(settings)
    require_trackers(settings.output.trackers)
    with tempfile.TemporaryDirectory() as scratch, RunDirectory.open(Path(scratch)) as directory:
        tokenizer = tokenizer_of(settings.model, notify)
        prepared = prepare(settings, directory, tokenizer, notify=notify)
        notify("stage.done", {"record": prepared})
        show_masks(directory, prepared, tokenizer, notify)
        num_steps, examples_per_step, num_epochs = step_counts(settings, prepared.splits["train"].rows, num_processes)
    return Plan(
        prepared=prepared, num_steps=num_steps, examples_per_step=examples_per_step, num_epochs=round(num_epochs, 4)
    )


def foresee(
    config: Config | ResolvedConfig | str | Path, *, read_rows: bool = True, notify: Notify = silent
) -> Forecast:
    """What a run would need, and what to change where it does not fit. No weights are loaded, nothing is trained.

    read_rows  prepare the rows (kept in the prepared store, so the run does not prepare them again); False takes every
               row to be data.max_seq_length long and leaves steps and time unknown. Also False where no rows are named.
    """
    resolved = for_this_machine(resolve(config), notify)
    settings = resolved.config
    output = Path(settings.output.dir)
    with tempfile.TemporaryDirectory() as scratch, RunDirectory.open(Path(scratch)) as directory:
        rows = None
        if read_rows and settings.data.names_rows:
            tokenizer = tokenizer_of(settings.model, notify)
            prepared = prepare(settings, directory, tokenizer, notify=notify)
            rows = row_sizes(directory.path, prepared)
        earlier = output if (output / "compute.json").is_file() else None
        compute = known_compute(earlier) or recall_compute(directory, settings.training.bf16)
        return forecast(settings, rows, compute, directory=earlier or directory.path)


__all__ = ["HaloForgeError", "Plan", "RunResult", "Stage", "foresee", "model_pair", "plan", "publish_run", "run"]
