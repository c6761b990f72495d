"""Every data set with a short name, from small files with the columns and places that the Hub's own have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halo_forge.chat.records import ToolCall
from halo_forge.config.schema import Config, DataSection
from halo_forge.data import DATASETS, check
from halo_forge.data.conversion.formats import Converted, convert, detect
from halo_forge.data.files.datasets_table import find_dataset
from halo_forge.data.files.hub_rows import HubDataset, dataset_batches, dataset_rows
from halo_forge.data.files.sources import rows_of
from halo_forge.errors import DataError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """hub(repository, {file: text or rows}) puts a snapshot into a Hub cache of our own; the Hub itself is off."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(name: str, files: dict[str, str | list[dict[str, Any]]]) -> Path:
        home = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0123abcd")
        for file, content in files.items():
            path = home / "snapshots" / "0123abcd" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content)
        return home / "snapshots" / "0123abcd"

    return add


def write(path: Path, content: str | list[dict[str, Any]]) -> None:
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        path.write_text(json.dumps(content))


def converted(name: str) -> list[Converted]:
    rows = list(dataset_rows(find_dataset(name), None))
    verdict = detect(name, [row.value for row in rows if row.value is not None])
    return [convert(row, verdict.format) for row in rows]


def texts(row: Converted) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in row.conversation.messages]


def card(config: str, files: str) -> str:
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: {files}\n---\n"


CODE = [{"instruction": "Add two numbers.", "input": "2, 3", "output": "print(2 + 3)"},
        {"instruction": "Print a line.", "input": "", "output": "print('a line')"}]  # fmt: skip
CODE_TURNS = [("user", "Add two numbers.\n\n2, 3"), ("assistant", "print(2 + 3)")]
XLAM = {
    "id": 0, "query": "Weather in Rome for 2 days?",
    "answers": '[{"name": "weather", "arguments": {"city": "Rome", "days": 2}}, {"name": "now", "arguments": {}}]',
    "tools": '[{"name": "weather", "description": "d", "parameters": {"city": {"type": "str"}, '
    '"days": {"type": "int, optional"}}}, {"name": "now"}]',
}  # fmt: skip
GLAIVE = {
    "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    '{\n  "name": "rate",\n  "parameters": {"type": "object"}\n}\n',
    "chat": "USER: How many euros are 500 dollars?\n\n\nASSISTANT: <functioncall> "
    '{"name": "rate", "arguments": \'{"from": "USD"}\'} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {"rate": 0.9}\n\n\nASSISTANT: About 450 euros. <|endoftext|>\n\n\n',
}
SETS: dict[str, tuple[str, dict[str, str | list[dict[str, Any]]], list[tuple[str, str]]]] = {
    "codealpaca": ("sahil2801/CodeAlpaca-20k", {"code_alpaca_20k.json": CODE}, CODE_TURNS),
    "code_instructions_122k": (
        "TokenBender/code_instructions_122k_alpaca_style",
        {"train.json": [row | {"text": "Below is an instruction ..."} for row in CODE]}, CODE_TURNS,
    ),
    "python_instructions": (
        "iamtarun/python_code_instructions_18k_alpaca",
        {"README.md": card("default", "data/train-*"),
         "data/train-00000-of-00001-ab.parquet": [row | {"prompt": "Below is ..."} for row in CODE]}, CODE_TURNS,
    ),
    "metamath": (
        "meta-math/MetaMathQA",
        {"MetaMathQA-395K.json": [{"type": "GSM_SV", "query": "1 + 1?", "original_question": "1 + x?",
                                   "response": "2\nThe answer is: 2"}]},
        [("user", "1 + 1?"), ("assistant", "2\nThe answer is: 2")],
    ),
    "gsm8k_sft": (
        "openai/gsm8k",
        {"README.md": card("main", "main/train-*"), "socratic/train-00000-of-00001.parquet": [{"question": "x",
            "answer": "y"}],
         "main/test-00000-of-00001.parquet": [{"question": "t", "answer": "u"}],
         "main/train-00000-of-00001.parquet": [{"question": "3 + 4?", "answer": "<<3+4=7>>7 apples\n#### 7"}]},
        [("user", "3 + 4?"), ("assistant", "<<3+4=7>>7 apples\n#### 7")],
    ),
    "xlam_sft": (
        "Salesforce/xlam-function-calling-60k",
        {"README.md": card("dataset", "xlam_function_calling_60k.json"), "xlam_function_calling_60k.json": [XLAM]},
        [("user", "Weather in Rome for 2 days?"), ("assistant", "")],
    ),
    "glaive_sft": (
        "glaiveai/glaive-function-calling-v2", {"glaive-function-calling-v2.json": [GLAIVE]},
        [("system", "You are a helpful assistant."), ("user", "How many euros are 500 dollars?"), ("assistant", ""),
         ("tool", '{"rate": 0.9}'), ("assistant", "About 450 euros.")],
    ),
}  # fmt: skip


def test_every_text_data_set_of_the_table_is_tried_here() -> None:
    assert set(SETS) == {entry.name for entry in DATASETS if entry.domain not in ("VLM", "Audio")}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_becomes_conversations(hub: Callable[..., Path], name: str) -> None:
    repository, files, expected = SETS[name]
    assert find_dataset(name).source == repository
    hub(repository, files)
    rows = converted(name)
    assert texts(rows[0]) == expected
    assert all(row.fixes == () for row in rows)
    assert rows[0].conversation.source.path == f"dataset:{name}"
    report = check(Config(data=DataSection(dataset=name)))
    assert (report.read, report.dropped) == (len(rows), 0)


def test_xlam_and_glaive_keep_their_calls_and_tools(hub: Callable[..., Path]) -> None:
    for name in ("xlam_sft", "glaive_sft"):
        hub(SETS[name][0], SETS[name][1])
    xlam = converted("xlam_sft")[0].conversation
    assert xlam.messages[1].tool_calls == (
        ToolCall(name="weather", arguments={"city": "Rome", "days": 2}), ToolCall(name="now", arguments={}),
    )  # fmt: skip
    schema = {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"],
    }  # fmt: skip
    weather = {"name": "weather", "description": "d", "parameters": schema}
    assert [tool["function"] for tool in xlam.tools] == [weather, {"name": "now"}]
    glaive = converted("glaive_sft")[0].conversation
    assert glaive.messages[2].tool_calls == (ToolCall(name="rate", arguments={"from": "USD"}),)
    assert glaive.tools[0]["function"] == {"name": "rate", "parameters": {"type": "object"}}
    assert not any("functioncall" in message.text or "USER:" in message.text for message in glaive.messages)


def test_rows_of_several_files_are_numbered_through_and_limited(hub: Callable[..., Path]) -> None:
    shards = {f"data/train-{at:05}-of-00003.parquet": [{"text": f"{at} {n}"} for n in range(5)] for at in range(3)}
    hub("some/set", {"README.md": card("default", "data/train-*"), **shards})
    dataset = find_dataset("some/set")
    rows = list(dataset_rows(dataset, None))
    assert [row.line for row in rows] == list(range(1, 16))
    assert [row.value for row in rows][5] == {"text": "1 0"}
    assert {row.path for row in rows} == {"dataset:some/set"}
    assert len(list(dataset_rows(dataset, 7))) == 7
    batches = list(dataset_batches(dataset, None, rows_per_batch=4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 4, 3]
    assert [row for batch in batches for row in rows_of(batch)[0]] == rows


def test_a_download_that_was_broken_off_is_not_the_data_set(hub: Callable[..., Path]) -> None:
    hub("some/set", {"README.md": card("default", "data/train-*"),
                     "data/train-00001-of-00003.parquet": [{"text": "a"}]})  # fmt: skip
    with pytest.raises(DataError, match="only 1 of 3 files") as caught:
        list(dataset_rows(find_dataset("some/set"), None))
    assert "hf download" in str(caught.value.fix)


def test_a_bad_row_of_a_data_set_is_a_row_problem(hub: Callable[..., Path]) -> None:
    hub(
        "some/set",
        {"train.jsonl": '{"question": "Which sea?", "answer": "The Baltic."}\n{"question": "a", "question": "b"}\n'},
    )
    rows = list(dataset_rows(find_dataset("some/set"), None))
    assert [row.problem.code if row.problem else None for row in rows] == [None, "duplicate_key"]
    assert (rows[1].line, rows[1].path) == (2, "dataset:some/set")


def test_folders_are_data_sets_too(tmp_path: Path, hub: Callable[..., Path]) -> None:
    import datasets

    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.parquet", [{"text": "a"}])
    write(tmp_path / "set" / "test.parquet", [{"text": "b"}])
    assert [row.value for row in dataset_rows(find_dataset(str(tmp_path / "set")), None)] == [{"text": "a"}]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"text": "saved"}]).save_to_disk(str(tmp_path / "saved"))
    assert [row.value for row in dataset_rows(find_dataset(str(tmp_path / "saved")), None)] == [{"text": "saved"}]


def test_a_few_rows_are_streamed_without_a_download(
    tmp_path: Path, hub: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is stood in for by a folder; what streams is the datasets library itself."""
    from halo_forge.data.files import hub_rows

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(50)))
    monkeypatch.setattr(hub_rows, "_local_directory", lambda dataset: None)
    monkeypatch.setattr(hub_rows, "_require_network", lambda dataset: None)
    dataset = HubDataset(source=str(tmp_path / "set"), config=None, format=None, label="dataset:set")
    notes: list[str] = []
    rows = list(dataset_rows(dataset, 4, notes.append))
    assert [row.value for row in rows] == [{"text": "0"}, {"text": "1"}, {"text": "2"}, {"text": "3"}]
    assert "streamed" in notes[0]
    assert not list(tmp_path.rglob("*.arrow")), "nothing is kept"
