"""The whole pipeline through the real command line, on a tiny model: files, verdicts, exit codes, resume, releases.

One run is made once and shared; a test that changes something works on a copy of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from training_runs import final_weights, losses, write_rows

HALO_FORGE = Path(sys.executable).with_name("halo-forge")
NUM_ROWS = 60
RUN_FILES = [
    "config.resolved.yaml", "run.json", "compute.json", "data/manifest.json", "data/ledger.jsonl",
    "data/train.conversations.jsonl", "data/validation.conversations.jsonl", "data/holdout.conversations.jsonl",
    "data/train.examples.arrow", "best_val/MANIFEST.json", "best_train/MANIFEST.json", "latest/MANIFEST.json",
    "checkpoint-4/MANIFEST.json", "checkpoint-8/MANIFEST.json", "final_model/adapter_config.json",
    "final_model/adapter_model.safetensors", "final_model/tokenizer.json", "final_model/tokenizer_config.json",
    "final_model/tokenizer/tokenizer.json", "final_model/tokenizer/tokenizer_config.json", "metrics.jsonl",
    "training_log.json", "trained.json", "first_batch.txt", "baseline_metrics.json", "eval/report.json",
    "eval/answers.jsonl", "gate.json", "release.json", "report.html",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A directory with the rows and one finished, published run in `out`."""

    root: Path
    config: Path
    result: dict[str, Any]

    @property
    def run(self) -> Path:
        return self.root / "out"

    @property
    def registry(self) -> Path:
        return self.root / "registry"


def environment() -> dict[str, str]:
    """One thread, so that two processes add in the same order; no colour, no network."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def halo_forge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HALO_FORGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
    )


def invoke(*arguments: str | Path) -> Result:
    """The same command in this process: for what needs no process of its own."""
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def write_config(root: Path, model: Path, **changes: Any) -> Path:
    """A run of 8 steps whose gate asks only that the perplexity does not rise. `changes`: section__key=value."""
    values: dict[str, dict[str, Any]] = {
        "model": {"name": str(model)},
        "data": {
            "train_file": str(root / "rows.jsonl"),
            "validation_split": 0.1,
            "holdout_split": 0.3,
            "max_seq_length": 256,
        },
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "bf16": False,
            "eval_steps": 4,
        },
        "lora": {"r": 4, "dropout": 0.1},
        "output": {"dir": str(root / "out"), "save_steps": 4, "logging_steps": 2},
        "evaluation": {"max_new_tokens": 8, "max_prompts": 6, "bootstrap_samples": 200},
        "gate": {"evidence": "point", "min_items": 5, "rules": [{"metric": "perplexity", "min_delta": 0.0}]},
        "publish": {"name": "tiny", "registry": str(root / "registry")},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Place:
    root = tmp_path_factory.mktemp("pipeline")
    write_rows(root / "rows.jsonl", NUM_ROWS)
    config = write_config(root, tiny_model_dir)
    answer = halo_forge("run", config, "--json")
    assert answer.returncode == 0, answer.stderr
    assert "\x1b" not in answer.stdout + answer.stderr
    return Place(root, config, json.loads(answer.stdout))


@pytest.fixture
def copy(passed: Place, tmp_path: Path) -> Path:
    """The finished run, to be changed; where a run lies does not belong to what it is."""
    return Path(shutil.copytree(passed.run, tmp_path / "copy", symlinks=True))


def again(passed: Place, copy: Path, *arguments: str) -> Result:
    """The shared run's command on a copy of its directory, publishing beside the copy."""
    here = ["--set", f"output.dir={copy}", "--set", f"publish.registry={copy.parent / 'registry'}"]
    return invoke("run", passed.config, *here, *arguments)


# ------------------------------------------------------------------------------------------------ the whole run


def test_a_run_leaves_every_file_of_its_tree(passed: Place) -> None:
    missing = [name for name in RUN_FILES if not (passed.run / name).is_file()]
    assert missing == []
    assert not list(passed.run.rglob("*.bin"))
    assert not [path for path in passed.run.rglob("*") if path.name.endswith((".tmp", ".pkl", ".pt"))]
    assert (passed.run / "latest").resolve().name == "checkpoint-8"


def test_the_ledger_accounts_for_every_row(passed: Place) -> None:
    entries = [json.loads(line) for line in (passed.run / "data/ledger.jsonl").read_text().splitlines()]
    assert len(entries) == NUM_ROWS
    assert [entry["line"] for entry in entries] == list(range(1, NUM_ROWS + 1))
    splits = passed.result["prepared"]["splits"]
    for name, report in splits.items():
        assert sum(entry["split"] == name for entry in entries) == report["rows"]
        lines = (passed.run / report["conversations"]).read_text().splitlines()
        assert len(lines) == report["rows"]
    assert sum(report["rows"] for report in splits.values()) == NUM_ROWS


def test_the_json_result_is_what_the_files_say(passed: Place) -> None:
    files = {
        "prepared": "data/manifest.json",
        "trained": "trained.json",
        "report": "eval/report.json",
        "decision": "gate.json",
        "release": "release.json",
    }
    for name, file in files.items():
        assert passed.result[name] == json.loads((passed.run / file).read_text()), name
    assert passed.result["page"] == str(passed.run / "report.html")
    assert passed.result["decision"]["verdict"] == "PASS"
    assert passed.result["trained"]["num_steps"] == 8


def test_training_lowered_the_loss_and_the_perplexity(passed: Place) -> None:
    curve = losses(passed.run)
    assert len(curve) == 8
    assert curve[-1] < curve[0] - 0.3
    rows = {row["metric"]: row for row in passed.result["report"]["comparisons"] if row["delta"]["slice"] == "all"}
    assert rows["perplexity"]["delta"]["high"] < 0
    assert rows["perplexity"]["base"]["n"] == passed.result["report"]["num_items"]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_final_model_loads_with_plain_libraries_in_a_fresh_process(passed: Place) -> None:
    code = (
        "import sys; from transformers import AutoTokenizer; from peft import AutoPeftModelForCausalLM\n"
        "path = sys.argv[1]\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        "assert AutoTokenizer.from_pretrained(path + '/tokenizer').get_vocab() == tokenizer.get_vocab()\n"
        "model = AutoPeftModelForCausalLM.from_pretrained(path)\n"
        "text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'apple?'}], tokenize=False)\n"
        "logits = model(**tokenizer(text, return_tensors='pt')).logits\n"
        "names = [name for name, tensor in model.named_parameters() if 'lora_B' in name and tensor.abs().sum() > 0]\n"
        "print(bool(logits.isfinite().all()), len(names) > 0, 'halo_forge' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(passed.run / "final_model")],
        capture_output=True, text=True, check=False, env=environment(), timeout=120,
    )  # fmt: skip
    assert answer.stdout.split() == ["True", "True", "False"], answer.stderr


def test_the_same_command_again_repeats_nothing(passed: Place) -> None:
    names = [
        "metrics.jsonl",
        "trained.json",
        "final_model/adapter_model.safetensors",
        "checkpoint-8/MANIFEST.json",
        "data/manifest.json",
    ]
    before = {name: stamp(passed.run / name) for name in names}
    answer = halo_forge("run", passed.config)
    assert answer.returncode == 0, answer.stderr
    assert {name: stamp(passed.run / name) for name in names} == before
    assert "verdict: PASS" in answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr
    assert sorted(path.name for path in (passed.registry / "tiny").glob("v*")) == ["v1"]


def stamp(path: Path) -> tuple[int, bytes]:
    return path.stat().st_mtime_ns, path.read_bytes()


# ------------------------------------------------------------------------------------------------ the registry


def test_a_published_version_is_listed_shown_and_verified(passed: Place) -> None:
    at = ("--registry", passed.registry)
    (listed,) = json.loads(halo_forge("models", "list", *at, "--json").stdout)
    assert (listed["name"], listed["version"], listed["verdict"], listed["forced"]) == ("tiny", 1, "PASS", False)
    assert listed == json.loads(invoke("models", "show", "tiny@v1", *at, "--json").stdout)
    assert listed["aliases"] == ["candidate", "released"]
    assert listed["manifest_sha256"] in invoke("models", "show", "tiny", *at).stdout
    verified = halo_forge("models", "verify", "tiny", *at)
    assert (verified.returncode, verified.stdout.strip()) == (0, "verified")


def test_one_changed_byte_of_a_version_is_found(passed: Place, tmp_path: Path) -> None:
    registry = shutil.copytree(passed.registry, tmp_path / "registry")
    weights = registry / "tiny/v1/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    answer = halo_forge("models", "verify", "tiny@1", "--registry", registry)
    assert answer.returncode == 1
    assert answer.stdout.strip() == "changed: adapter_model.safetensors"
    assert json.loads(invoke("models", "verify", "tiny", "--registry", registry, "--json").stdout)["ok"] is False


# ------------------------------------------------------------------------------------------------ verdicts


STRICT = "gate.rules=[{metric: perplexity, max: 1.01}]"


def test_a_failed_gate_exits_4_says_why_and_publishes_nothing(passed: Place, copy: Path) -> None:
    (copy / "release.json").unlink()
    answer = again(passed, copy, "--set", STRICT)
    assert answer.exit_code == 4
    assert "verdict: FAIL" in answer.stdout
    assert "perplexity" in answer.stderr
    assert "1.01" in answer.stderr
    assert not (copy.parent / "registry").exists()
    assert not (copy / "release.json").exists()
    assert "FAIL" in (copy / "report.html").read_text()

    refused = invoke("publish", copy)
    assert refused.exit_code == 4
    assert "try:" in refused.stderr
    forced = invoke("publish", copy, "--force", "--json")
    assert forced.exit_code == 0, forced.stderr
    assert json.loads(forced.stdout)["forced"] is True
    listed = invoke("models", "list", "--registry", copy.parent / "registry").stdout
    assert "FAIL" in listed
    assert "forced" in listed
    card = (copy.parent / "registry/tiny/v1/README.md").read_text()
    assert "Published by force" in card


def test_a_gate_without_enough_items_exits_5(passed: Place, copy: Path) -> None:
    (copy / "release.json").unlink()
    answer = again(passed, copy, "--set", "gate.min_items=1000")
    assert answer.exit_code == 5
    assert "INCONCLUSIVE" in answer.stdout
    assert "gate.min_items asks for 1000" in answer.stderr
    assert not (copy.parent / "registry").exists()


def test_the_gate_alone_exits_with_the_same_codes_and_records_only_its_own_rules(passed: Place, copy: Path) -> None:
    recorded = (copy / "gate.json").read_bytes()
    for setting, code, verdict in (
        ("gate.min_items=5", 0, "PASS"),
        (STRICT, 4, "FAIL"),
        ("gate.min_items=1000", 5, "INCONCLUSIVE"),
    ):
        answer = invoke("gate", copy, "--set", setting, "--json")
        assert answer.exit_code == code
        assert json.loads(answer.stdout)["verdict"] == verdict
    assert (copy / "gate.json").read_bytes() == recorded, "a question about other rules is no verdict"
    (copy / "gate.json").unlink()
    assert halo_forge("gate", copy).returncode == 0
    assert json.loads((copy / "gate.json").read_text())["rules"] == json.loads(recorded)["rules"]


def test_sft_train_exits_0_whatever_the_verdict(passed: Place, tiny_model_dir: Path, tmp_path: Path) -> None:
    answer = invoke(
        "sft", "train", "--data", passed.root / "rows.jsonl", "--model", tiny_model_dir, "--output", tmp_path / "run",
        "--epochs", 1, "--max-seq-length", 256, "--set", "evaluation.max_new_tokens=4",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    assert "verdict: PASS" not in answer.stdout
    assert "verdict: " in answer.stdout
    assert (tmp_path / "run/report.html").is_file()
    assert not (tmp_path / "run/release.json").exists()


def test_every_weight_can_be_trained(passed: Place, tiny_model_dir: Path, tmp_path: Path) -> None:
    answer = invoke(
        "sft", "train", "--config", passed.config, "--no-lora", "--output", tmp_path / "run",
        "--set", "training.max_steps=2", "--set", "evaluation.enabled=false", "--json",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    trained = json.loads(answer.stdout)["trained"]
    assert trained["method"] == "full"
    assert trained["num_trainable_parameters"] == trained["num_parameters"]
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "run/final_model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert tuned.keys() == base.keys()
    assert any((tuned[name] != base[name]).any() for name in base)


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_changed_holdout_is_refused(passed: Place, copy: Path) -> None:
    holdout = copy / "data/holdout.conversations.jsonl"
    assert holdout.stat().st_mode & 0o222 == 0
    holdout.chmod(0o644)
    holdout.write_text(holdout.read_text().replace("apple", "pear", 1))
    answer = again(passed, copy)
    assert answer.exit_code == 3
    assert "changed after it was frozen" in answer.stderr
    assert str(holdout) in answer.stderr
    assert "try:" in answer.stderr


def test_another_configuration_is_refused_with_the_difference(passed: Place, copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    answer = again(passed, copy, "--set", "training.learning_rate=1e-3", "--set", "lora.r=8")
    assert answer.exit_code == 2
    assert "training.learning_rate: 0.005 -> 0.001" in answer.stderr
    assert "lora.r: 4 -> 8" in answer.stderr
    assert "--fresh" in answer.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_fresh_starts_over(passed: Place, copy: Path) -> None:
    before = final_weights(copy)
    answer = again(passed, copy, "--fresh", "--set", "training.max_steps=2", "--set", "evaluation.enabled=false")
    assert answer.exit_code == 0, answer.stderr
    assert sorted(path.name for path in copy.glob("checkpoint-*")) == ["checkpoint-2"]
    assert len([line for line in metrics(copy) if line["kind"] == "train"]) == 2
    assert final_weights(copy) != before
    assert not (copy / "gate.json").exists(), "a verdict about other weights must not stay"


def test_fresh_leaves_files_that_are_not_the_runs_and_goes_on(passed: Place, copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    answer = again(passed, copy, "--fresh", "--until", "data")
    assert (copy / "notes.txt").read_text() == "mine"
    assert answer.exit_code == 0, answer.stderr


# ------------------------------------------------------------------------------------------------ resume


def test_resume_goes_back_in_a_finished_run_too(passed: Place, copy: Path) -> None:
    answer = again(passed, copy, "--resume", str(copy / "checkpoint-4"), "--until", "train")
    assert answer.exit_code == 0, answer.stderr
    assert "resumed from checkpoint-4" in answer.stderr


def test_resume_goes_back_to_a_checkpoint_and_ends_with_the_same_weights(passed: Place, copy: Path) -> None:
    (copy / "trained.json").unlink()  # as after a kill before the end
    answer = halo_forge(
        "sft", "train", "--config", passed.config, "--resume", copy / "checkpoint-4", "--output", copy,
        "--set", "evaluation.enabled=false", "--json",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "resumed from checkpoint-4 (4 of 8 steps done)" in answer.stderr
    assert json.loads(answer.stdout)["trained"]["num_steps"] == 8
    assert final_weights(copy) == final_weights(passed.run)


LONG = {
    "training__max_steps": 100,
    "evaluation__enabled": False,
    "output__save_steps": 1000,
    "training__eval_steps": 40,
}


@pytest.mark.slow
def test_a_stopped_run_exits_130_and_the_same_command_finishes_it_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """On the way: while a run is at work, a second command on its directory is refused and names the holder."""
    write_rows(tmp_path / "rows.jsonl", NUM_ROWS)
    config = write_config(tmp_path, tiny_model_dir, **LONG)
    command = [HALO_FORGE, "run", str(config), "--until", "train"]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "out", 3, first)
    first.send_signal(signal.SIGSTOP)
    second = invoke("run", config, "--until", "train")
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    _, told = first.communicate(timeout=60)
    assert second.exit_code == 2
    assert f"process {first.pid} is writing to this run directory" in second.stderr
    assert first.returncode == 130, told
    assert "stopped by SIGTERM" in told
    done = len([line for line in metrics(tmp_path / "out") if line["kind"] == "train"])
    assert 3 <= done < 100
    assert not (tmp_path / "out/final_model").exists()

    finished = halo_forge("run", config, "--until", "train")
    assert finished.returncode == 0, finished.stderr
    assert f"resumed from checkpoint-{done} ({done} of 100 steps done)" in finished.stderr
    whole = halo_forge("run", config, "--until", "train", "--set", f"output.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert final_weights(tmp_path / "out") == final_weights(tmp_path / "whole")
    steps = [
        [line["loss"] for line in metrics(tmp_path / name) if line["kind"] == "train"] for name in ("out", "whole")
    ]
    assert len(steps[0]) == 100
    assert steps[0] == steps[1]


def wait_for_steps(run: Path, num_steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        file = run / "metrics.jsonl"
        if file.is_file() and file.read_text().count("\n") >= num_steps:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    pytest.fail("the run did not begin to train")
