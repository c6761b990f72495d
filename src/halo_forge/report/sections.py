"""What each section of the page says, as plain values; the template only lays them out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from halo_forge.artifacts import Comparison, PreparedData, RuleResult
from halo_forge.config.method_words import method_words
from halo_forge.config.schema import Config
from halo_forge.report.answers import DECISIVE_METRICS
from halo_forge.report.read_run import MaskSample, RunFiles
from halo_forge.report.row_totals import data_verdict, data_warnings
from halo_forge.report.wording import compact, count, duration, label_of, metric_value, number, plural, share, size

Tone = Literal["pass", "fail", "wait", "none"]
MAX_REASONS_IN_BANNER = 5
MASK_HEAD_TOKENS = 160
MASK_TAIL_TOKENS = 300
MAX_SOURCES_HASHED = 40
TONES: dict[str, Tone] = {"PASS": "pass", "FAIL": "fail", "INCONCLUSIVE": "wait"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLink:
    anchor: str
    title: str
    state: Literal["done", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A rule with the numbers it was held against, what would have turned it, and what to do about it."""

    rule: str
    verdict: str
    tone: Tone
    evidence: str
    turning_point: str
    next_action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    tone: Tone
    title: str
    lead: str
    reasons: tuple[Reason, ...]
    num_reasons_hidden: int
    is_forced: bool
    label: str = "Verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    label: str
    value: str
    before: str = ""  # the base's value, where the tile compares
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """Neighbouring tokens with one weight. `weight` is None for a mark that stands for tokens left out."""

    tokens: tuple[str, ...]
    weight: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskView:
    source: str
    num_tokens: int
    num_trained: int
    runs: tuple[TokenRun, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    key: str
    value: str
    origin: str


# ---------------------------------------------------------------------------------------------- head of the page


def stages(files: RunFiles) -> tuple[StageLink, ...]:
    if files.is_data_only:
        found = [("data", "Data", files), ("masks", "What is trained", files.masks), ("next", "Next", None)]
        return tuple(StageLink(anchor=a, title=title, state="done" if record else "open") for a, title, record in found)
    found = [
        ("data", "Data", files.prepared),
        ("masks", "What is trained", files.masks),
        ("training", "Training", files.trained),
        ("evaluation", "Base against tuned", files.evaluation),
        ("gate", "Gate", files.decision),
        ("release", "Release", files.release),
    ]
    return tuple(StageLink(anchor=a, title=title, state="done" if record else "open") for a, title, record in found)


def banner(files: RunFiles) -> Banner:
    decision = files.decision
    if files.is_data_only:
        return _data_banner(files)
    if decision is None:
        return Banner(
            tone="none",
            title="Not judged yet",
            lead=_unfinished_words(files),
            reasons=(),
            num_reasons_hidden=0,
            is_forced=False,
        )
    open_rules = tuple(rule for rule in decision.rules if rule.verdict != "PASS")
    num_rules, num_open = len(decision.rules), len(open_rules)
    lead = {
        "PASS": f"Every rule of the quality gate held: {num_rules} of {num_rules}."
        if not num_open
        else f"{num_rules - num_open} of {num_rules} rules of the quality gate held; {num_open} could not be decided "
        "and do not hold the verdict back.",
        "FAIL": f"{sum(rule.verdict == 'FAIL' for rule in open_rules)} of {num_rules} rules of the quality gate did "
        "not hold.",
        "INCONCLUSIVE": f"The evidence does not decide {num_open} of {num_rules} rules of the quality gate.",
    }[decision.verdict]
    told = open_rules or decision.rules
    return Banner(
        tone=TONES[decision.verdict],
        title=decision.verdict,
        lead=lead,
        reasons=tuple(_reason(rule) for rule in told[:MAX_REASONS_IN_BANNER]),
        num_reasons_hidden=max(0, len(told) - MAX_REASONS_IN_BANNER),
        is_forced=files.release is not None and files.release.forced,
    )


def _data_banner(files: RunFiles) -> Banner:
    train = files.prepared.splits.get("train") if files.prepared else None
    warnings = data_warnings(files)
    tone: Tone = "fail" if not train or not train.rows else "wait" if warnings else "pass"
    title = {
        "pass": "Ready to train",
        "wait": "Ready to train, with a warning",
        "fail": "Stopped before anything was prepared" if train is None else "Nothing to train on",
    }[tone]
    return Banner(
        tone=tone,
        title=title,
        lead=" ".join((data_verdict(files), *warnings)),
        reasons=(),
        num_reasons_hidden=0,
        is_forced=False,
        label="Data",
    )


def _reason(rule: RuleResult) -> Reason:
    """The gate ends a rule's reason with what would have turned it; without such a sentence the whole reason stands."""
    _, mark, turning_point = rule.reason.rpartition(". It would have ")
    return Reason(
        rule=rule.rule,
        verdict=rule.verdict,
        tone=TONES[rule.verdict],
        evidence=rule.evidence if mark else f"{rule.reason} ({rule.evidence})",
        turning_point=f"It would have {turning_point}" if mark else "",
        next_action=rule.next_action or "",
    )


def _unfinished_words(files: RunFiles) -> str:
    done = [stage.title.lower() for stage in stages(files) if stage.state == "done"]
    if not done:
        return "Nothing has been recorded in this run directory so far."
    return f"The run has recorded: {', '.join(done)}. The gate has not spoken."


def headline(files: RunFiles) -> tuple[Tile, ...]:
    tiles = []
    if files.evaluation is not None:
        for row in _headline_rows(files.evaluation.overall):
            tiles.append(
                Tile(
                    label=label_of(row.metric),
                    value=metric_value(row.metric, row.tuned.value),
                    before=metric_value(row.metric, row.base.value),
                    note=f"base → tuned, {count(row.tuned.n)} unseen rows",
                )
            )
    if files.prepared is not None and "train" in files.prepared.splits:
        tiles += _data_tiles(files.prepared, files.is_data_only)
    if files.trained is not None:
        trained = files.trained
        tiles.append(
            Tile(
                label="Training time",
                value=duration(trained.train_time_s),
                note=f"{number(trained.tokens_per_s)} tokens/s on {trained.device}, {size(trained.peak_memory_bytes)}",
            )
        )
    return tuple(tiles)


def _data_tiles(prepared: PreparedData, is_data_only: bool) -> list[Tile]:
    split = prepared.splits["train"]
    if not is_data_only:
        note = f"{count(split.supervised_tokens)} tokens"
        return [Tile(label="Trained on", value=f"{count(split.rows)} rows", note=note)]
    unseen = [f"{count(part.rows)} {name}" for name, part in prepared.splits.items() if name != "train"]
    trained_share = share(split.supervised_tokens / max(split.tokens, 1), 0)
    tiles = [
        Tile(label="To train on", value=plural(split.rows, "row"), note=", ".join(unseen)),
        Tile(label="Training tokens", value=compact(split.tokens), note=f"{trained_share} of them trained"),
    ]
    if {"p50", "max"} <= set(prepared.token_lengths):
        longest = f"longest {count(prepared.token_lengths['max'])}, limit {count(prepared.max_seq_length)}"
        tiles.append(Tile(label="Usual length", value=f"{count(prepared.token_lengths['p50'])} tokens", note=longest))
    if prepared.prepare_time_s > 0:
        rate = sum(source.read for source in prepared.sources) / prepared.prepare_time_s
        tiles.append(
            Tile(label="Prepared in", value=duration(prepared.prepare_time_s), note=f"{number(rate)} rows a second")
        )
    return tiles


def next_lines(files: RunFiles) -> tuple[str, ...]:
    """The command that goes on from prepared rows, where the configuration was recorded."""
    if files.prepared is None or not (files.path / "config.resolved.yaml").is_file():
        return ()
    return (f"halo-forge run {shlex.quote(str(files.path / 'config.resolved.yaml'))}",)


def slice_rows(files: RunFiles) -> tuple[Comparison, ...]:
    """The headline's metrics over each slice."""
    if files.evaluation is None:
        return ()
    metrics = [row.metric for row in _headline_rows(files.evaluation.overall)]
    slices = [row for row in files.evaluation.comparisons if row.slice != "all"]
    return tuple(row for metric in metrics for row in slices if row.metric == metric)


def _headline_rows(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The most telling share and the perplexity, where they were measured."""
    measured = {row.metric: row for row in comparisons if row.tuned.value is not None and row.base.value is not None}
    decisive = [measured[name] for name in DECISIVE_METRICS if name in measured][:1]
    return [*decisive, *([measured["perplexity"]] if "perplexity" in measured else [])]


# ---------------------------------------------------------------------------------------------- masks


def mask_views(samples: Sequence[MaskSample]) -> tuple[MaskView, ...]:
    return tuple(
        MaskView(
            source=sample.source,
            num_tokens=len(sample.tokens),
            num_trained=sum(weight > 0 for weight in sample.weights),
            runs=_token_runs(sample),
            images=sample.images,
        )
        for sample in samples
    )


def _token_runs(sample: MaskSample) -> tuple[TokenRun, ...]:
    pairs = list(zip(sample.tokens, sample.weights, strict=True))
    num_hidden = len(pairs) - MASK_HEAD_TOKENS - MASK_TAIL_TOKENS
    if num_hidden <= 0:
        return tuple(_runs(pairs))
    gap = TokenRun(tokens=(f" … {num_hidden:,} tokens not shown … ",), weight=None)
    return (*_runs(pairs[:MASK_HEAD_TOKENS]), gap, *_runs(pairs[-MASK_TAIL_TOKENS:]))


def _runs(pairs: Sequence[tuple[str, float]]) -> list[TokenRun]:
    runs: list[TokenRun] = []
    start = 0
    for index in range(1, len(pairs) + 1):
        if index == len(pairs) or pairs[index][1] != pairs[start][1]:
            tokens = tuple(token.replace("\n", "↵\n") for token, _ in pairs[start:index])
            runs.append(TokenRun(tokens=tokens, weight=pairs[start][1]))
            start = index
    return runs


# ---------------------------------------------------------------------------------------------- training


def training_facts(files: RunFiles) -> tuple[tuple[str, str], ...]:
    trained = files.trained
    if trained is None:
        return ()
    training = _config_section(files, "training")
    try:
        method = method_words(Config.model_validate(files.info.get("config")), trained.method)
    except ValidationError:  # of another version of the tool, or of nobody
        method = trained.method
    per_step = training.get("per_device_train_batch_size", 0) * training.get("gradient_accumulation_steps", 0)
    best = number(trained.best_validation_loss, 4)
    facts = [
        ("Base model", trained.model_name),
        ("Method", method),
        ("Trained parameters", f"{compact(trained.num_trainable_parameters)} of {compact(trained.num_parameters)}"
         f" ({share(trained.num_trainable_parameters / max(trained.num_parameters, 1), 2)})"),
        ("Optimizer steps", f"{count(trained.num_steps)}, {plural(trained.num_epochs, 'epoch')}"
         + (f", {count(per_step)} rows a step" if per_step else "")),
        ("Ended because", {"finished": "all epochs were done", "max_steps": "max_steps was reached",
                           "early_stopping": "validation stopped improving"}[trained.stop_reason]),
        ("Weights of step", f"{count(trained.final_step)} of {count(trained.num_steps)}"),
        ("Training loss", f"{number(trained.train_loss, 4)} nats per trained token"),
        ("Validation loss", f"{number(trained.validation_loss, 4)} at the end, {best} at best"
         if trained.validation_loss is not None else "not measured"),
        ("Tokens seen", f"{count(trained.num_tokens)}, {count(trained.num_supervised_tokens)} of them trained"),
        ("Speed", f"{number(trained.tokens_per_s)} tokens/s, {duration(trained.train_time_s)} in all"),
        ("Peak memory", size(trained.peak_memory_bytes)),
        ("Computed on", f"{trained.device}, {trained.precision}, attention: {trained.attention}"),
    ]  # fmt: skip
    return tuple(facts)


def _config_section(files: RunFiles, name: str) -> dict[str, Any]:
    config = files.info.get("config")
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


# ---------------------------------------------------------------------------------------------- lineage


def fingerprints(files: RunFiles) -> tuple[tuple[str, str], ...]:
    """(what, sha256) along the pipeline: each was made from the ones before it."""
    rows: list[tuple[str, str]] = []
    if files.prepared is not None:
        sources = files.prepared.sources
        rows += [(f"source {source.path}", source.sha256) for source in sources[:MAX_SOURCES_HASHED]]
        if len(sources) > MAX_SOURCES_HASHED:
            told = f"{len(sources) - MAX_SOURCES_HASHED} more sources"
            rows.append((told, "in data/manifest.json"))
        rows += [(f"{name} split", split.sha256) for name, split in files.prepared.splits.items()]
        rows += [
            ("chat template", files.prepared.template_sha256),
            ("tokenizer", files.prepared.tokenizer_sha256),
        ]
    if files.trained is not None:
        rows += [
            ("configuration", files.trained.provenance.config_sha256),
            ("trained weights", files.trained.weights_sha256),
        ]
    if files.decision is not None:
        rows.append(("evaluation report", files.decision.report_sha256))
    if files.release is not None:
        rows.append((f"release manifest, v{files.release.version}", files.release.manifest_sha256))
    return tuple(rows)


def config_rows(files: RunFiles) -> tuple[Setting, ...]:
    """Every key of the resolved configuration with where its value came from, as far as run.json tells."""
    config, origins = files.info.get("config"), files.info.get("origins")
    known = origins if isinstance(origins, dict) else {}
    rows = []
    for section, values in config.items() if isinstance(config, dict) else ():
        for key, value in values.items() if isinstance(values, dict) else ():
            dotted = f"{section}.{key}"
            rows.append(Setting(key=dotted, value=_flow_yaml(value), origin=str(known.get(dotted, ""))))
    return tuple(rows)


def chosen_settings(files: RunFiles) -> tuple[Setting, ...]:
    """The settings that somebody chose: all that are not defaults."""
    return tuple(row for row in config_rows(files) if row.origin and not row.origin.startswith("default"))


def _flow_yaml(value: Any) -> str:
    text = yaml.safe_dump(_without_nulls(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _without_nulls(value: Any) -> Any:
    """A rule's bounds that are not set only stand in the way of those that are."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def reproduce_lines(files: RunFiles) -> tuple[str, ...]:
    """Commands: the one that made this run, and one that makes it again somewhere else from what is recorded."""
    lines = []
    command = files.info.get("command")
    if isinstance(command, list) and all(isinstance(part, str) for part in command):
        lines.append(shlex.join(command))
    if (files.path / "config.resolved.yaml").is_file():
        config = shlex.quote(str(files.path / "config.resolved.yaml"))
        lines.append(f"halo-forge run {config} --set output.dir=runs/again")
    return tuple(lines)
