"""Every row that is read ends in the ledger, for any mixture of sound and damaged rows; a stage that loses one stops.

And no prompt, in whatever spelling, ever stands in two splits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_forge.chat import read_conversations
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import check_file, prepare
from halo_forge.data.decisions import Rows
from halo_forge.data.parts import Part
from halo_forge.errors import DataError
from halo_forge.runs import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARE = sys.modules["halo_forge.data.prepare"]
WORKERS = sys.modules["halo_forge.data.workers"]

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "User", "bot", None, 3]),
        "content": TEXT | st.none() | st.integers() | st.lists(TEXT, max_size=2),
        "tool_calls": st.none() | st.just([{"name": "f", "arguments": "{}"}]) | TEXT,
        "weight": st.none() | st.floats(allow_nan=False),
    },
)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROW = (
    st.fixed_dictionaries(
        {"messages": st.lists(TURN, max_size=5)}, optional={"tools": JSON_VALUE, "slices": JSON_VALUE}
    )
    | st.fixed_dictionaries({"question": TEXT, "answer": TEXT})
    | JSON_VALUE
)
LINE = ROW.map(json.dumps) | ROW.map(lambda row: json.dumps(row)[:-1]) | TEXT


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines=st.lists(LINE, max_size=12))
def test_any_lines_add_up_and_none_raises_anything_else(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        try:
            report = check_file(str(path))
        except DataError:
            return
    assert report.read == report.kept + report.dropped
    assert report.fixed <= report.kept
    assert sum(row["action"] == "dropped" for row in report.rows) == report.dropped
    assert all(row["code"] and row["reason"] and row["line"] >= 1 for row in report.rows)
    assert json.dumps(report.to_dict(), ensure_ascii=False).encode(), "what is reported can be written down"


def write_rows(path: Path, num_rows: int) -> Config:
    rows = [{"question": f"number {number}?", "answer": str(number)} for number in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Config(data=DataSection(train_file=str(path)))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.open(tmp_path / "run") as directory:
        yield directory


def test_a_row_lost_on_the_way_stops_the_stage(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker forgets a row that the reader yielded."""
    part_of = WORKERS.part_of
    monkeypatch.setattr(WORKERS, "part_of", lambda drafts: part_of([*drafts[:7], *drafts[8:]]))
    with pytest.raises(DataError, match="does not add up: 30 rows were read and 29"):
        prepare(write_rows(tmp_path / "rows.jsonl", 30), run, tiny_tokenizer)
    assert not run.file("data/manifest.json").exists()


def test_a_row_counted_twice_stops_the_stage(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_of = WORKERS.part_of
    monkeypatch.setattr(WORKERS, "part_of", lambda drafts: part_of([*drafts, drafts[0]]))
    with pytest.raises(DataError, match="does not add up"):
        prepare(write_rows(tmp_path / "rows.jsonl", 30), run, tiny_tokenizer)


def test_a_row_not_told_stops_the_stage(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PREPARE.write_ledger

    def forgetting(rows: Rows, writer: Any) -> Any:
        summary, told = write(rows, writer)
        summary.by_file[rows.sources[0].label].read -= 1
        return summary, told

    monkeypatch.setattr(PREPARE, "write_ledger", forgetting)
    with pytest.raises(DataError, match="does not add up: 30 rows were read and 29"):
        prepare(write_rows(tmp_path / "rows.jsonl", 30), run, tiny_tokenizer)


def test_a_row_not_written_stops_the_stage(
    tmp_path: Path, run: RunDirectory, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = PREPARE.write_splits

    def forgetting(parts: list[Part], split_of: np.ndarray, names: list[str], directory: Path) -> Any:
        split_of[5] = -1
        return write(parts, split_of, names, directory)

    monkeypatch.setattr(PREPARE, "write_splits", forgetting)
    with pytest.raises(DataError, match="does not add up: it keeps"):
        prepare(write_rows(tmp_path / "rows.jsonl", 30), run, tiny_tokenizer)
    assert not run.file("data/manifest.json").exists()


SPELLINGS = st.sampled_from(
    [str, str.upper, str.title, lambda text: f"  {text} ", lambda text: text.replace(" ", "\n ")]
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 25), SPELLINGS, st.integers(0, 3)), min_size=12, max_size=80))
def test_no_prompt_stands_in_two_splits(
    tiny_tokenizer: PreTrainedTokenizerBase, rows: list[tuple[int, Any, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_text(
            "".join(
                json.dumps({"question": spelled(f"what is number {number}"), "answer": f"a {answer}"}) + "\n"
                for number, spelled, answer in rows
            )
        )
        config = Config(data=DataSection(train_file=str(path), validation_split=0.2, holdout_split=0.2))
        with RunDirectory.open(Path(directory) / "run") as run:
            prepared = prepare(config, run, tiny_tokenizer)
            places: dict[str, set[str]] = {}
            for name, report in prepared.splits.items():
                for conversation in read_conversations(run.file(report.conversations)):
                    plain = " ".join(conversation.messages[0].text.casefold().split())
                    places.setdefault(plain, set()).add(name)
            actions = Counter(json.loads(line)["action"] for line in run.file(prepared.ledger).read_text().splitlines())
    assert all(len(splits) == 1 for splits in places.values())
    assert actions["kept"] == sum(report.rows for report in prepared.splits.values())
    assert actions.total() == len(rows) == prepared.sources[0].read
