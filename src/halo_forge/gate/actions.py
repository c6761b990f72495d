"""What to do next, by what went wrong and with which family of metrics, each with the command to type.

After seed 002's failure handling (loss high: data or more training; benchmarks low: model or data; unstable: learning
rate or batch size), the remedies of seed 003's table of data issues, and seed 004's list against forgetting.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from halo_forge.artifacts import Cause
from halo_forge.metrics import BENCH_PREFIX

Family = Literal["loss", "task", "format", "behaviour", "safety", "calibration", "retention", "benchmark"]

FAMILY_MARKS: tuple[tuple[Family, tuple[str, ...]], ...] = (
    ("task", ("json_match",)),  # wrong values in the right format are no matter of format
    ("retention", ("general_",)),
    ("safety", ("refus", "harm", "toxic", "pii", "policy", "jailbreak", "safety")),
    ("calibration", ("abst", "ece", "brier", "calibration", "unknown")),
    ("format", ("json", "schema", "markdown", "regex", "format", "compile")),
    ("behaviour", ("stop_rate", "answer_length", "repetition", "concise", "verbos", "instruction", "judge")),
    ("loss", ("perplexity", "loss")),
)
"""Family -> parts of metric names, the first that fits; a benchmark is known by its name, and the rest are tasks."""


@dataclass(frozen=True, slots=True)
class Action:
    """`command` has RUN for the run directory; words in capitals are the reader's to fill in."""

    words: str
    command: str

    def of(self, run: str) -> Action:
        return Action(self.words, re.sub(r"\bRUN\b", lambda _: shlex.quote(run), self.command))


def _train_again(*settings: str) -> str:
    return " ".join(["halo-forge run RUN/config.resolved.yaml --set output.dir=NEW", *(f"--set {s}" for s in settings)])


LOST: dict[Family, Action] = {
    "loss": Action(
        "the loss on held-out answers is high: look whether training was stable and had converged; then improve the "
        "data, or train longer",
        "halo-forge diagnose RUN",
    ),
    "task": Action(
        "the task is not learned well enough: review the data and the choice of the model, or train longer",
        _train_again("training.num_train_epochs=MORE"),
    ),
    "format": Action(
        "answers break their format: add rows with the exact format, and see that all rows keep to it",
        "halo-forge data show --config RUN/config.resolved.yaml",
    ),
    "behaviour": Action(
        "answers are not of the kind that is asked for: look at how the rows begin and end, whether the stop token is "
        "trained, and whether answers of one style stand beside another",
        "halo-forge data show --config RUN/config.resolved.yaml",
    ),
    "safety": Action(
        "the model does what it must not, or refuses what it should do: add rows that refuse, and harmless ones beside "
        "them that are answered",
        _train_again("data.train_file=MENDED"),
    ),
    "calibration": Action(
        "the model does not say that it does not know: add rows whose right answer is \"I don't know\", beside ones "
        "with the answer",
        _train_again("data.train_file=MENDED"),
    ),
    "retention": Action(
        "general abilities were lost: hold the model near its base, lower the learning rate, or mix general rows in "
        "(data.sources with replay: true)",
        _train_again("training.kl_to_base=0.1"),
    ),
    "benchmark": Action(
        "results are below what is expected: review the choice of the model, or mix general rows in (data.sources with "
        "replay: true)",
        _train_again("model.name=OTHER"),
    ),
}  # fmt: skip
"""When a value is on the wrong side of its limit."""

WORSE: dict[Family, Action] = {
    **LOST,
    "loss": Action(
        "held-out answers are not predicted better than before: look at the loss curve; if it is unstable, adjust the "
        "learning rate or the batch size; if it rises while the training loss falls, train shorter or on more data",
        "halo-forge diagnose RUN",
    ),
    "task": Action(
        "the tuned model is not enough better: look at the loss curve; if it is unstable, adjust the learning rate or "
        "the batch size, else improve the data or train longer",
        "halo-forge diagnose RUN",
    ),
    "benchmark": Action(
        "general abilities were lost: lower the learning rate, hold the model near its base, or mix general rows in "
        "(data.sources with replay: true)",
        _train_again("training.kl_to_base=0.1"),
    ),
}
"""When a change is on the wrong side of its limit."""

SINCE_RELEASE = Action(
    "something that was done since the release made it worse: see what changed in the rows, and read the answers that "
    "were lost (report.html)",
    "halo-forge data diff RELEASED_RUN RUN",
)
"""When a change against the released version is on the wrong side of its limit, whatever the metric."""

UNDECIDED: dict[Cause, Action] = {
    "too_few": Action(
        "evaluate more rows: a larger data.holdout_split, or rows of your own in data.holdout_file",
        _train_again("data.holdout_split=MORE"),
    ),
    "across": Action(
        "evaluate more rows: a larger data.holdout_split, or rows of your own in data.holdout_file",
        _train_again("data.holdout_split=MORE"),
    ),
    "not_measured": Action(
        "measure it, or remove the rule: give held-out rows that this metric applies to (data.holdout_file), and what "
        "it needs (evaluation.json_schema, a benchmark)",
        "halo-forge evaluate RUN",
    ),
    "failed": Action(
        "find out why: the note says what failed, eval/answers.jsonl has every answer; then evaluate again",
        "halo-forge evaluate RUN",
    ),
    "broken": Action(
        "both score 0, so nothing was there to be lost: look at the answers and how they are read, then evaluate again",
        "halo-forge evaluate RUN",
    ),
    "not_finite": Action(
        "correct the rule, or find out why this number is not finite, and evaluate again", "halo-forge diagnose RUN"
    ),
    "subsampled": Action(
        "measure all items: remove what limits them", "halo-forge evaluate RUN --set evaluation.max_prompts=null"
    ),
    "no_slice": Action(
        "name a slice that the evaluation reports, or hold rows of it out", "halo-forge gate RUN --rules OTHER.yaml"
    ),
    "no_release": Action(
        "nothing: the rule counts from the second version on", "halo-forge models list"
    ),
    "not_comparable": Action(
        "evaluate this run on the rows that the released version was evaluated on: its holdout as data.holdout_file",
        _train_again("data.holdout_file=HOLDOUT"),
    ),
    "no_direction": Action("use min and max for this metric", "halo-forge gate RUN --rules OTHER.yaml"),
}  # fmt: skip


_READ_ITEMS = Action(
    "the benchmark did not measure the model: look into eval/bench/items.jsonl at its answers, and run it again",
    "halo-forge bench run --run RUN --tasks NAMES",
)
UNDECIDED_BENCHMARK: dict[Cause, Action] = {
    "not_measured": Action(
        "run it, or name it in evaluation.benchmarks; what it needs stands in the note",
        "halo-forge bench run --run RUN --tasks NAMES",
    ),
    "failed": _READ_ITEMS,
    "broken": _READ_ITEMS,
    "too_few": Action("run more of its items", "halo-forge bench run --run RUN --tasks NAMES"),
    "across": Action(
        "its items are too few for this limit: widen the limit, or take a larger benchmark",
        "halo-forge gate RUN --rules OTHER.yaml",
    ),
    "subsampled": Action("run all its items, without a limit", "halo-forge bench run --run RUN --tasks NAMES"),
    "not_comparable": Action(
        "run it as for the released version: the same rows, examples and limit; a version published without it cannot "
        "be compared with, the next one can",
        "halo-forge bench run --run RUN --tasks NAMES",
    ),
}
"""The same of a benchmark, which the holdout has nothing to do with."""


def family_of(metric: str) -> Family:
    if metric.startswith(BENCH_PREFIX):
        return "benchmark"
    return next((family for family, marks in FAMILY_MARKS if any(mark in metric for mark in marks)), "task")


def action_for(metric: str, cause: Cause, run: str, against: Literal["base", "released"] = "base") -> Action | None:
    """What to do about a rule on `metric` whose verdict has this cause; None for a rule that held. `against`: what its
    change was measured from."""
    if cause == "held":
        return None
    if cause in ("below", "above"):
        return LOST[family_of(metric)].of(run)
    if cause in ("no_gain", "regressed"):
        if against == "released":
            return SINCE_RELEASE.of(run)
        return WORSE[family_of(metric)].of(run)
    of_benchmark = UNDECIDED_BENCHMARK.get(cause) if metric.startswith(BENCH_PREFIX) else None
    return (of_benchmark or UNDECIDED[cause]).of(run)
