"""Next actions: every cause has one, each with a command that the command line knows and keys that exist."""

from __future__ import annotations

import shlex
from typing import get_args

import click
import pytest
import typer

from halo_forge.artifacts import Cause
from halo_forge.cli.main import build
from halo_forge.config.keys import KEYS
from halo_forge.gate.actions import LOST, SINCE_RELEASE, UNDECIDED, WORSE, Action, action_for, family_of
from halo_forge.gate.rules import KNOWN_METRICS

ACTIONS = [*LOST.values(), *WORSE.values(), *UNDECIDED.values(), SINCE_RELEASE]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.command)
def test_the_command_to_type_exists(action: Action) -> None:
    words = shlex.split(action.of("runs/my run").command)
    assert "RUN" not in words
    command: click.Command = typer.main.get_command(build())
    words = words[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    assert not getattr(command, "commands", None), action.command
    context = command.make_context("halo-forge", list(words), resilient_parsing=False)
    assert context.args == []
    for setting in context.params.get("overrides") or []:
        assert setting.partition("=")[0] in KEYS, setting


def test_every_cause_has_an_action_but_a_rule_that_held() -> None:
    for cause in get_args(Cause):
        for metric in KNOWN_METRICS | {"bench.mmlu", "refusal_rate", "anything"}:
            action = action_for(metric, cause, "runs/mine")
            assert (action is None) == (cause == "held"), (metric, cause)


@pytest.mark.parametrize(
    ("metric", "family"),
    [("perplexity", "loss"), ("general_perplexity", "retention"), ("exact_match", "task"), ("json_valid", "format"),
     ("json_match", "task"),
     ("schema_valid", "format"), ("stop_rate", "behaviour"), ("refusal_rate", "safety"), ("toxicity", "safety"),
     ("abstention_recall", "calibration"), ("bench.mmlu", "benchmark"), ("bench.humaneval/pass@1", "benchmark")],
)  # fmt: skip
def test_families(metric: str, family: str) -> None:
    assert family_of(metric) == family


@pytest.mark.parametrize(
    ("metric", "cause", "said"),
    [
        ("perplexity", "above", "improve the data, or train longer"),  # validation loss high
        ("bench.mmlu", "below", "review the choice of the model"),  # benchmarks below expected
        ("exact_match", "no_gain", "adjust the learning rate or the batch size"),  # training unstable
        ("bench.mmlu", "regressed", "mix general rows in"),  # seed 004 against forgetting
        ("json_valid", "below", "exact format"),  # seed 003: include exact format exemplars
        ("refusal_rate", "below", "rows that refuse"),  # seed 004: training only on positive examples
        ("abstention_recall", "below", "I don't know"),
    ],
)
def test_the_seeds_failure_handling_is_there(metric: str, cause: Cause, said: str) -> None:
    action = action_for(metric, cause, "runs/mine")
    assert action is not None
    assert said in action.words


@pytest.mark.parametrize("cause", ["no_gain", "regressed"])
def test_a_loss_since_the_release_asks_what_was_done_since(cause: Cause) -> None:
    action = action_for("json_match", cause, "runs/mine", "released")
    assert action is not None
    assert action.command == "halo-forge data diff RELEASED_RUN runs/mine"
    assert action != action_for("json_match", cause, "runs/mine")
