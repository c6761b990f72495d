"""What changed between two versions, and what that did."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from halo_forge.artifacts import Measurement
from halo_forge.cli.main import build
from halo_forge.config.schema import Config
from halo_forge.errors import UsageError
from halo_forge.publish import publish, roll_back
from halo_forge.publish.changelog import changelog
from halo_forge.publish.lineage import Outcome, _metric_change, diff_versions
from halo_forge.runs import write_artifact


def publish_changed(builder: ModuleType, tmp_path: Path, seed: int, change: Any = None) -> None:
    """A version of the built run; `change(records) -> records` edits (config, prepared, report) before."""
    built = builder.build_run(tmp_path / f"s{seed}" / "run", registry=tmp_path / "registry", seed=seed)
    config, prepared, report = built.config, built.prepared, built.report
    if change is not None:
        config, prepared, report = change(config, prepared, report)
    write_artifact(built.run.file("eval/report.json"), report)
    decision = builder.decision_for(config, report, built.run)
    publish(config, built.run, built.trained, report, decision, prepared)


def better(config: Config, prepared: Any, report: Any) -> tuple[Any, Any, Any]:
    values = config.to_dict()
    values["training"]["learning_rate"] = 1e-3
    source = prepared.sources[0].model_copy(update={"kept": 600, "read": 603, "sha256": "ab" * 32})
    comparisons = []
    for row in report.comparisons:
        if row.metric == "exact_match":
            row = row.model_copy(
                update={"tuned": row.tuned.model_copy(update={"value": 0.99, "low": 0.95, "high": 1.0})}
            )
        if row.metric == "perplexity":
            row = row.model_copy(update={"tuned": row.tuned.model_copy(update={"value": 2.0, "low": 1.9, "high": 2.1})})
        comparisons.append(row)
    return (
        Config.model_validate(values),
        prepared.model_copy(update={"sources": (source,)}),
        report.model_copy(update={"comparisons": tuple(comparisons)}),
    )


@pytest.fixture
def two(builder: ModuleType, tmp_path: Path) -> Path:
    publish_changed(builder, tmp_path, 1)
    publish_changed(builder, tmp_path, 2, better)
    return tmp_path / "registry"


def test_the_difference_names_what_changed_and_nothing_else(two: Path) -> None:
    diff = diff_versions(two, "run", 1, 2)
    changed = {change.what: (change.before, change.after) for change in diff.data}
    assert changed["source stubs.jsonl, rows kept"] == (567, 600)
    assert changed["source stubs.jsonl, sha256"][1] == "ab" * 8
    assert "source stubs.jsonl, rows dropped" not in changed
    assert "train, rows" not in changed
    assert [(c.what, c.before, c.after) for c in diff.config] == [("training.learning_rate", 5e-4, 1e-3)]
    assert (diff.mix, diff.software, diff.model) == ((), (), ())
    assert (diff.same_weights, diff.same_holdout) == (False, True)


def test_every_metric_has_its_outcome_with_an_interval(two: Path) -> None:
    rows = {row.metric: row for row in diff_versions(two, "run", 1, 2).metrics}
    assert rows["exact_match"].outcome == "better"
    assert rows["exact_match"].low is not None
    assert rows["exact_match"].low > 0
    assert rows["perplexity"].outcome == "worse"
    assert rows["json_valid"].outcome == "unchanged"
    assert rows["schema_valid"].outcome == "not measured"
    backwards = {row.metric: row.outcome for row in diff_versions(two, "run", 2, 1).metrics}
    assert (backwards["exact_match"], backwards["perplexity"]) == ("worse", "better")


def test_a_slice_is_never_taken_for_the_whole(builder: ModuleType, tmp_path: Path) -> None:
    """A report lists slices after the rows over all items."""

    def with_slice(config: Config, prepared: Any, report: Any) -> tuple[Any, Any, Any]:
        whole = next(row for row in report.overall if row.metric == "exact_match")
        few = {side: getattr(whole, side).model_copy(update={"slice": "source=faq", "value": 0.01, "n": 3})
               for side in ("base", "tuned", "delta")}  # fmt: skip
        return config, prepared, report.model_copy(
            update={"comparisons": (*report.comparisons, whole.model_copy(update=few))}
        )  # fmt: skip

    publish_changed(builder, tmp_path, 1)
    publish_changed(builder, tmp_path, 2, with_slice)
    row = next(
        row for row in diff_versions(tmp_path / "registry", "run", 1, 2).metrics if row.metric == "exact_match"
    )  # fmt: skip
    assert (row.change, row.outcome) == (0, "unchanged")
    assert row.after is not None
    assert row.after.slice == "all"


def test_another_holdout_is_not_compared(builder: ModuleType, tmp_path: Path, two: Path) -> None:
    def other_holdout(config: Any, prepared: Any, report: Any) -> tuple[Any, Any, Any]:
        splits = dict(prepared.splits)
        splits["holdout"] = splits["holdout"].model_copy(update={"sha256": "1" * 64})
        return config, prepared.model_copy(update={"splits": splits}), report.model_copy(
            update={"holdout_sha256": "1" * 64}
        )  # fmt: skip

    publish_changed(builder, tmp_path, 3, other_holdout)
    diff = diff_versions(two, "run", 2, 3)
    assert diff.same_holdout is False
    assert {row.outcome for row in diff.metrics} == {"not comparable", "not measured"}
    assert all(row.change is None for row in diff.metrics)


@pytest.mark.parametrize(
    ("before", "after", "direction", "outcome"),
    [
        ((0.5, 0.4, 0.6), (0.7, 0.62, 0.78), "higher", "better"),
        ((0.5, 0.4, 0.6), (0.7, 0.62, 0.78), "lower", "worse"),
        ((0.5, 0.4, 0.6), (0.55, 0.45, 0.65), "higher", "unclear"),
        ((0.5, 0.4, 0.6), (0.9, 0.85, 0.95), "none", "unclear"),
        ((0.5, 0.4, 0.6), (0.5, 0.3, 0.7), "higher", "unchanged"),
        ((0.5, None, None), (0.9, 0.85, 0.95), "higher", "unclear"),
    ],
)
def test_an_outcome_needs_an_interval_without_zero(
    before: tuple[float, Any, Any], after: tuple[float, Any, Any], direction: Any, outcome: Outcome
) -> None:
    old, new = (
        Measurement(metric="m", value=value, n=50, low=low, high=high, direction=direction)
        for value, low, high in (before, after)
    )
    assert _metric_change("m", old, new, True).outcome == outcome


def test_the_command_in_words_and_as_json(two: Path) -> None:
    def invoke(*words: str):
        return CliRunner().invoke(build(), ["models", "diff", *words, "--registry", str(two)])

    shown = invoke("run", "v1", "v2")
    assert shown.exit_code == 0, shown.output
    assert "training.learning_rate: 0.0005 -> 0.001" in shown.stdout
    assert "mix: no change" in shown.stdout
    assert "better" in next(line for line in shown.stdout.splitlines() if "exact_match" in line)
    assert invoke("run").stdout == shown.stdout
    assert invoke("run", "latest").stdout == shown.stdout
    assert json.loads(invoke("run", "1", "2", "--json").stdout)["config"][0]["after"] == 1e-3
    assert invoke("run", "v1").exit_code == 2
    assert invoke("run", "v2", "v2").exit_code == 2
    with pytest.raises(UsageError, match="both are run v1"):
        diff_versions(two, "run", 1, 1)


def test_shares_are_told_as_such(two: Path) -> None:
    shown = CliRunner().invoke(build(), ["models", "diff", "run", "v1", "v2", "--registry", str(two)]).stdout
    line = next(line for line in shown.splitlines() if "exact_match" in line)
    assert " 99 %" in line
    assert " pt" in line
    assert " %" not in next(line for line in shown.splitlines() if line.startswith("  perplexity"))


def test_the_changelog_tells_each_version_against_the_one_before(two: Path) -> None:
    roll_back(two, "run", None)
    found = changelog(two, "run")
    newest, oldest = found.versions
    assert (newest.version, oldest.version) == (2, 1)
    assert newest.diff == diff_versions(two, "run", 1, 2)
    assert (oldest.diff, oldest.problem) == (None, None)
    assert "released" in oldest.aliases
    assert [(move.action, move.before, move.after) for move in found.moves] == [
        ("publish", None, 1), ("publish", 1, 2), ("rollback", 2, 1),
    ]  # fmt: skip


def test_the_changelog_as_markdown_and_as_json(two: Path) -> None:
    def invoke(*words: str):
        return CliRunner().invoke(build(), ["models", "changelog", "run", *words, "--registry", str(two)])

    shown = invoke().stdout
    assert [line for line in shown.splitlines() if line.startswith("#")] == [
        "# run", "## v2 (candidate, released)", "## v1", "## What `released` named",
    ]  # fmt: skip
    assert "- config: training.learning_rate: 0.0005 -> 0.001" in shown
    assert "- better: exact_match" in shown
    assert "- worse: perplexity" in shown
    assert "publish: v1 -> v2" in shown
    assert "sha256" not in shown
    assert json.loads(invoke("--json").stdout)["versions"][0]["version"] == 2
    unknown = CliRunner().invoke(build(), ["models", "changelog", "other", "--registry", str(two)])
    assert (unknown.exit_code, unknown.stdout) == (2, "")


def test_a_version_whose_records_are_gone_is_still_told(two: Path) -> None:
    (two / "run" / "v1" / "eval" / "report.json").unlink()
    newest, oldest = changelog(two, "run").versions
    assert (newest.diff, oldest.diff) == (None, None)
    assert newest.problem
    shown = CliRunner().invoke(build(), ["models", "changelog", "run", "--registry", str(two)]).stdout
    assert "What changed cannot be told: " in shown
