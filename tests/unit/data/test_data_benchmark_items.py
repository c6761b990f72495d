"""Where benchmark items are found, in every layout they come in, and what is said where they are not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from halo_forge.chat.records import Conversation, Message, SourceRef, TextPart
from halo_forge.data.overlap.benchmark_items import (
    KNOWN,
    TREE_VARIABLE,
    BenchmarkItem,
    benchmark_of,
    known_name,
    load_benchmark,
    load_benchmarks,
)
from halo_forge.errors import DataError, UsageError

TREE = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "benchmarks"
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"},
        {"question": "And 2 + 2?", "answer": "#### 4"},
    ],
    "mmlu": [{"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}],
    "truthfulqa": [
        {
            "question": "Who?",
            "mc1_targets": {"choices": ["right", "wrong"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["right", "also right"], "labels": [1, 1]},
        }
    ],
    "hellaswag": [{"ind": 4, "ctx": "A man", "endings": ["sits.", "flies."], "label": "1"}],
    "humaneval": [{"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "    return 1\n"}],
    "ifeval": [{"key": 1000, "prompt": "Write two words.", "kwargs": [{"n": 2}]}],
}
ITEMS = {
    "gsm8k": BenchmarkItem(id="0", prompt="What is 1 + 1?", answer="It is 2.\n#### 2"),
    "mmlu": BenchmarkItem(id="anatomy/0", prompt="Which?", answer="c", others=("a", "b", "c", "d")),
    "truthfulqa": BenchmarkItem(id="0", prompt="Who?", answer="right", others=("right", "wrong", "also right")),
    "hellaswag": BenchmarkItem(id="0", prompt="A man", answer="flies.", others=("sits.", "flies.")),
    "humaneval": BenchmarkItem(id="HumanEval/0", prompt="def f():", answer="    return 1\n"),
    "ifeval": BenchmarkItem(id="1000", prompt="Write two words.", answer=""),
}
FOLDERS = {
    "gsm8k": "main", "mmlu": "anatomy", "truthfulqa": "multiple_choice", "hellaswag": "default",
    "humaneval": "openai_humaneval", "ifeval": "default",
}  # fmt: skip


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def as_tree(root: Path, name: str) -> None:
    write_parquet(root / KNOWN[name].hub_id / FOLDERS[name] / f"{KNOWN[name].split}.parquet", ROWS[name])


def as_hub_snapshot(root: Path, name: str) -> None:
    repository = root / f"datasets--{KNOWN[name].hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc123"
    if name == "ifeval":
        snapshot.mkdir(parents=True)
        (snapshot / "ifeval_input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    else:
        folder = "data" if name == "hellaswag" else FOLDERS[name]
        write_parquet(snapshot / folder / f"{KNOWN[name].split}-00000-of-00001.parquet", ROWS[name])
    write_parquet(snapshot / "all" / "train-00000-of-00001.parquet", [{"question": "not this one"}])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123\n")


def as_datasets_cache(root: Path, name: str) -> None:
    folder = root / KNOWN[name].hub_id.replace("/", "___") / FOLDERS[name] / "0.0.0" / "fedcba"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(ROWS[name])
    with (
        pa.OSFile(str(folder / f"data-{KNOWN[name].split}.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without benchmarks: empty caches, no tree, the Hub switched off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TREE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


@pytest.mark.parametrize("name", list(KNOWN))
@pytest.mark.parametrize(
    ("write", "place"),
    [
        (as_tree, "given"), (as_tree, "named"), (as_tree, "benchmarks"), (as_hub_snapshot, "hub"),
        (as_datasets_cache, "datasets"),
    ],
    ids=["tree given", "tree in the environment", "./benchmarks", "Hub snapshot", "cache of datasets"],
)  # fmt: skip
def test_items_are_found_in_every_place(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path, str], None], place: str
) -> None:
    write(nowhere / place, name)
    if place == "named":
        monkeypatch.setenv(TREE_VARIABLE, str(nowhere / "named"))
    benchmark = load_benchmark(name, nowhere / "given")
    assert (benchmark.name, len(benchmark.items)) == (name, len(ROWS[name]))
    assert benchmark.items[0] == ITEMS[name]


def test_hash_is_of_the_items_not_of_the_place(nowhere: Path) -> None:
    as_tree(nowhere / "tree", "gsm8k")
    as_hub_snapshot(nowhere / "hub", "gsm8k")
    assert load_benchmark("gsm8k", nowhere / "tree").sha256 == load_benchmark("gsm8k").sha256
    write_parquet(nowhere / "tree/openai/gsm8k/main/test.parquet", ROWS["gsm8k"][:1])
    assert load_benchmark("gsm8k", nowhere / "tree").sha256 != load_benchmark("gsm8k").sha256


def test_names_that_mean_a_known_benchmark() -> None:
    assert known_name("GSM8K") == known_name("gsm8k_cot_zeroshot") == known_name("openai/gsm8k") == "gsm8k"
    assert known_name("truthfulqa_mc2") == "truthfulqa"
    assert known_name("mmlu_anatomy") == "mmlu"
    assert known_name("mmlurgy") is None


def test_loading_takes_every_such_name(nowhere: Path) -> None:
    as_tree(nowhere, "gsm8k")
    for name in ("GSM8K", "gsm8k_cot", "openai/gsm8k"):
        assert load_benchmark(name, nowhere).name == "gsm8k"


def test_absent_benchmark_is_told_at_once_with_the_command(nowhere: Path) -> None:
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_benchmark("hellaswag")
    assert time.monotonic() - start < 10  # milliseconds; a client that retries takes a minute
    assert caught.value.fix is not None
    assert "hf download Rowan/hellaswag --repo-type dataset" in caught.value.fix
    assert TREE_VARIABLE in str(caught.value)


def test_unknown_name_is_told_with_the_nearest(nowhere: Path) -> None:
    with pytest.raises(UsageError, match="did you mean humaneval"):
        load_benchmark("humanevel")


def test_other_columns_are_refused_in_words(nowhere: Path) -> None:
    write_parquet(nowhere / "openai/gsm8k/main/test.parquet", [{"problem": "x", "solution": "y"}])
    with pytest.raises(DataError, match="not gsm8k as its evaluation reads it"):
        load_benchmark("gsm8k", nowhere)
    (nowhere / "openai/gsm8k/main/test.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(DataError, match="not gsm8k"):
        load_benchmark("gsm8k", nowhere)


def test_any_file_of_rows_is_a_benchmark(nowhere: Path) -> None:
    file = nowhere / "mine.jsonl"
    turns = [("system", "Be kind."), ("user", "One?"), ("assistant", "Two.")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"messages": [{"role": "user", "content": ""}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    benchmark = load_benchmark(str(file), notify=lambda event, fields: notes.append(fields["text"]))
    assert benchmark.name == "mine.jsonl"
    assert benchmark.items == (BenchmarkItem(id="mine.jsonl:1", prompt="One?", answer="Two."),)
    assert any("1 of 2 rows" in note for note in notes)
    (nowhere / "many" / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "deep/a.jsonl"):
        (nowhere / "many" / name).write_text('{"prompt": "p of ' + name + '", "completion": "c"}\n')
    many = load_benchmark(str(nowhere / "many"))
    assert [item.id for item in many.items] == ["b.jsonl:1", "deep/a.jsonl:1"]


def test_file_without_a_single_item_is_refused(nowhere: Path) -> None:
    (nowhere / "bad.jsonl").write_text('{"prompt": "", "completion": ""}\n')
    with pytest.raises(DataError, match="holds no item"):
        load_benchmark(str(nowhere / "bad.jsonl"))


def test_tree_stands_for_all_that_it_holds(nowhere: Path) -> None:
    for name in ("gsm8k", "ifeval"):
        as_tree(nowhere / "tree", name)
    as_tree(nowhere / "benchmarks", "mmlu")
    assert [found.name for found in load_benchmarks([str(nowhere / "tree"), "mmlu"])] == ["gsm8k", "ifeval", "mmlu"]


def test_conversations_become_items() -> None:
    turns = (("system", "s"), ("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"))
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns)  # type: ignore[arg-type]
    conversation = Conversation(id="x", messages=messages, source=SourceRef(path="h.jsonl", line=7))
    (item,) = benchmark_of("holdout", [("h.jsonl:7", conversation)]).items
    assert item == BenchmarkItem(id="h.jsonl:7", prompt="a\nc", answer="b\nd")


@pytest.mark.skipif(not TREE.is_dir(), reason="no benchmark tree beside the repository")
def test_real_tree_has_the_published_numbers_of_items() -> None:
    counts = {benchmark.name: len(benchmark.items) for benchmark in load_benchmarks([str(TREE)])}
    assert counts == {
        "gsm8k": 1319,
        "mmlu": 14042,
        "truthfulqa": 790,
        "hellaswag": 1000,
        "humaneval": 164,
        "ifeval": 541,
    }
