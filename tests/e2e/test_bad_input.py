"""Mistakes of a user, each through the command line: one message with place and remedy, the right exit code, no
traceback, and nothing that was not there before."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli.main import build
from training_runs import write_rows

HALO_FORGE = Path(sys.executable).with_name("halo-forge")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `model`, `rows.jsonl` and a sound `sound.yaml` whose output would be `out`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model").symlink_to(tiny_model_dir)
    write_rows(tmp_path / "rows.jsonl", 30)
    (tmp_path / "sound.yaml").write_text(
        "model:\n  name: model\ndata:\n  train_file: rows.jsonl\ntraining:\n  max_steps: 2\noutput:\n  dir: out\n"
    )
    return tmp_path


def invoke(command: str) -> Result:
    return CliRunner().invoke(build(), command.split())


def files_below(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
        if path.name != ".lock" and "model" not in path.relative_to(directory).parts
    }


def refused(command: str, code: int, *said: str) -> str:
    """Run it; it must refuse in words, hold everything in `said`, and leave the directory as it was."""
    before = files_below(Path.cwd())
    answer = invoke(command)
    assert answer.exit_code == code, answer.output
    assert answer.stdout == ""
    message = answer.stderr
    assert message.count("error: ") == 1, message
    assert "Traceback" not in message
    assert "fault of halo-forge" not in message
    for text in said:
        assert text in message, message
    created = set(files_below(Path.cwd())) - set(before)
    assert {name for name in created if "/" in name} == set(), "something was written for a run that never began"
    assert {name: content for name, content in files_below(Path.cwd()).items() if name in before} == before
    return message


# ------------------------------------------------------------------------------------------------ configuration


CONFIGS = {
    "unknown key": ("training:\n  learning_rat: 1e-4\n", "bad.yaml:2:3", "learning_rate"),
    "key of another section": ("data:\n  learning_rate: 1e-4\n", "bad.yaml:2:3", "training"),
    "wrong type": ("training:\n  num_train_epochs: many\n", "bad.yaml:2:21", "a number"),
    "out of bounds": ("data:\n  validation_split: 1.5\n", "bad.yaml:2:21", "below 1"),
    "twice": ("lora:\n  r: 4\n  r: 8\n", "bad.yaml:3:3", "r"),
    "no yaml": ("training: [1, 2\n", "bad.yaml:", ""),
    "a list": ("- 1\n- 2\n", "bad.yaml:1", "mapping"),
    "contradiction": ("training:\n  max_steps: 2\n  warmup_steps: 5\n", "bad.yaml:", "warmup_steps"),
    "unknown metric": (
        "data:\n  train_file: rows.jsonl\ngate:\n  rules:\n    - {metric: perplexty, max: 2}\n",
        "gate.rules",
        "did you mean 'perplexity'?",
    ),
    "empty rule": ("gate:\n  rules:\n    - {metric: perplexity}\n", "bad.yaml:3", "min, max, min_delta or"),
    "remote code": ("model:\n  trust_remote_code: true\n", "bad.yaml:2:22", "never run"),
}


@pytest.mark.parametrize(("text", "where", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_configuration_is_refused_with_its_place(place: Path, text: str, where: str, said: str) -> None:
    (place / "bad.yaml").write_text(text)
    refused("run bad.yaml", 2, where, said)


def test_all_problems_of_a_file_are_told_at_once(place: Path) -> None:
    (place / "bad.yaml").write_text("training:\n  epoch: 3\n  bf16: maybe\nlorra:\n  r: 4\n")
    message = refused("run bad.yaml", 2, "3 problems", "bad.yaml:2:3", "bad.yaml:3:9", "bad.yaml:4:1", "lora", "^")
    assert message.count("try:") >= 2


COMMANDS = {
    "no such configuration": ("run sond.yaml", 2, ("sond.yaml", "try: sound.yaml")),
    "an override without a value": ("run sound.yaml --set training.seed", 2, ("--set", "=")),
    "an override of no key": ("run sound.yaml --set training.sed=1", 2, ("training.sed", "did you mean seed?")),
    "an override of the wrong type": ("run sound.yaml --set training.seed=x", 2, ("training.seed", "whole number")),
    "no such stage": ("run sound.yaml --until tomorrow", 2, ("--until", "evaluate")),
    "no rows named": ("sft train --model model --output out", 2, ("no rows to train on", "sft datasets")),
    "a flag out of bounds": ("sft train --data rows.jsonl --max-seq-length 1", 2, ("--max-seq-length", "8")),
    "a default model that is not here": ("vlm sft", 2, ("Qwen/Qwen2-VL-2B-Instruct", "hf download")),
    "data show without rows": ("data show --model model", 2, ("no rows to look at", "--data")),
    "a directory that is no run: report": ("report .", 2, ("not a run directory", "config.resolved.yaml")),
    "a directory that is no run: gate": ("gate .", 2, ("not a run directory", "config.resolved.yaml")),
    "a directory that is no run: publish": ("publish nowhere", 2, ("not a run directory", "nowhere")),
    "a directory that is no run: evaluate": ("evaluate nowhere", 2, ("not a run directory", "nowhere")),
    "no such model in the registry": ("models show nothing --registry registry", 2, ("nothing", "models list")),
    "no version number": ("models verify tiny@v1.5 --registry registry", 2, ("tiny", "models list")),
}


@pytest.mark.parametrize(("command", "code", "said"), COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_command_is_refused(command: str, code: int, said: tuple[str, ...]) -> None:
    refused(command, code, *said)


def test_an_unknown_flag_exits_2_without_a_traceback() -> None:
    answer = invoke("sft train --epoch 3")
    assert answer.exit_code == 2
    assert "--epochs" in answer.stderr
    assert "Traceback" not in answer.output


# ------------------------------------------------------------------------------------------------ rows


ROWS = {
    "no such file": (None, "rows.json", 3, ("no such file", "rows.json", "did you mean rows.jsonl?")),
    "no bytes": ("", "bad.jsonl", 3, ("the file is empty", "bad.jsonl", "expected:")),
    "blank lines": ("\n\n \n", "bad.jsonl", 3, ("blank lines", "bad.jsonl")),
    "no rows": ("[]", "bad.json", 3, ("bad.json",)),
    "another shape": ('{"a": 1}\n{"a": 2}\n', "bad.jsonl", 3, ("bad.jsonl", "expected:")),
    "no json": ("not json\nat all\n", "bad.jsonl", 3, ("bad.jsonl",)),
    "no kind of file": ("\x00\x01\x02\x03", "bad.bin", 3, ("bad.bin", "JSONL")),
}


@pytest.mark.parametrize(("content", "name", "code", "said"), ROWS.values(), ids=ROWS)
def test_a_file_without_usable_rows_is_refused(
    place: Path, content: str | None, name: str, code: int, said: tuple[str, ...]
) -> None:
    if content is not None:
        (place / name).write_text(content)
    refused(f"sft train --data {name} --model model --output out --dry-run", code, *said)


def test_one_row_of_another_shape_stops_the_run_naming_file_and_line(place: Path) -> None:
    with open(place / "rows.jsonl", "a") as file:
        file.write('{"frage": "wie?", "antwort": "so"}\n')
    message = refused("sft train --data rows.jsonl --model model --output out --dry-run", 3, "rows.jsonl:31", "try:")
    assert "1 of 31 rows" in message
    assert "max_bad_fraction" in message


def test_a_run_that_ends_in_its_data_keeps_the_ledger(place: Path) -> None:
    """The one thing that a refused run leaves is the list of what to mend."""
    with open(place / "rows.jsonl", "a") as file:
        file.write('{"question": "?", "answer": ""}\n')
    answer = invoke("run sound.yaml")
    assert answer.exit_code == 3, answer.output
    entries = [json.loads(line) for line in (place / "out/data/ledger.jsonl").read_text().splitlines()]
    assert len(entries) == 31
    assert (entries[-1]["line"], entries[-1]["action"], entries[-1]["code"]) == (31, "dropped", "empty_content")
    assert not (place / "out/data/manifest.json").exists()


@pytest.mark.parametrize("row", ["99", "31"])
def test_a_row_that_is_not_there_is_told_with_the_range(row: str) -> None:
    refused(f"data show --data rows.jsonl --model model --row {row}", 3, f"no row {row}", "1 to 30")


def test_a_row_number_below_one_is_a_usage_error() -> None:
    answer = invoke("data show --data rows.jsonl --model model --row 0")
    assert answer.exit_code == 2
    assert "--row" in answer.stderr


def test_a_data_set_that_is_not_here_names_the_command_that_fetches_it() -> None:
    start = time.perf_counter()
    message = refused("sft train --dataset codealpaca --model model --output out --dry-run", 3, "try:")
    assert "hf download --repo-type dataset sahil2801/CodeAlpaca-20k" in message
    assert time.perf_counter() - start < 10  # a client that retries takes a minute
    refused("sft train --dataset codalpaca --model model --output out --dry-run", 3, "codealpaca", "sft datasets")
    refused("vlm sft --dataset llava --model model --output out --dry-run", 3, "hf download", "LLaVA-Instruct-150K")


# ------------------------------------------------------------------------------------------------ models


MODELS = {
    "not on this machine": ("Qwen/Qwen2.5-Coder-7B", ("not on this machine", "hf download Qwen/Qwen2.5-Coder-7B")),
    "no such directory": ("./modell", ("modell", "did you mean")),
    "a file": ("rows.jsonl", ("file, not a model directory",)),
    "a directory without a model": ("empty", ("empty", "config.json")),
}


@pytest.mark.parametrize(("name", "said"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_not_here_is_refused_at_once(place: Path, name: str, said: tuple[str, ...]) -> None:
    (place / "empty").mkdir()
    start = time.perf_counter()
    refused(f"sft train --data rows.jsonl --model {name} --output out --dry-run", 2, *said)
    assert time.perf_counter() - start < 10  # milliseconds; a client that retries takes a minute


def test_a_missing_model_waits_for_no_network_even_without_the_offline_switch(place: Path) -> None:
    """Nothing answers at this address, so a library that retries would be seen; the whole process is timed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment["HF_ENDPOINT"] = "http://192.0.2.1:9"  # reserved for documentation: packets go nowhere
    environment["HF_HOME"] = str(place / "cache")
    start = time.perf_counter()
    answer = subprocess.run(
        [HALO_FORGE, "sft", "train", "--data", "rows.jsonl", "--model", "nobody/nothing", "--output", "out"],
        capture_output=True, text=True, env=environment, check=False, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 2, answer.stderr
    assert "hf download nobody/nothing" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert time.perf_counter() - start < 40  # imports on a busy machine; a retrying client takes minutes


# ------------------------------------------------------------------------------------------------ directories


def test_a_full_directory_that_holds_no_run_is_left_alone(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out/thesis.txt").write_text("ten years")
    refused("run sound.yaml", 2, "holds no run", "thesis.txt", "--output")
    refused("run sound.yaml --fresh", 2, "holds no run", "thesis.txt", "--output")


def test_a_directory_of_another_run_is_left_alone(place: Path) -> None:
    assert invoke("run sound.yaml --until data").exit_code == 0
    refused("run sound.yaml --set training.seed=7", 2, "another configuration", "training.seed: 42 -> 7", "--fresh")
    write_rows(place / "rows.jsonl", 31)
    message = invoke("run sound.yaml --until data")
    assert message.exit_code == 2
    assert "other inputs; different: train[0]" in message.stderr


def test_an_output_path_that_is_a_file_is_left_alone(place: Path) -> None:
    (place / "out").write_text("a file")
    refused("run sound.yaml", 2, "out", "--output")


def test_a_corrected_command_is_not_refused_for_the_mistake_before_it() -> None:
    """Nothing was prepared yet, so there is nothing to protect."""
    assert invoke("run sound.yaml --until data --set model.name=./modell").exit_code == 2
    answer = invoke("run sound.yaml --until data")
    assert answer.exit_code == 0, answer.stderr


@contextlib.contextmanager
def no_superuser() -> Iterator[None]:
    """root may write everywhere, so for a moment be nobody."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("root, and it cannot become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_output_that_cannot_be_written_is_told(place: Path) -> None:
    from halo_forge.errors import RunConflict
    from halo_forge.runs import RunDirectory

    closed = place / "closed"
    closed.mkdir(mode=0o555)
    for parent in (place, *place.parents):
        if parent.owner() == "root" and parent.name.startswith(("pytest", "test_")):
            parent.chmod(0o755)
    with no_superuser(), pytest.raises(RunConflict, match="cannot be written: Permission denied") as caught:
        RunDirectory.open(closed / "out")
    assert caught.value.exit_code == 2
    assert "--output" in str(caught.value)
    assert list(closed.iterdir()) == []


def test_resume_takes_only_a_checkpoint_of_this_run(place: Path) -> None:
    (place / "checkpoint-9").mkdir()
    for checkpoint in ("checkpoint-9", "nowhere", "rows.jsonl"):
        answer = invoke(f"sft train --config sound.yaml --resume {checkpoint}")
        assert answer.exit_code == 2, answer.output
        assert "--resume needs a checkpoint of this run" in answer.stderr
        assert checkpoint in answer.stderr
        assert "try:" in answer.stderr
        assert not list((place / "out").glob("checkpoint-*"))
        assert not (place / "out/final_model").exists()


def test_a_log_that_is_missing_or_no_log_is_told(place: Path) -> None:
    assert "nowhere" in refused("monitor nowhere rows.jsonl", 3)


def test_a_schema_file_that_is_missing_is_told_before_anything_is_trained(place: Path) -> None:
    answer = invoke("run sound.yaml --set evaluation.json_schema=nowhere.json")
    assert answer.exit_code == 2, answer.output
    assert "nowhere.json" in answer.stderr
    assert not (place / "out/metrics.jsonl").exists()
