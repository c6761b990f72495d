"""`halo-forge agentic sft` on a tiny model: rows with tools in, a model whose own template writes tools out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from transformers import AutoTokenizer
from typer.testing import CliRunner

from halo_forge.chat import read_conversations
from halo_forge.chat.call_format import call_format_of
from halo_forge.chat.tool_format import MARK
from halo_forge.cli.main import build
from halo_forge.evaluate.call_scores import CALL_METRICS

CITIES = ("Rome", "Oslo", "Cork", "Graz", "Bern", "Kiel")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def rows(path: Path) -> Path:
    """Calls, parallel calls, calls with results and a second round, no calls; and rows that cannot be used."""
    lines: list[dict[str, Any]] = []
    for number in range(60):
        first, second = CITIES[number % 6], CITIES[(number + 1 + number // 6) % 6]
        ask = {"role": "user", "content": f"Weather in {first} {number}?"}
        call = {"function": {"name": "weather", "arguments": {"city": first, "days": number}}}
        other = {"function": {"name": "weather", "arguments": {"city": second}}}
        told = [{"role": "tool", "content": f"sun {number}"}, {"role": "assistant", "content": f"Sunny in {first}."}]
        kinds: list[list[dict[str, Any]]] = [
            [ask, answer(call)],
            [ask, answer(call, other)],
            [ask, answer(call), *told, {"role": "user", "content": f"And {second}?"}, answer(other)],
            [{"role": "user", "content": f"Hello {number}?"}, {"role": "assistant", "content": "Good morning."}],
        ]
        lines.append({"messages": kinds[number % 4], "tools": [TOOL], "slices": {"kind": str(number % 4)}})
    lines.append({"messages": [ask, answer({"name": "wether", "arguments": {}})], "tools": [TOOL]})
    lines.append({"messages": [ask, answer({"name": "weather", "arguments": {"days": 1}})], "tools": [TOOL]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answer(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


SETTINGS = {
    "training.max_steps": 4, "training.per_device_train_batch_size": 4, "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 1e-3, "data.max_seq_length": 2048, "data.max_bad_fraction": 0.2,
    "data.near_duplicate_threshold": "null", "data.holdout_split": 0.3, "evaluation.max_new_tokens": 8,
    "evaluation.sample_prompts": 0, "evaluation.bootstrap_samples": 100, "gate.min_items": 1, "lora.r": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, Result]:
    root = tmp_path_factory.mktemp("agentic")
    words = ["agentic", "sft", "--data", rows(root / "rows.jsonl"), "--model", tiny_model_dir, "--output", root / "run"]
    for key, value in SETTINGS.items():
        words += ["--set", f"{key}={value}"]
    result = CliRunner().invoke(build(), list(map(str, words)))
    return root / "run", result


def test_the_command_ends_and_tells_what_the_rows_do(run: tuple[Path, Result]) -> None:
    _, result = run
    assert result.exit_code == 0, result.stderr
    assert "the chat template knows no tools; they are written in tool_call tags" in result.stderr
    assert (
        "tools: of 60 rows with tools 15 call one tool, 15 call several at once, 15 call over several" in result.stderr
    )


def test_the_ledger_names_the_calls_that_fit_no_tool(run: tuple[Path, Result]) -> None:
    ledger = [json.loads(line) for line in (run[0] / "data" / "ledger.jsonl").read_text().splitlines()]
    dropped = [(entry["line"], entry["code"]) for entry in ledger if entry["action"] == "dropped"]
    assert dropped == [(61, "unknown_tool"), (62, "missing_argument")]


def test_the_report_has_every_metric_of_calls(run: tuple[Path, Result]) -> None:
    report = json.loads((run[0] / "eval" / "report.json").read_text())
    measured = {row["metric"]: row for row in report["comparisons"] if row["base"]["slice"] == "all"}
    for name in CALL_METRICS:
        assert measured[name]["tuned"]["status"] == "measured", name
        assert measured[name]["tuned"]["n"] > 0
    assert any("model's own format: tool_call tags" in note for note in report["notes"])
    holdout = read_conversations(run[0] / "data" / "holdout.conversations.jsonl")
    no_call = sum(not any(message.tool_calls for message in row.messages) for row in holdout)
    assert measured["irrelevance_accuracy"]["tuned"]["n"] == no_call
    assert measured["call_match"]["tuned"]["n"] == len(holdout) - no_call


def test_answers_of_earlier_turns_are_kept(run: tuple[Path, Result]) -> None:
    lines = [json.loads(line) for line in (run[0] / "eval" / "answers.jsonl").read_text().splitlines()]
    turns = [line["earlier_turns"] for line in lines if "earlier_turns" in line]
    assert turns
    assert all(len(turn) == 2 and turn[0]["reference"].startswith("<tool_call>") for turn in turns)
    assert all(isinstance(turn[0]["base"], str) and isinstance(turn[0]["tuned"], str) for turn in turns)


def test_the_published_template_is_the_trained_one(run: tuple[Path, Result]) -> None:
    """Plain transformers renders tools with what was saved, as the first batch shows that it was trained."""
    tokenizer = AutoTokenizer.from_pretrained(run[0] / "final_model")
    assert tokenizer.chat_template.startswith(MARK)
    assert call_format_of(tokenizer).name == "tool_call tags"
    messages = [{"role": "user", "content": "Weather in Rome 0?"}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 0}}}
    whole = tokenizer.apply_chat_template([*messages, answer(call)], tools=[TOOL], tokenize=False)
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 0}}</tool_call><|im_end|>' in whole
    assert whole.startswith(
        tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    )
    assert "You can call these functions:" in (run[0] / "first_batch.txt").read_text()


def test_offline_what_is_missing_is_told_at_once_and_together() -> None:
    told = CliRunner().invoke(build(), ["agentic", "sft"], env={"HF_HUB_OFFLINE": "1"})
    assert told.exit_code == 2
    for word in ("Qwen/Qwen2.5-7B-Instruct", "Salesforce/xlam-function-calling-60k", "hf download --repo-type dataset"):
        assert word in told.stderr
    glaive = ["agentic", "sft", "--dataset", "glaive_sft", "--model", "smollm2-135m-instruct"]
    told = CliRunner().invoke(build(), glaive, env={"HF_HUB_OFFLINE": "1"})
    assert told.exit_code == 3
    assert "hf download --repo-type dataset glaiveai/glaive-function-calling-v2" in told.stderr
