"""`generate` and `handoff` as a user types them: a tiny model, real verifiers, kills, TRL's own reader."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.cli.sampling_commands import generation_words
from training_runs import WORDS

HALO_FORGE = Path(sys.executable).with_name("halo-forge")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def answered(*arguments: str | Path) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A tiny model that has learnt to answer with one of two words, by chance, and to stop."""
    root = tmp_path_factory.mktemp("sampling")
    rows = root / "rows.jsonl"
    chance = random.Random(0)
    with open(rows, "w") as file:
        for i in range(160):
            file.write(json.dumps({"question": f"{WORDS[i % 10]} {i}?", "answer": chance.choice(WORDS[:2])}) + "\n")
    result = invoke(
        "sft", "train", "--data", rows, "--model", tiny_model_dir, "--output", root / "run", "--no-lora", "--epochs", 3,
        "--learning-rate", "3e-3", "--validation-split", "0.2", "--batch-size", "8", "--gradient-accumulation", "1",
        "--set", "evaluation.max_new_tokens=8", "--set", "training.bf16=false", "--set", "training.preflight=false",
        "--set", "evaluation.sample_prompts=0",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return root / "run"


HOW = ("--samples", "6", "--temperature", "1.2", "--max-new-tokens", "12", "--seed", "3")


def test_generate_keeps_what_passed_and_the_same_command_draws_nothing_anew(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = ("generate", "--run", run, *HOW, "-v", "regex:apple", "-v", "exact", "--output", output)
    record = answered(*command)
    rows = rows_of(output)
    assert record["samples"] == 6 * record["prompts_sampled"]
    assert 0 < record["rows"] == len(rows) <= record["passed"] < record["samples"]
    assert 0 < record["pass_at_k"]["1"] <= record["pass_at_k"]["6"] <= 1
    for counts in record["verifiers"].values():
        assert record["passed"] <= counts["passed"] < record["samples"]
    for row in rows:
        assert row["messages"][-1] == {"role": "assistant", "content": "apple"}
        assert row["generation"]["passed"]
        assert row["generation"]["stopped"]
    content = output.read_bytes()
    again = answered(*command, "--batch-size", "3")
    assert again["samples_reused"] == record["samples"]
    assert output.read_bytes() == content
    everything = answered(*command[:-1], tmp_path / "all.jsonl", "--keep", "all", "--batch-size", "3")
    assert everything["rows"] == everything["samples"] == record["samples"]
    assert everything["pass_at_k"] == record["pass_at_k"]  # another batch, the same answers
    best = answered(*command, "--keep", "best")
    assert best["rows"] == len({row["generation"]["prompt"] for row in rows})


def test_a_killed_generation_goes_on_and_ends_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    command = ["generate", "--run", run, *HOW, "--keep", "all", "--batch-size", "2"]
    whole = answered(*command, "--output", tmp_path / "whole.jsonl")
    output, samples = tmp_path / "killed.jsonl", tmp_path / "killed.samples.jsonl"
    process = subprocess.Popen(
        [HALO_FORGE, *map(str, command), "--output", output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if samples.exists() and samples.read_bytes().count(b"\n") > 10:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    if not output.exists():  # it was killed in time
        with open(samples, "ab") as file:
            file.write(b'{"key": "torn')
    record = answered(*command, "--output", output)
    assert 10 <= record["samples_reused"] <= whole["samples"]
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_held_out_and_repeated_prompts_are_never_asked(run: Path, tmp_path: Path) -> None:
    held = [json.loads(line) for line in (run / "data" / "holdout.conversations.jsonl").read_text().splitlines()]
    asks = [row["messages"][0]["parts"][0]["text"] for row in held]
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": asks[0].upper()}, {"prompt": f"  {asks[1]}"}, {"prompt": "new?"}, {"prompt": "NEW?"}, {"x": 1}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = answered(
        "generate", "--run", run, "--prompts", prompts, "--keep", "all", *HOW, "--output", tmp_path / "out.jsonl"
    )
    counts = record["prompts"]
    assert (counts["read"], counts["asked"], counts["in_holdout"], counts["repeated"]) == (5, 1, 2, 1)
    assert sum(counts["unusable"].values()) == 1
    assert {row["messages"][0]["content"] for row in rows_of(tmp_path / "out.jsonl")} == {"new?"}
    refused = invoke("generate", "--run", run, "--split", "holdout", "--keep", "all", "-o", tmp_path / "no.jsonl")
    assert refused.exit_code == 2
    assert "holdout" in refused.stderr
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"prompt": "New?"}) + "\n")
    nothing = invoke(
        "generate", "--run", run, "--prompts", alone, "--holdout", prompts, "--keep", "all", "-o", tmp_path / "n.jsonl"
    )
    assert nothing.exit_code == 3
    assert "no prompt is left" in nothing.stderr


def test_sft_train_takes_what_was_kept(run: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    output = tmp_path / "kept.jsonl"
    answered("generate", "--run", run, "--split", "train", *HOW, "-v", "exact", "--output", output)
    checked = answered("data", "check", output)
    assert checked["kept"] > 10
    assert checked["bad_frac"] == 0
    trained = invoke(
        "sft", "train", "--data", output, "--model", tiny_model_dir, "--output", tmp_path / "raft", "--dry-run"
    )
    assert trained.exit_code == 0, trained.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", "all"), "no model was named"),
        (("--keep", "all", "--model", "nowhere"), "nothing to ask"),
        (("--keep", "worst"), "best, passed, all"),
        (("-v", "exact", "--model", "x", "--prompts", "x", "--format", "none"), "no such choice"),
        (("-v", "exact", "--split", "test"), "no such choice"),
        ((), "needs a verifier"),
        (("-v", "exact", "--samples", "0", "--model", "x"), "--samples 0"),
        (("-v", "exact", "--temperature", "0", "--model", "x"), "temperature 0"),
        (("-v", "exact", "--top-p", "0", "--model", "x"), "--top-p"),
        (("-v", "guess", "--model", "x"), "no verifier"),
    ],
)
def test_what_cannot_be_done_is_told_in_words(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = invoke("generate", *arguments, "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 2, result.stderr
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_samples_drawn_otherwise_are_not_mixed_in(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = ("generate", "--run", run, "--keep", "all", "--max-prompts", "2", "--max-new-tokens", "4", "-o", output)
    answered(*command)
    other = invoke(*command, "--seed", "9")
    assert other.exit_code == 2
    assert "seed" in other.stderr
    more = answered(*command, "--samples", "5")
    assert (more["samples_reused"], more["samples"]) == (8, 10)


def test_tests_of_rows_reach_the_sandbox(run: Path, tmp_path: Path) -> None:
    """A tiny model writes no code: its answers fail, and rows whose tests are broken are not measured."""
    prompts = tmp_path / "prompts.jsonl"
    good = {"entry_point": "f", "code": "assert f(1) == 2"}
    rows = [{"prompt": "one?", "tests": good}, {"prompt": "two?", "tests": {"code": 1}}, {"prompt": "three?"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = answered(
        "generate", "--run", run, "--prompts", prompts, "--samples", "2", "--max-new-tokens", "4", "-v", "unit-test",
        "-o", tmp_path / "out.jsonl",
    )  # fmt: skip
    assert record["verifiers"]["unit-test"] == {"passed": 0, "failed": 2, "not_measured": 4}
    assert (record["prompts_measured"], record["pass_at_k"]["1"], record["not_measured"]) == (1, 0.0, 4)
    assert record["sandbox"]["available"]


# ------------------------------------------------------------------------------------------------ the hand-off


@pytest.fixture(scope="module")
def package(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("handoff") / "package"
    record = answered("handoff", run, *HOW, "--output", output)
    assert record["pairs"]["pairs"] > 0
    return output


def test_the_package_is_whole_and_hashed(run: Path, package: Path) -> None:
    import hashlib

    manifest = json.loads((package / "manifest.json").read_text())
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
    assert set(files) == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == entry["sha256"]
    assert json.loads((package / "baseline_metrics.json").read_text())["exact_match"] is not None
    trained = {
        row["messages"][0]["parts"][0]["text"]
        for split in ("train", "holdout")
        for row in rows_of(run / "data" / f"{split}.conversations.jsonl")
    }
    for name in ("candidates", "preferences"):
        assert not trained & {row["prompt"][0]["content"] for row in rows_of(package / f"{name}.jsonl")}
    for row in rows_of(package / "candidates.jsonl"):
        assert len(row["candidates"]) == 6
    assert not list(package.parent.glob(".*"))


def test_pairs_are_right_against_wrong(package: Path) -> None:
    references = {row["prompt"][0]["content"]: row["reference"] for row in rows_of(package / "candidates.jsonl")}
    for row in rows_of(package / "preferences.jsonl"):
        reference = references[row["prompt"][0]["content"]]
        assert row["chosen"][0]["content"] == reference != row["rejected"][0]["content"]
        assert row["score_chosen"] == 1 > row["score_rejected"]


@pytest.mark.filterwarnings("ignore")  # TRL's and the trainer's own
def test_trl_trains_on_the_preferences(package: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    """The file as it is, through TRL's own DPOTrainer, for two steps."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    pairs = load_dataset("json", data_files=str(package / "preferences.jsonl"), split="train", cache_dir=str(tmp_path))
    pairs = pairs.select_columns(["prompt", "chosen", "rejected"])
    settings = DPOConfig(
        output_dir=str(tmp_path / "dpo"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", gradient_checkpointing=False, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model_dir), args=settings, train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )  # fmt: skip
    result = trainer.train()
    assert result.training_loss == pytest.approx(0.693, abs=0.1)  # log 2: at the start both models are the same


def test_handoff_refuses_what_is_not_whole(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    target = tmp_path / "package"
    weights = next((copy / "final_model").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = invoke("handoff", copy, "--output", target)
    assert changed.exit_code == 3
    assert "not the weights" in changed.stderr
    weights.write_bytes(content)
    (copy / "baseline_metrics.json").unlink()
    unmeasured = invoke("handoff", copy, "--output", target)
    assert unmeasured.exit_code == 2
    assert "no baseline" in unmeasured.stderr
    train = rows_of(run / "data" / "train.conversations.jsonl")[0]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": train["messages"][0]["parts"][0]["text"]}) + "\n")
    trained_on = invoke("handoff", run, "--prompts", prompts, "--output", target)
    assert trained_on.exit_code == 3
    assert "in_train 1" in trained_on.stderr
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def test_what_no_verifier_looked_at_is_not_said_to_fail() -> None:
    record: dict[str, Any] = {
        "prompts_sampled": 5, "prompts": {"read": 5, "repeated": 0, "in_holdout": 0, "in_train": 0, "unusable": {}},
        "samples": 5, "samples_reused": 0, "passed": 0, "not_measured": 5, "stopped": 4, "verifiers": {},
        "pass_at_k": {},
    }  # fmt: skip
    assert generation_words(record).splitlines()[1] == "5 samples (0 were there already), 1 cut off"
    judged = record | {"verifiers": {"exact": {"passed": 2, "failed": 3}}, "passed": 2, "not_measured": 0}
    assert "2 passed, 0 not measured, 1 cut off" in generation_words(judged)
