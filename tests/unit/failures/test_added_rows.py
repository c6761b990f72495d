"""Added rows that are nearly held-out or validation prompts are left out, and the run's own rows stay."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.config import config_to_yaml, load_config
from halo_forge.data import prepare
from halo_forge.errors import DataError
from halo_forge.failures.added_rows import added_and_left_out, next_config, refuse_unfit, same_splits
from halo_forge.failures.iteration import next_directory
from halo_forge.runs import RunDirectory, silent
from halo_forge.sampling.run import RunFacts
from training_runs import settings

LETTERS = "abcdefghij"


def question(number: int) -> str:
    """16 words that no other question has in this order: a near copy is near to this one only."""
    draw = random.Random(number)
    return " ".join("".join(draw.choices(LETTERS, k=4)) for _ in range(16))


@pytest.fixture
def parent(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path) -> RunFacts:
    rows = tmp_path / "rows.jsonl"
    lines = [{"question": question(number), "answer": f"so many: {number}"} for number in range(60)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config(flags=settings(tiny_model_dir, rows, tmp_path / "run")).config
    with RunDirectory.open(tmp_path / "run") as run:
        prepare(config, run, tiny_tokenizer)
    (tmp_path / "run/config.resolved.yaml").write_text(config_to_yaml(config, {}))
    return RunFacts.read(tmp_path / "run")


def write(path: Path, questions: list[str]) -> Path:
    path.write_text("".join(json.dumps({"question": question, "answer": "yes"}) + "\n" for question in questions))
    return path


def numbers(parent: RunFacts, split: str) -> list[str]:
    path = parent.directory.file(parent.prepared.splits[split].conversations)
    return [json.loads(line)["messages"][0]["parts"][0]["text"] for line in path.read_text().splitlines()]


def nearly(text: str) -> str:
    words = text.split()
    return " ".join([*words[:8], "otherwise", *words[9:]])


def test_near_copies_of_what_is_measured_on_are_left_out(
    parent: RunFacts, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    held, validated = numbers(parent, "holdout")[0], numbers(parent, "validation")[0]
    added = write(
        tmp_path / "added.jsonl",
        [held, validated, nearly(validated), nearly(held), question(1000)],
    )
    resolved = next_config(parent, added, tmp_path / "next")
    refuse_unfit(resolved.config, added, silent)
    with RunDirectory.open(tmp_path / "next") as run:
        after = prepare(resolved.config, run, tiny_tokenizer)
        same_splits(parent, after)
        num_read, num_added, left_out = added_and_left_out(run, after, added)
    assert (num_read, num_added) == (5, 1)
    codes = {row.line: row.code for row in left_out}
    assert codes.pop(2) in ("in_validation", "contaminated")
    assert codes == {1: "in_holdout", 3: "contaminated", 4: "in_holdout"}
    assert after.splits["train"].rows == parent.prepared.splits["train"].rows + 1


def test_other_splits_than_before_are_refused(parent: RunFacts) -> None:
    holdout = parent.prepared.splits["holdout"].model_copy(update={"sha256": "0" * 64})
    other = parent.prepared.model_copy(update={"splits": {**parent.prepared.splits, "holdout": holdout}})
    with pytest.raises(DataError, match="are not those of the run before"):
        same_splits(parent, other)


def test_the_users_own_policy_for_near_copies_stands(parent: RunFacts, tmp_path: Path) -> None:
    config = parent.config
    data = config.data.model_copy(update={"policies": {"contaminated": "fail"}})
    resolved = next_config(
        RunFacts(
            directory=parent.directory, config=config.model_copy(update={"data": data}), prepared=parent.prepared,
            trained=None,
        ),
        tmp_path / "rows.jsonl", tmp_path / "next",
    )  # fmt: skip
    assert resolved.config.data.policies == {"contaminated": "fail"}
    assert resolved.config.training == config.training
    assert resolved.config.output.dir == str(tmp_path / "next")


@pytest.mark.parametrize(
    ("before", "after"), [("runs/a", "runs/a-iter2"), ("runs/a-iter2", "runs/a-iter3"), ("b-iter9", "b-iter10")]
)
def test_directories_count_on(before: str, after: str) -> None:
    assert next_directory(Path(before)) == Path(after)
