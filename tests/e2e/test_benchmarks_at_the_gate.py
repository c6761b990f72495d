"""A rule on a benchmark, from `halo-forge run` and from `bench run --run`: a number decides, what broke does not.

The rows are our own, as HellaSwag has them, so that lm-eval's own task reads them without a network.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from training_runs import write_rows

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"),
    pytest.mark.filterwarnings("ignore"),  # lm-eval's, nltk's and evaluate's own
]
NUM_ITEMS = 30


def halo_forge(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def write_tree(directory: Path, endings: list[str]) -> Path:
    rows = [
        {
            "ind": n, "activity_label": "Cooking", "ctx_a": f"A person cuts {n} apples.", "ctx_b": "they",
            "ctx": f"A person cuts {n} apples. they", "endings": endings, "source_id": str(n), "split": "val",
            "split_type": "indomain", "label": str(n % 4),
        }
        for n in range(NUM_ITEMS)
    ]  # fmt: skip
    folder = directory / "Rowan" / "hellaswag" / "default"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: default/train.parquet\n"
        "  - split: validation\n    path: default/validation.parquet\n---\n"
    )
    return directory


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose evaluation has a benchmark, by `halo-forge run` alone, published."""
    root = tmp_path_factory.mktemp("benchmarks")
    write_rows(root / "rows.jsonl", 40)
    tree = write_tree(root / "tree", [f"eat {k} of them in the afternoon." for k in range(4)])
    values: dict[str, Any] = {
        "model": {"name": str(tiny_model_dir)},
        "data": {"train_file": str(root / "rows.jsonl"), "holdout_split": 0.3, "max_seq_length": 256},
        "training": {"max_steps": 2, "bf16": False},
        "evaluation": {"max_new_tokens": 4, "benchmarks": ["hellaswag"]},
        "gate": {"rules": [{"metric": "bench.hellaswag", "max_regression": 1.0}], "min_items": 5},
        "publish": {"registry": str(root / "registry"), "name": "cook"},
        "output": {"dir": str(root / "run")},
    }
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALO_FORGE_BENCHMARKS", str(tree))
        done = halo_forge("run", config, "--json")
        assert done.exit_code == 0, done.output
        yield root


def verdict_of(run: Path, *settings: str) -> tuple[int, dict[str, Any]]:
    done = halo_forge("gate", run, "--json", *(part for setting in settings for part in ("--set", setting)))
    assert done.exit_code in (0, 4, 5), done.output
    rules = json.loads(done.stdout)["rules"]
    return done.exit_code, rules[-1]


def rule(text: str) -> str:
    return f"gate.rules=[{{metric: bench.hellaswag, {text}}}]"


def test_a_benchmark_is_measured_by_the_run_and_decides(finished: Path) -> None:
    report = json.loads((finished / "run" / "eval" / "report.json").read_text())
    (row,) = (row for row in report["comparisons"] if row["metric"] == "bench.hellaswag")
    assert (row["tuned"]["n"], row["tuned"]["status"], row["tuned"]["subsampled"]) == (NUM_ITEMS, "measured", False)
    run = finished / "run"
    assert verdict_of(run, rule("min: 0.0"))[0] == 0
    assert verdict_of(run, rule("min: 1.0"))[0] == 4
    kept = finished / "registry" / "cook" / "v1" / "eval" / "bench" / "scores.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + NUM_ITEMS


def test_a_second_version_is_held_against_the_first_on_the_benchmark(finished: Path) -> None:
    values = yaml.safe_load((finished / "config.yaml").read_text())
    values["output"]["dir"] = str(finished / "second")
    values["training"]["max_steps"] = 3
    released = {"metric": "bench.hellaswag", "max_regression": 1.0, "against": "released"}
    values["gate"]["rules"].append(released)
    config = finished / "second.yaml"
    config.write_text(yaml.safe_dump(values))
    done = halo_forge("run", config, "--until", "gate", "--json")
    assert done.exit_code == 0, done.output
    last = json.loads((finished / "second" / "gate.json").read_text())["rules"][-1]
    assert (last["verdict"], last["cause"]) == ("PASS", "held")
    assert "released" in last["evidence"]


@pytest.mark.soak
def test_bench_run_replaces_the_number_a_limit_decides_nothing_and_a_broken_benchmark_neither(finished: Path) -> None:
    run = finished / "copy"
    shutil.copytree(finished / "run", run)
    limited = halo_forge(
        "bench", "run", "--run", run, "--tasks", "hellaswag", "--tree", finished / "tree", "--limit", "8"
    )
    assert limited.exit_code == 0, limited.output
    code, told = verdict_of(run, rule("min: 0.0"), "gate.min_items=5")
    assert (code, told["cause"]) == (5, "subsampled")
    assert "bench run" in told["command"]

    same = write_tree(finished / "broken", ["eat."] * 4)  # every ending as likely: the score says nothing
    broken = halo_forge("bench", "run", "--run", run, "--tasks", "hellaswag", "--tree", same)
    assert broken.exit_code == 5, broken.output
    code, told = verdict_of(run, rule("min: 0.0"))
    assert (code, told["verdict"], told["cause"]) == (5, "INCONCLUSIVE", "failed")
    assert "equally likely" in told["reason"]
    missing = halo_forge("bench", "run", "--run", run, "--tasks", "hellaswag", "--tree", finished / "registry")
    assert missing.exit_code == 5
    assert verdict_of(run, rule("min: 0.0"))[1]["cause"] == "failed"


def test_benchmarks_that_cannot_run_are_told_before_training(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((finished / "config.yaml").read_text())
    values["output"]["dir"] = str(finished / "never")
    monkeypatch.setenv("HALO_FORGE_BENCHMARKS", str(finished / "no-tree"))
    config = finished / "never.yaml"
    config.write_text(yaml.safe_dump(values))
    done = halo_forge("run", config)
    assert done.exit_code == 2
    assert not (finished / "never").exists()
