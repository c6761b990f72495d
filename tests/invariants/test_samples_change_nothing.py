"""Sample answers while training: the same weights bit for bit, no holdout row, a resume that repeats no line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from halo_forge.chat import prompt_and_reference, read_conversations
from halo_forge.errors import Interrupted
from halo_forge.train.watching import samples
from training_runs import final_weights, losses, prepared_run, train_now

CADENCE: dict[str, Any] = {"eval_steps": 4, "output.save_steps": 3, "output.save_total_limit": 2}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_weights_are_bit_identical_with_and_without(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, method: str, attention: str
) -> None:
    runs = {}
    for num in (0, 3):
        runs[num] = tmp_path / f"with-{num}"
        options = {
            "method": method,
            "model.attn_implementation": attention,
            "evaluation.sample_prompts": num,
            **CADENCE,
        }
        train_now(prepared_run(tiny_tokenizer, tiny_model_dir, runs[num], **options))
    assert losses(runs[0]) == losses(runs[3])
    assert final_weights(runs[0]) == final_weights(runs[3])
    assert not (runs[0] / "samples.jsonl").exists()
    assert [line["step"] for line in lines_of(runs[3])] == [4] * 3 + [8] * 3 + [12] * 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_the_answers_are_the_models_own_to_validation_rows(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The last step's answers equal those of transformers' own greedy search over final_model, prompt by prompt."""
    output = tmp_path / "run"
    options = {"evaluation.sample_prompts": 2, "evaluation.sample_tokens": 12, "output.final": "latest", **CADENCE}
    prepared = prepared_run(tiny_tokenizer, tiny_model_dir, output, **options)
    train_now(prepared)
    last = [line for line in lines_of(output) if line["step"] == 12]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = PeftModel.from_pretrained(model, output / "final_model").eval()
    rows = read_conversations(output / prepared.data.splits["validation"].conversations)[:2]
    held_out = {row.id for row in read_conversations(output / prepared.data.splits["holdout"].conversations)}
    assert not held_out & {row.id for row in rows}
    for row, line in zip(rows, last, strict=True):
        ids, reference, stops = prompt_and_reference(row, tiny_tokenizer)
        assert (line["prompt"], line["reference"]) == (tiny_tokenizer.decode(ids), reference)
        expected = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=0,
        )[0, len(ids):].tolist()  # fmt: skip
        answer = [token for token in expected if token not in stops]
        assert line["answer"] == tiny_tokenizer.decode(answer)
        assert line["stopped"] == (len(answer) < len(expected))


def test_a_resumed_run_repeats_no_line(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    options = {"evaluation.sample_prompts": 2, **CADENCE}
    whole = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "whole", **options)
    train_now(whole)
    parts = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "parts", **options)
    for stop_at in (5, 3, 2):
        counter = itertools.count()

        def check(counter: Any = counter, stop_at: int = stop_at) -> None:
            if next(counter) == stop_at:
                raise Interrupted("stopped by a test")

        with pytest.raises(Interrupted):
            train_now(parts, check=check)
        with open(tmp_path / "parts" / "samples.jsonl", "ab") as file:  # what a killed process leaves
            file.write(b'{"step": 99, "prompt": "x"}\n{"step": 1')
    train_now(parts)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_what_would_take_too_long_is_left_out_and_said(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "FREE_TIME_S", 0.0)
    monkeypatch.setattr(samples, "TIME_SHARE", 1e-9)
    notes: list[str] = []
    prepared = prepared_run(
        tiny_tokenizer, tiny_model_dir, tmp_path / "run", **{"evaluation.sample_prompts": 3}, **CADENCE
    )
    train_now(prepared, notify=lambda event, fields: notes.append(fields["text"]) if event == "note" else None)
    assert lines_of(tmp_path / "run") == []
    told = [note for note in notes if "sample answers" in note]
    assert len(told) == 1
    assert told[0].startswith("0 of 3 sample answers at step 4: they may take 0% of the training time")
