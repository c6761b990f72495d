"""Short names, Hub ids, the cache and the offline answer; tool-calling shapes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from halo_forge.config.schema import Config, DataSection
from halo_forge.data import DATASETS, check, conversation_of_row
from halo_forge.data.conversion.tool_rows import glaive_row, xlam_row
from halo_forge.data.files.datasets_table import find_dataset
from halo_forge.errors import DataError, ExitCode, RowError, UsageError

DOCUMENTED = {
    ("Code", "codealpaca", "sahil2801/CodeAlpaca-20k", "20K"),
    ("Code", "code_instructions_122k", "TokenBender/code_instructions_122k", "122K"),
    ("Reasoning", "metamath", "meta-math/MetaMathQA", "395K"),
    ("Reasoning", "gsm8k_sft", "gsm8k", "8.5K"),
    ("VLM", "llava", "liuhaotian/LLaVA-Instruct-150K", "150K"),
    ("Audio", "librispeech_sft", "librispeech_asr", "100h"),
    ("Agentic", "xlam_sft", "Salesforce/xlam-function-calling-60k", "60K"),
    ("Agentic", "glaive_sft", "glaiveai/glaive-function-calling-v2", "113K"),
}


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache of our own, with the Hub switched off."""
    import datasets
    from huggingface_hub import constants

    import halo_forge.models.hub  # noqa: F401 - what is timed below is the answer, not imports

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def add_snapshot(hub_cache: Path, name: str, files: dict[str, str]) -> Path:
    home = hub_cache / f"datasets--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123abcd")
    for file, content in files.items():
        path = home / "snapshots" / "0123abcd" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return home


def config_for(dataset: str, **data: Any) -> Config:
    return Config(data=DataSection(dataset=dataset, **data))


def test_the_table_is_the_documented_one_and_two_more() -> None:
    rows = {(entry.domain, entry.name, entry.hub_id, entry.size) for entry in DATASETS if entry.documented}
    assert rows == DOCUMENTED
    assert [entry.name for entry in DATASETS if not entry.documented] == ["python_instructions", "common_voice_sft"]


def test_names_lead_to_where_the_hub_keeps_them_today() -> None:
    assert (find_dataset("gsm8k_sft").source, find_dataset("gsm8k_sft").config) == ("openai/gsm8k", "main")
    assert find_dataset("gsm8k") == find_dataset("gsm8k_sft")
    assert find_dataset("code_instructions_122k").source == "TokenBender/code_instructions_122k_alpaca_style"
    assert find_dataset("org/name:config").config == "config"


@pytest.mark.parametrize("name", ["llava", "librispeech_sft", "common_voice_sft"])
def test_sets_with_images_and_sounds_are_found_as_others_are(name: str) -> None:
    entry = next(entry for entry in DATASETS if entry.name == name)
    found = find_dataset(name)
    assert (found.source, found.config) == (entry.source or entry.hub_id, entry.config)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean metamath"):
        find_dataset("metamth")
    with pytest.raises(UsageError, match="nothing to train on"):
        check(Config())


@pytest.mark.parametrize("name", ["gsm8k_sft", "someone/something"])
def test_offline_the_answer_comes_at_once_and_names_the_command(hub_cache: Path, name: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="not on this machine") as caught:
        check(config_for(name))
    assert time.monotonic() - start < 10  # milliseconds; a client that retries takes a minute
    source = find_dataset(name).source
    assert f"hf download --repo-type dataset {source}" in str(caught.value.fix)
    assert caught.value.exit_code == ExitCode.DATA


def test_an_unreachable_hub_is_told_at_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with pytest.raises(DataError, match="no connection to 127"):
        check(config_for("gsm8k_sft"))
    assert time.monotonic() - start < 10


def test_a_downloaded_data_set_is_used_offline(hub_cache: Path) -> None:
    rows = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(8)]
    configs = "- config_name: main\n  data_files: main/train.jsonl\n- config_name: other\n  data_files: x.jsonl\n"
    card = f"---\nconfigs:\n{configs}---\n"
    add_snapshot(
        hub_cache,
        "openai/gsm8k",
        {"README.md": card, "main/train.jsonl": "".join(json.dumps(row) + "\n" for row in rows)},
    )
    report = check(config_for("gsm8k_sft"))
    assert (report.read, report.kept) == (8, 8)
    assert report.sources[0]["path"] == "dataset:gsm8k_sft"
    assert report.sources[0]["format"] == "question_answer"
    assert check(config_for("gsm8k_sft", max_samples=3)).read == 3
    turn = conversation_of_row(config_for("gsm8k_sft"), 4)
    assert (turn.messages[0].text, turn.source.line) == ("3 + 3?", 4)


def test_a_snapshot_without_data_counts_as_absent(hub_cache: Path) -> None:
    add_snapshot(hub_cache, "openai/gsm8k", {"README.md": "---\n---\n"})
    with pytest.raises(DataError, match="not on this machine"):
        check(config_for("gsm8k_sft"))


def test_what_datasets_says_is_passed_on_in_one_line(hub_cache: Path) -> None:
    add_snapshot(hub_cache, "some/set", {"test.jsonl": '{"text": "a"}\n'})
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        check(config_for("some/set"))
    assert "\n" not in caught.value.what


def test_xlam_rows() -> None:
    value = {
        "id": 0,
        "query": "Weather in Rome?",
        "answers": '[{"name": "weather", "arguments": {"city": "Rome"}}]',
        "tools": '[{"name": "weather", "description": "d", "parameters": {"city": {"type": "str"}}}]',
    }
    row = xlam_row(value)
    assert row["tools"][0]["function"]["name"] == "weather"
    assert row["messages"][1]["tool_calls"] == [{"name": "weather", "arguments": {"city": "Rome"}}]
    for column, text in (("answers", "[]"), ("answers", "{oops"), ("tools", '["x"]')):
        with pytest.raises(RowError):
            xlam_row(value | {column: text})


def test_glaive_rows() -> None:
    value = {
        "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
        '{"name": "rate", "parameters": {}}\n{"name": "news", "parameters": {}}',
        "chat": "USER: How many euros are 500 dollars?\n\n\nASSISTANT: <functioncall> "
        '{"name": "rate", "arguments": \'{"from": "USD"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"rate": 0.9}\n\n\nASSISTANT: About 450 euros. <|endoftext|>\n\n\n',
    }
    row = glaive_row(value)
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"] == [{"name": "rate", "arguments": '{"from": "USD"}'}]
    assert row["messages"][4]["content"] == "About 450 euros."
    assert [tool["function"]["name"] for tool in row["tools"]] == ["rate", "news"]
    with pytest.raises(RowError, match="function call"):
        glaive_row(value | {"chat": 'USER: a\n\n\nASSISTANT: <functioncall> {"name": oops}'})


def test_tool_data_sets_become_conversations(hub_cache: Path) -> None:
    value = {"id": 1, "query": "Q", "answers": '[{"name": "f", "arguments": {}}]', "tools": '[{"name": "f"}]'}
    card = "---\nconfigs:\n- config_name: dataset\n  data_files: rows.json\n---\n"
    bad = value | {"answers": "[{"}
    add_snapshot(
        hub_cache,
        "Salesforce/xlam-function-calling-60k",
        {"README.md": card, "rows.json": json.dumps([value, bad])},
    )
    report = check(config_for("xlam_sft"))
    assert (report.kept, report.dropped) == (1, 1)
    assert report.rows[0]["line"] == 2
    assert conversation_of_row(config_for("xlam_sft"), 1).messages[1].tool_calls[0].name == "f"
