"""Real rows through SmolLM2's template: ids as transformers makes them, answers trained to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart, prompt_and_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GSM8K = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"
NUM_ROWS = 400


@pytest.mark.skipif(not GSM8K.exists(), reason="gsm8k_train.jsonl is not beside the repository")
def test_gsm8k_rows(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = ChatEncoder(smollm2_tokenizer, max_seq_length=2048)
    lines = GSM8K.read_text().splitlines()
    for number, line in enumerate(lines[:: len(lines) // NUM_ROWS], start=1):
        source = json.loads(line)
        said = [("user", source["question"]), ("assistant", source["answer"])]
        messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in said)  # type: ignore[arg-type]
        row = Conversation(id=str(number), messages=messages, source=SourceRef(path=GSM8K.name, line=number))
        encoded = encoder.encode(row)
        ids, weights = encoded.example.input_ids, encoded.example.loss_weights
        plain = [{"role": role, "content": text} for role, text in said]
        assert ids.tolist() == smollm2_tokenizer.apply_chat_template(plain)["input_ids"]
        assert smollm2_tokenizer.decode(ids[weights > 0]) == source["answer"] + "<|im_end|>"
        prompt = smollm2_tokenizer.apply_chat_template(plain[:1], add_generation_prompt=True)["input_ids"]
        assert weights[: len(prompt)].sum() == 0
        assert weights[len(prompt)] == 1
        assert prompt_and_reference(row, smollm2_tokenizer)[0] == prompt
        assert encoded.notes == ()
