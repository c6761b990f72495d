"""`halo-forge reasoning sft` as a user types it: a tiny model, rows in three conventions, one convention throughout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.chat import read_conversations
from halo_forge.cli.main import build
from halo_forge.texts.final_answers import INSTRUCTIONS, convention_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reasoning" / "word_problems.jsonl"
NUM_ROWS = 60
QUIET = ("training.bf16=false", "training.preflight=false", "evaluation.sample_prompts=0", "evaluation.slices=false")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[str | Path]:
    root = tmp_path_factory.mktemp("reasoning")
    rows = root / "rows.jsonl"
    rows.write_text("".join(EXAMPLE.read_text().splitlines(keepends=True)[:NUM_ROWS]))
    return [
        "reasoning", "sft", "--model", tiny_model_dir, "--data", rows, "--output", root / "run", "--json",
        *settings(
            *QUIET, "training.max_steps=2", "training.gradient_accumulation_steps=1", "data.holdout_split=0.3",
            "data.max_seq_length=1024", "evaluation.max_new_tokens=8", "evaluation.self_consistency=3",
            "evaluation.bootstrap_samples=100", "data.near_duplicate_threshold=null", "gate.min_items=5",
            "gate.rules=[{metric: answer_format, min: 0.0}, {metric: numeric_match, min: 0.0}, "
            "{metric: self_consistency, min: 0.0}]",
        ),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(command: list[str | Path]) -> Path:
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    return Path(json.loads(result.stdout)["directory"])


def test_rows_of_three_conventions_are_trained_in_one(run: Path) -> None:
    ledger = lines(run / "data/ledger.jsonl")
    codes = [line["code"] for line in ledger]
    original = [json.loads(line)["answer"] for line in EXAMPLE.read_text().splitlines()[:NUM_ROWS]]
    for code, answer in zip(codes, original, strict=True):
        expected = {"hashes": "calculator_annotations", "boxed": "final_answer_rewritten"}
        assert code == expected.get(convention_of(answer) or "", "final_answer_rewritten")
    for split in ("train", "validation", "holdout"):
        for row in read_conversations(run / f"data/{split}.conversations.jsonl"):
            assert row.messages[-2].text.endswith(f"\n\n{INSTRUCTIONS['hashes']}")
            assert convention_of(row.messages[-1].text) == "hashes"
            assert "<<" not in row.messages[-1].text


def test_base_and_tuned_are_asked_for_it_and_scored_by_it(run: Path) -> None:
    report = json.loads((run / "eval/report.json").read_text())
    rows = {row["metric"]: row for row in report["comparisons"] if row["tuned"]["slice"] == "all"}
    answers = lines(run / "eval/answers.jsonl")
    for name in ("answer_format", "numeric_match", "self_consistency"):
        assert (rows[name]["tuned"]["status"], rows[name]["tuned"]["n"]) == ("measured", len(answers)), name
    for answer in answers:
        assert INSTRUCTIONS["hashes"] in answer["prompt"]
        assert convention_of(answer["reference"]) == "hashes"
        for side in ("base", "tuned"):
            assert {"answer_format", "numeric_match", "self_consistency"} <= set(answer[side]["scores"])
            assert len(answer[side]["samples"]) == 3
    rules = {rule["metric"]: rule["verdict"] for rule in json.loads((run / "gate.json").read_text())["rules"]}
    assert rules["numeric_match"] == rules["self_consistency"] == "PASS"


def test_the_same_command_again_computes_nothing_anew(run: Path, command: list[str | Path]) -> None:
    cache = {path: path.read_bytes() for path in (run / "eval/cache").iterdir()}
    before = lines(run / "eval/answers.jsonl")
    assert invoke(*command).exit_code == 0
    assert lines(run / "eval/answers.jsonl") == before
    assert {path: path.read_bytes() for path in cache} == cache


def test_a_held_out_problem_is_found_however_it_is_asked(run: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    """The instruction behind a frozen row's question hides it neither from added rows nor from `generate`."""
    held = read_conversations(run / "data/holdout.conversations.jsonl")[0].messages[0].text
    bare = held.removesuffix(f"\n\n{INSTRUCTIONS['hashes']}")
    assert bare != held
    rows = tmp_path / "rows.jsonl"
    more = [{"question": f"{bare} {n}?", "answer": f"#### {n}"} for n in range(3)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in [{"question": bare, "answer": "#### 1"}, *more]))
    found = invoke("generate", "--run", run, "--prompts", rows, "--samples", "1", "--temperature", "0",
                   "--max-new-tokens", "4", "--output", tmp_path / "out.jsonl", "--keep", "all", "--json")  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["prompts"]["in_holdout"] == 1
    asked = lines(tmp_path / "out.jsonl")
    assert len(asked) == 3
    assert all(row["messages"][-2]["content"].endswith(INSTRUCTIONS["hashes"]) for row in asked)
    trained = invoke(
        "reasoning", "sft", "--model", tiny_model_dir, "--data", rows, "--output", tmp_path / "again", "--dry-run",
        *settings(*QUIET, f"data.holdout_file={run / 'data/holdout.conversations.jsonl'}", "data.validation_split=0",
                  "data.near_duplicate_threshold=null", "data.policies.contaminated=skip", "data.max_seq_length=1024"),
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr
    assert "in_holdout" in trained.stdout + trained.stderr


def test_offline_both_missing_names_are_told_before_torch_is_loaded() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from halo_forge.cli.main import build\n"
        "answer = CliRunner().invoke(build(), ['reasoning', 'sft'])\n"
        "print(answer.exit_code, 'torch' in sys.modules); print(answer.stderr)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere", "PYTHONPATH": ":".join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert found.stdout.splitlines()[0] == "2 False", found.stdout + found.stderr
    for name, fetch in (("Qwen/Qwen2.5-3B-Instruct", ""), ("meta-math/MetaMathQA", "--repo-type dataset ")):
        assert f"{name} is not on this machine" in found.stdout
        assert f"hf download {fetch}{name}" in found.stdout


BAD: dict[str, tuple[str, str]] = {
    "final_answer: bracket": ("one of keep, hashes, boxed, sentence", "final_answer"),
    "final_answer: boxed\n  system_prompt: 'End with #### and the number.'": ("asks for another form", "hashes"),
    "answer_instruction: maybe": ("true or false", "answer_instruction"),
}


@pytest.mark.parametrize(("text", "said"), BAD.items())
def test_a_wrong_convention_is_told_with_its_place(text: str, said: tuple[str, str], tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(f"data:\n  train_file: rows.jsonl\n  {text}\n")
    result = invoke("reasoning", "sft", "--config", config)
    assert result.exit_code == 2
    assert "bad.yaml:3" in result.stderr or "bad.yaml:4" in result.stderr
    assert all(words in result.stderr for words in said), result.stderr
    assert "Traceback" not in result.output
