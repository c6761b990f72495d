"""Everything the report is made of, read from a run directory in whatever state it is.

A stage that did not run leaves None or an empty list. A file that is there and cannot be read leaves a sentence in
`problems`, which the page shows: a broken record must not look like a stage that never ran.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from halo_forge.artifacts import Artifact, EvalReport, GateDecision, PreparedData, Release, TrainedModel
from halo_forge.diagnosis import Diagnosis, Series, curves_of, diagnose_lines
from halo_forge.errors import DataError
from halo_forge.report.ledger_digest import LedgerDigest, read_ledger
from halo_forge.runs import RunDirectory, read_artifact

if TYPE_CHECKING:
    from halo_forge.chat.records import Medium

_SUITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
ArtifactType = TypeVar("ArtifactType", bound=Artifact)


@dataclass(frozen=True, slots=True)
class Point:
    step: int
    value: float


@dataclass(slots=True)
class Metrics:
    """Series of metrics.jsonl by optimizer step. Values that are not finite are counted, not drawn."""

    train_loss: list[Point] = field(default_factory=list)
    validation_loss: list[Point] = field(default_factory=list)
    learning_rate: list[Point] = field(default_factory=list)
    num_nonfinite: int = 0
    train_sources: dict[str, list[Point]] = field(default_factory=dict)
    validation_sources: dict[str, list[Point]] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """What the model said to a validation prompt while it trained."""

    step: int
    prompt: str
    answer: str
    reference: str
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSample:
    """Tokens of one training example as text, with each token's loss weight."""

    source: str
    tokens: tuple[str, ...]
    weights: tuple[float, ...]
    images: tuple[str, ...] = ()  # small copies of what is seen, as data: addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAnswer:
    text: str
    stopped: bool
    num_tokens: int
    scores: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredItem:
    id: str
    prompt: str
    reference: str
    base: GivenAnswer
    tuned: GivenAnswer
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose yes/no score changed. `line` of answers.jsonl, from 1."""

    metric: str
    won: bool
    id: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAnswer:
    """A reason is empty where the answer did not fail. Items that are scored by likelihood have no text."""

    id: str
    kind: str
    question: str
    base_text: str
    base_reason: str
    tuned_text: str
    tuned_reason: str


@dataclass(slots=True, kw_only=True)
class RunFiles:
    path: Path
    info: dict[str, Any] = field(default_factory=dict)  # run.json
    prepared: PreparedData | None = None
    trained: TrainedModel | None = None
    evaluation: EvalReport | None = None
    decision: GateDecision | None = None
    release: Release | None = None
    metrics: Metrics = field(default_factory=Metrics)
    masks: list[MaskSample] = field(default_factory=list)
    answers: list[AnsweredItem] = field(default_factory=list)
    flips: list[Flip] = field(default_factory=list)
    samples: list[SampleAnswer] = field(default_factory=list)
    suite_answers: dict[str, list[SuiteAnswer]] = field(default_factory=dict)
    ledger: LedgerDigest = field(default_factory=LedgerDigest)
    problems: list[str] = field(default_factory=list)

    @property
    def is_data_only(self) -> bool:
        """Rows were read and nothing was done with them yet, not even something that left an unreadable record."""
        later = ("trained.json", "metrics.jsonl", "eval/report.json", "gate.json", "release.json")
        has_rows = self.prepared is not None or self.ledger.is_there
        return has_rows and not any((self.path / name).exists() for name in later)


def read_run(run: RunDirectory) -> RunFiles:
    """Never raises for the content of a file."""
    files = RunFiles(path=run.path)
    files.info = _json_object(run.file("run.json"), files.problems)
    files.prepared = _record(run.file("data/manifest.json"), PreparedData, files.problems)
    files.trained = _record(run.file("trained.json"), TrainedModel, files.problems)
    files.evaluation = _record(run.file("eval/report.json"), EvalReport, files.problems)
    files.decision = _record(run.file("gate.json"), GateDecision, files.problems)
    files.release = _record(run.file("release.json"), Release, files.problems)
    files.metrics = read_metrics(run.file("metrics.jsonl"), files.problems)
    files.masks = _read_masks(run.file("data/mask_samples.json"), files.problems)
    files.answers = _read_answers(run.file("eval/answers.jsonl"), files.problems)
    files.flips = _read_flips(run.file("eval/flips.jsonl"), files.problems)
    files.samples = _read_samples(run.file("samples.jsonl"), files.problems)
    for suite in files.evaluation.suites if files.evaluation else ():
        if _SUITE_NAME.fullmatch(suite.name):  # a record from elsewhere must not name files outside eval/suites
            found = _read_suite_answers(run.file(f"eval/suites/{suite.name}.jsonl"), files.problems)
            files.suite_answers[suite.name] = found
    files.ledger = read_ledger(run.file("data/ledger.jsonl"), files.problems)
    return files


def _record(path: Path, kind: type[ArtifactType], problems: list[str]) -> ArtifactType | None:
    if not path.is_file():
        return None
    try:
        return read_artifact(path, kind)
    except (DataError, OSError):
        problems.append(f"{path.name} is not a {kind.__name__} record; its section shows nothing from it")
        return None


def _json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    value = _json(path, problems)
    return value if isinstance(value, dict) else {}


def _json(path: Path, problems: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        problems.append(f"{path.name} is not JSON; nothing of it is shown")
        return None


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. A torn last line is what a killed writer leaves and is passed over in silence."""
    if not path.is_file():
        return
    num_bad = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.endswith(b"\n") and line.strip():
                    num_bad += 1
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
    if num_bad:
        problems.append(f"{num_bad} lines of {path.name} cannot be read; nothing of them is shown")


def read_metrics(path: Path, problems: list[str]) -> Metrics:
    rows = list(_lines(path, problems))
    curves = curves_of(rows)
    metrics = Metrics(
        train_loss=_points(curves.loss),
        validation_loss=_points(curves.validation),
        learning_rate=_points(curves.learning_rate),
        num_nonfinite=len(curves.nonfinite_steps),
        train_sources={name: _points(series) for name, series in curves.sources.items()},
        validation_sources={name: _points(series) for name, series in curves.validation_sources.items()},
    )
    if rows:
        metrics.diagnosis = diagnose_lines(path.parent, rows)
    return metrics


def _points(series: Series) -> list[Point]:
    return [Point(step, value) for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True)]


def _read_samples(path: Path, problems: list[str]) -> list[SampleAnswer]:
    samples, num_bad = [], 0
    for row in _lines(path, problems):
        try:
            texts = {name: _text(row[name]) for name in ("prompt", "answer", "reference")}
            samples.append(SampleAnswer(step=int(row["step"]), stopped=bool(row.get("stopped")), **texts))
        except (TypeError, ValueError, KeyError, OverflowError):
            num_bad += 1
    if num_bad:
        problems.append(f"{num_bad} lines of {path.name} are not sample answers; they are left out")
    return samples


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_masks(path: Path, problems: list[str]) -> list[MaskSample]:
    rows = _json(path, problems)
    samples = []
    for row in rows if isinstance(rows, list) else []:
        try:
            tokens, weights = tuple(map(str, row["tokens"])), tuple(map(float, row["weights"]))
            source = str(row.get("source") or f"row {str(row.get('id', ''))[:12]}")
            images = tuple(str(address) for address in row.get("images", []) if _is_picture(address))
        except (TypeError, ValueError, KeyError, AttributeError):
            problems.append(f"a sample in {path.name} cannot be read")
            continue
        if tokens and len(tokens) == len(weights):
            samples.append(MaskSample(source=source, tokens=tokens, weights=weights, images=images))
    return samples


def _is_picture(address: Any) -> bool:
    """The file lies in a run directory that anybody may have written: only a picture in the address itself is shown."""
    return isinstance(address, str) and address.startswith("data:image/png;base64,") and len(address) < 2**17


def _read_answers(path: Path, problems: list[str]) -> list[AnsweredItem]:
    items = []
    num_bad = 0
    for row in _lines(path, problems):
        try:
            items.append(
                AnsweredItem(
                    id=str(row["id"]),
                    prompt=_text(row["prompt"]),
                    reference=_text(row["reference"]),
                    base=_answer(row["base"]),
                    tuned=_answer(row["tuned"]),
                    media=_media(row.get("media", ())),
                )
            )
        except (TypeError, ValueError, KeyError, AttributeError):
            num_bad += 1
    if num_bad:
        problems.append(f"{num_bad} lines of {path.name} are not answers of base and tuned; they are left out")
    return items


def _media(rows: Iterable[Mapping[str, Any]]) -> tuple[Medium, ...]:
    if not rows:  # the record lies with what reads Arrow files, and a page of texts does without
        return ()
    from halo_forge.chat.records import Medium

    return tuple(Medium(kind=row["kind"], path=str(row["path"]), sha256=str(row["sha256"])) for row in rows)


def _read_flips(path: Path, problems: list[str]) -> list[Flip]:
    flips, num_bad = [], 0
    for row in _lines(path, problems):
        try:
            outcome = {"won": True, "lost": False}[row["outcome"]]
            flips.append(Flip(str(row["metric"]), outcome, str(row["id"]), int(row["line"])))
        except (TypeError, ValueError, KeyError, OverflowError):
            num_bad += 1
    if num_bad:
        problems.append(f"{num_bad} lines of {path.name} say of no answer that it was won or lost; they are left out")
    return flips


def _read_suite_answers(path: Path, problems: list[str]) -> list[SuiteAnswer]:
    answers, num_bad = [], 0
    for row in _lines(path, problems):
        try:
            sides = {
                f"{side}_{key}": _text(row[side].get(key) or "")
                for side in ("base", "tuned")
                for key in ("text", "reason")
            }
            answers.append(
                SuiteAnswer(id=str(row["id"]), kind=str(row["kind"]), question=_text(row["question"]), **sides)
            )
        except (TypeError, KeyError, AttributeError):
            num_bad += 1
    if num_bad:
        problems.append(f"{num_bad} lines of {path.name} are not answers to a suite; they are left out")
    return answers


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _answer(row: dict[str, Any]) -> GivenAnswer:
    scores = {str(name): float(score) for name, score in row.get("scores", {}).items() if _is_finite(score)}
    return GivenAnswer(
        text=_text(row["text"]),
        stopped=bool(row.get("stopped")),
        num_tokens=int(row.get("num_tokens", 0)),
        scores=scores,
    )
