"""What is held out can not come into an inspection: not by its file, not by one of its rows, not by one of its prompts.

Each test plants the fault that the guard is there for.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import read_conversations
from halo_forge.chat.store import write_conversations
from halo_forge.config import config_to_yaml
from halo_forge.errors import DataError
from halo_forge.failures import validation
from halo_forge.failures.validation import validation_rows
from halo_forge.runs import sha256_file
from halo_forge.sampling.run import RunFacts
from training_runs import prepared_run


@pytest.fixture
def run(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path) -> Path:
    made = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / "run", num_rows=120)
    (made.run.path / "config.resolved.yaml").write_text(config_to_yaml(made.config, {}))
    made.run.close()
    return made.run.path


def rewrite_validation(run: Path, rows: list) -> None:
    """Put other rows into the split, with a manifest that agrees: no hash is in the way any more."""
    path = run / "data/validation.conversations.jsonl"
    write_conversations(path, rows)
    manifest = json.loads((run / "data/manifest.json").read_text())
    manifest["splits"]["validation"] |= {"sha256": sha256_file(path), "rows": len(rows)}
    (run / "data/manifest.json").write_text(json.dumps(manifest))


def split(run: Path, name: str) -> list:
    return read_conversations(run / f"data/{name}.conversations.jsonl")


def test_a_sound_run_gives_its_validation_rows_and_nothing_else(run: Path) -> None:
    rows = validation_rows(RunFacts.read(run))
    assert rows == split(run, "validation")
    assert rows
    assert not {row.id for row in rows} & {row.id for row in split(run, "holdout")}


def test_the_holdout_under_the_name_of_the_validation_rows_is_refused(run: Path) -> None:
    rewrite_validation(run, split(run, "holdout"))
    with pytest.raises(DataError, match="held out"):
        validation_rows(RunFacts.read(run))


def test_the_code_reading_the_wrong_split_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "SPLIT", "holdout")
    with pytest.raises(DataError, match="held out"):
        validation_rows(RunFacts.read(run))


def test_one_held_out_row_among_the_others_is_refused(run: Path) -> None:
    rewrite_validation(run, [*split(run, "validation"), split(run, "holdout")[-1]])
    with pytest.raises(DataError, match="held out"):
        validation_rows(RunFacts.read(run))


def test_a_held_out_prompt_with_another_answer_is_refused(run: Path) -> None:
    held = split(run, "holdout")[0]
    answer = replace(held.messages[-1], parts=(replace(held.messages[-1].parts[0], text="another answer"),))
    other = replace(held, id="0" * 64, messages=(*held.messages[:-1], answer))
    rewrite_validation(run, [*split(run, "validation"), other])
    with pytest.raises(DataError, match="held out"):
        validation_rows(RunFacts.read(run))


def test_a_changed_holdout_is_refused_too(run: Path) -> None:
    """Or emptying it would open the door."""
    path = run / "data/holdout.conversations.jsonl"
    os.chmod(path, 0o644)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="changed after it was frozen"):
        validation_rows(RunFacts.read(run))


def test_a_run_without_validation_rows_is_told_what_to_do(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    rewrite_validation(copy, [])
    with pytest.raises(DataError, match="no validation rows"):
        validation_rows(RunFacts.read(copy))
