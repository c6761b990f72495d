"""data.final_answer through the data stage: rows of three conventions and of none, damaged ones, and what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halo_forge.chat import Message, TextPart, read_conversations
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import prepare
from halo_forge.data.conversion.identity import prompt_key
from halo_forge.data.overlap.plain_text import plain_turns
from halo_forge.publish.card import prompt_words
from halo_forge.runs import RunDirectory
from halo_forge.texts.final_answers import CONVENTIONS, INSTRUCTIONS, Convention, ends_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKS = "<think>\nMaybe \\boxed{3}?\n</think>\n\n"
HUGE = f"#### {'9' * 500}"
# name -> row, its answer in the convention `hashes`, action and codes of the ledger, whether the question asks for it
ROWS: dict[str, tuple[dict[str, Any], str | None, str, set[str], bool]] = {
    "gsm8k": ({"question": "q1?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}, "2+2 = 4\n#### 4", "fixed",
              {"calculator_annotations"}, True),
    "right already": ({"question": "q2?", "answer": "2+2 = 4\n#### 4"}, "2+2 = 4\n#### 4", "kept", set(), True),
    "metamath": ({"query": "q3?", "response": "so 4.\n#### 4\nThe answer is: 4"}, "so 4.\n#### 4", "fixed",
                 {"final_answer_rewritten"}, True),
    "boxed": ({"question": "q4?", "answer": "so $x=\\boxed{\\frac{1}{2}}$."}, "so $x=\\frac{1}{2}$.\n#### \\frac{1}{2}",
              "fixed", {"final_answer_rewritten"}, True),
    "no answer": ({"question": "q5?", "answer": "I cannot say."}, "I cannot say.", "kept", {"no_final_answer"}, False),
    "unparsable number": ({"question": "q6?", "answer": "#### four"}, "#### four", "kept", {"final_answer_no_number"},
                          True),
    "several answers": ({"question": "q7?", "answer": "\\boxed{4} or \\boxed{5}"}, None, "dropped",
                        {"several_final_answers"}, False),
    "contradictory conventions": ({"question": "q8?", "answer": "#### 4\nThe answer is: 5"}, None, "dropped",
                                  {"several_final_answers"}, False),
    "another is asked for": ({"question": "q9? Put your final answer within \\boxed{}.", "answer": "#### 4"}, None,
                             "dropped", {"other_convention_asked"}, False),
    "the system asks for it": ({"system": "End with #### and the number.", "question": "q10?", "answer": "\\boxed{4}"},
                               "#### 4", "fixed", {"final_answer_rewritten"}, False),
    "empty thinking": ({"question": "q11?", "answer": "<think>\n\n</think>\n\n#### 4"}, "<think>\n\n</think>\n\n#### 4",
                       "kept", set(), True),
    "a guess while thinking": ({"question": "q12?", "answer": f"{THINKS}The answer is: 4"}, f"{THINKS}#### 4", "fixed",
                               {"final_answer_rewritten"}, True),
    "an empty mark": ({"question": "q13?", "answer": "It is\n####"}, "It is\n####", "kept", {"no_final_answer"}, False),
    "only annotations": ({"question": "q14?", "answer": "<<2+2=4>>"}, "<<2+2=4>>", "kept", {"no_final_answer"}, False),
    "huge": ({"question": "q15?", "answer": HUGE}, HUGE, "kept", {"no_final_answer", "repetition"}, False),
    "a document": ({"text": "The answer is: 4"}, "The answer is: 4", "kept", {"other_format"}, False),
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


def prepared(
    run: RunDirectory, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], **data: Any
) -> tuple[list[dict[str, Any]], dict[int, list[tuple[str, str]]]]:
    """The ledger's lines, and by line number of the row what is said in it: (role, text)."""
    path = run.path.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection.model_validate(
        {"train_file": str(path), "max_bad_fraction": 1.0, "validation_split": 0, "holdout_split": 0,
         "max_seq_length": 1024, "near_duplicate_threshold": None, "final_answer": "hashes", **data}
    )  # fmt: skip
    manifest = prepare(Config(data=section), run, tokenizer)
    lines = [json.loads(line) for line in run.file("data/ledger.jsonl").read_text().splitlines()]
    said = read_conversations(run.file(manifest.splits["train"].conversations))
    return lines, {row.source.line: [(turn.role, turn.text) for turn in row.messages] for row in said}


def test_rows_of_every_kind_end_in_one_convention_or_are_told(
    run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    lines, said = prepared(run, tiny_tokenizer, [row for row, *_ in ROWS.values()])
    for number, (name, (_, answer, action, codes, asks)) in enumerate(ROWS.items(), start=1):
        line = lines[number - 1]
        found = set(filter(None, [*(line["code"] or "").split(","), *line.get("flags", [])])) - {"other_format"}
        assert (line["action"], found) == (action, codes - {"other_format"}), name
        if answer is None:
            assert number not in said
            continue
        turns = said[number]
        assert turns[-1][1] == answer, name
        assert turns[0][1].endswith(INSTRUCTIONS["hashes"]) is asks, name


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_can_be_the_one(
    run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, convention: Convention
) -> None:
    rows = [ROWS[name][0] for name in ("gsm8k", "metamath", "boxed")]
    _, said = prepared(run, tiny_tokenizer, rows, final_answer=convention)
    assert len(said) == 3
    for turns in said.values():
        assert ends_in(turns[-1][1], convention)
        assert turns[0][1].endswith(f"\n\n{INSTRUCTIONS[convention]}")


def test_keep_leaves_all_rows_as_they_are(run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [row for row, *_ in ROWS.values()]
    lines, said = prepared(run, tiny_tokenizer, rows, final_answer="keep")
    assert {line["action"] for line in lines} == {"kept"}
    assert said[1][-1][1] == rows[0]["answer"]


def test_the_model_card_says_how_questions_end() -> None:
    (_, told) = prompt_words(DataSection(final_answer="boxed"))
    assert INSTRUCTIONS["boxed"] in told
    assert (
        prompt_words(DataSection()) == prompt_words(DataSection(final_answer="boxed", answer_instruction=False)) == []
    )


def test_policies_decide(run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    policies = {
        "no_final_answer": "skip", "several_final_answers": "keep", "calculator_annotations": "keep",
        "final_answer_rewritten": "quarantine",
    }  # fmt: skip
    names = ("gsm8k", "metamath", "no answer", "several answers")
    rows = [ROWS[name][0] for name in names]
    lines, said = prepared(run, tiny_tokenizer, rows, policies=policies, answer_instruction=False)
    assert [line["action"] for line in lines] == ["kept", "dropped", "dropped", "kept"]
    assert said == {1: [("user", "q1?"), ("assistant", rows[0]["answer"])],
                    4: [("user", "q7?"), ("assistant", rows[3]["answer"])]}  # fmt: skip


def test_the_instruction_changes_neither_split_nor_copies(
    run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    """A row with the instruction behind its question, as a run's own splits hold it, is the same row without it."""
    bare = [{"question": "How many?", "answer": "#### 4"}]
    asking = [{"question": f"How many?\n\n{INSTRUCTIONS['hashes']}", "answer": "#### 4"}]
    lines, said = prepared(run, tiny_tokenizer, bare + asking)
    assert [line["action"] for line in lines] == ["kept", "dropped"]
    assert lines[1]["code"] == "duplicate"
    rows = read_conversations(run.file("data/train.conversations.jsonl"))
    assert said[1][0][1].endswith(INSTRUCTIONS["hashes"])
    assert plain_turns(rows[0])[0] == "how many?"
    bare_turn = Message(role="user", parts=(TextPart(text="How many?"),))
    assert prompt_key(rows[0].messages) == prompt_key([bare_turn])
