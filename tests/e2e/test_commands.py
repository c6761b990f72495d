"""Every command as a user types it: results on stdout, exit codes, flags that land where they belong, help."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from halo_forge.cli import launch_options, train_commands
from halo_forge.cli.main import build
from training_runs import write_rows

HALO_FORGE = Path(sys.executable).with_name("halo-forge")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEED_DATASETS = [
    ("Code", "codealpaca", "sahil2801/CodeAlpaca-20k", "20K"),
    ("Code", "code_instructions_122k", "TokenBender/code_instructions_122k", "122K"),
    ("Reasoning", "metamath", "meta-math/MetaMathQA", "395K"),
    ("Reasoning", "gsm8k_sft", "gsm8k", "8.5K"),
    ("VLM", "llava", "liuhaotian/LLaVA-Instruct-150K", "150K"),
    ("Audio", "librispeech_sft", "librispeech_asr", "100h"),
    ("Agentic", "xlam_sft", "Salesforce/xlam-function-calling-60k", "60K"),
    ("Agentic", "glaive_sft", "glaiveai/glaive-function-calling-v2", "113K"),
]


def invoke(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments], **options)


def command_paths(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group of the tree, as the words that name it."""
    children = getattr(command, "commands", {})
    return [path] + [found for name, child in children.items() for found in command_paths(child, (*path, name))]


# ------------------------------------------------------------------------------------------------ help


def test_every_help_answers_without_torch_and_without_colour() -> None:
    """One process for the whole tree; what a command needs is loaded when it works, not when it explains itself."""
    paths = command_paths(typer.main.get_command(build()))
    assert len(paths) > 25
    code = (
        "import sys\n"
        "from halo_forge.cli.main import build\n"
        "from typer.testing import CliRunner\n"
        f"for path in {paths!r}:\n"
        "    answer = CliRunner().invoke(build(), [*path, '--help'])\n"
        "    assert answer.exit_code == 0 and 'Usage' in answer.stdout, path\n"
        "    assert '\\x1b' not in answer.stdout, path\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr


def test_every_command_says_what_it_does() -> None:
    root = typer.main.get_command(build())
    for path in command_paths(root):
        command: click.Command = root
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        assert command.help, path


@pytest.mark.parametrize("arguments", [["--version"], ["sft", "datasets"], ["config", "show"], ["domains"]])
def test_no_colour_off_a_terminal_nor_with_no_color(arguments: list[str]) -> None:
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "", "TERM": "xterm-256color"}
    answer = subprocess.run(
        [HALO_FORGE, *arguments], capture_output=True, text=True, check=False, env=os.environ | environment, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr


# ------------------------------------------------------------------------------------------------ data sets, domains


def test_the_documented_data_sets_are_listed() -> None:
    entries = json.loads(invoke("sft", "datasets", "--json").stdout)
    listed = {(entry["domain"], entry["name"], entry["hub_id"], entry["size"]) for entry in entries}
    assert set(SEED_DATASETS) <= listed
    table = invoke("sft", "datasets").stdout.splitlines()
    assert table[0].split() == ["Domain", "Short", "name", "Hugging", "Face", "id", "Size"]
    for entry in SEED_DATASETS:
        assert any(line.split() == list(entry) for line in table), entry


@pytest.mark.parametrize("domain", ["reasoning", "agentic"])
def test_a_text_domain_trains_with_its_defaults(
    domain: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really planned on a tiny model; then its defaults alone, which name models of billions of weights."""
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    answer = invoke(domain, "sft", "--data", rows, "--model", tiny_model_dir, "--epochs", "2", "--dry-run", "--json")
    assert answer.exit_code == 0, answer.stderr
    plan = resolved_by(monkeypatch, domain, "sft", "--output", tmp_path / "run")
    assert plan["training"]["num_train_epochs"] == 2
    assert plan["data"]["dataset"] == {"reasoning": "metamath", "agentic": "xlam_sft"}[domain]
    assert plan["model"]["name"].startswith("Qwen/Qwen2.5-")
    assert plan["output"]["dir"] == str(tmp_path / "run")


def test_domains_are_listed() -> None:
    domains = {entry["name"]: entry for entry in json.loads(invoke("domains", "--json").stdout)}
    assert {name: entry["reads"] for name, entry in domains.items()} == {
        "text": "text", "reasoning": "text", "agentic": "text", "vlm": "image", "audio": "audio",
    }  # fmt: skip
    text = invoke("domains").stdout
    assert all(name in text for name in domains)
    assert "whisper" in text


# ------------------------------------------------------------------------------------------------ sft train


FLAGS = {
    "--epochs": ("4", "training.num_train_epochs", 4.0),
    "--batch-size": ("3", "training.per_device_train_batch_size", 3),
    "--gradient-accumulation": ("5", "training.gradient_accumulation_steps", 5),
    "--learning-rate": ("3e-4", "training.learning_rate", 3e-4),
    "--warmup-ratio": ("0.2", "training.warmup_ratio", 0.2),
    "--weight-decay": ("0.02", "training.weight_decay", 0.02),
    "--max-grad-norm": ("0.3", "training.max_grad_norm", 0.3),
    "--lora-rank": ("6", "lora.r", 6),
    "--lora-alpha": ("12", "lora.alpha", 12.0),
    "--lora-dropout": ("0.01", "lora.dropout", 0.01),
    "--save-steps": ("77", "output.save_steps", 77),
    "--eval-steps": ("33", "training.eval_steps", 33),
    "--save-total-limit": ("2", "output.save_total_limit", 2),
    "--early-stopping-patience": ("5", "training.early_stopping_patience", 5),
    "--max-samples": ("25", "data.max_samples", 25),
    "--validation-split": ("0.2", "data.validation_split", 0.2),
    "--max-seq-length": ("200", "data.max_seq_length", 200),
    "--seed": ("9", "training.seed", 9),
}


def resolved_by(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> dict[str, Any]:
    """The configuration that a command hands to the pipeline."""
    kept: list[Any] = []
    monkeypatch.setattr(train_commands, "execute", lambda resolved, *_: kept.append(resolved))
    answer = invoke(*arguments)
    assert answer.exit_code == 0, answer.output
    config: dict[str, Any] = kept[0].config.to_dict()
    return config


def test_every_flag_lands_in_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = [word for flag, (value, _, _) in FLAGS.items() for word in (flag, value)]
    config = resolved_by(
        monkeypatch, "sft", "train", "-d", "codealpaca", "-m", "some/model", "-o", tmp_path / "run",
        "--no-gradient-checkpointing", *flags,
    )  # fmt: skip
    for flag, (_, dotted, expected) in FLAGS.items():
        section, _, key = dotted.partition(".")
        assert config[section][key] == expected, flag
    assert config["training"]["early_stopping"] is True
    assert config["training"]["gradient_checkpointing"] is False
    assert config["training"]["method"] == "lora"
    assert config["data"]["dataset"] == "codealpaca"
    assert config["model"]["name"] == "some/model"
    assert config["output"]["dir"] == str(tmp_path / "run")


def test_the_table_of_flags_is_whole() -> None:
    """A flag that this file does not know would be a flag that nobody checks."""
    command = typer.main.get_command(build()).commands["sft"].commands["train"]  # type: ignore[attr-defined]
    flags = {name for option in command.params for name in option.opts if name.startswith("--")}
    own = {"--config", "--dataset", "--data", "--model", "--output", "--resume", "--dry-run", "--no-lora", "--help"}
    flags -= {f"--{name.replace('_', '-')}" for name in launch_options.FLAGS}  # tests/e2e/test_launch.py has them
    assert flags - {"--help"} == (own | {"--no-gradient-checkpointing", "--set", "--fresh", "--json"} | {*FLAGS}) - {
        "--help"
    }


def test_a_flag_overrules_the_file_and_an_absent_flag_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "data: {train_file: rows.jsonl}\ntraining: {learning_rate: 2e-5, gradient_checkpointing: true}\nlora: {r: 64}\n"
    )
    config = resolved_by(monkeypatch, "sft", "train", "--config", file, "--lora-rank", "8", "--no-lora")
    assert config["lora"]["r"] == 8
    assert config["training"]["learning_rate"] == 2e-5
    assert config["training"]["gradient_checkpointing"] is True
    assert config["training"]["method"] == "full"


def test_a_dry_run_with_every_flag_plans_and_writes_nothing(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    flags = [word for flag, (value, _, _) in FLAGS.items() for word in (flag, value)]
    answer = invoke(
        "sft", "train", "--data", rows, "--model", tiny_model_dir, "--output", tmp_path / "run", *flags,
        "--no-gradient-checkpointing", "--dry-run",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    assert "Nothing was trained." in answer.stdout
    assert "15 a step" in answer.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


# ------------------------------------------------------------------------------------------------ config


def test_config_show_names_each_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model:\n  name: some/model\ntraining:\n  num_epochs: 2\n")
    monkeypatch.setenv("HALO_FORGE__LORA__R", "4")
    answer = invoke("config", "show", file, "--set", "training.seed=7")
    assert answer.exit_code == 0, answer.stderr
    lines = {line.split()[0]: line for line in answer.stdout.splitlines() if not line.startswith("#")}
    assert "some/model" in lines["model.name"]
    assert "line 2" in lines["model.name"] or ":2" in lines["model.name"]
    assert "HALO_FORGE__LORA__R" in lines["lora.r"]
    assert lines["training.seed"].endswith("# --set")
    assert lines["lora.alpha"].endswith("# default")
    assert "# default for lora as for 7B; model.name tells no size" in lines["training.learning_rate"]
    assert "num_epochs" in answer.stdout
    shown = json.loads(invoke("config", "show", "--config", file, "--json").stdout)
    assert shown["config"]["training"]["num_train_epochs"] == 2
    assert set(shown) == {"config", "origins", "notices", "sha256"}


def test_config_check_prints_all_problems_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("training:\n  epoch: 3\n  bf16: maybe\nlorra:\n  r: 4\n")
    for command in ("check", "validate"):
        answer = invoke("config", command, file)
        assert answer.exit_code == 2
        assert {f"{file}:{place}" for place in ("2:3", "3:9", "4:1")} <= set(answer.stderr.split())
    sound = tmp_path / "sound.yaml"
    sound.write_text("training:\n  num_train_epochs: 3\n")
    assert invoke("config", "check", sound).stdout.splitlines()[-1] == "ok"
    assert json.loads(invoke("config", "check", sound, "--json").stdout)["ok"] is True


def test_config_schema_accepts_what_the_tool_accepts() -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(invoke("config", "schema").stdout)
    validator = Draft202012Validator(schema)
    validator.check_schema(schema)
    for file in sorted((EXAMPLES.parent / "configs").glob("demo.yaml")):
        assert list(validator.iter_errors(yaml.safe_load(file.read_text().replace("5e-4", "0.0005")))) == []
    assert list(validator.iter_errors({"training": {"epoch": 3}}))


# ------------------------------------------------------------------------------------------------ data


def test_data_check_names_every_bad_row() -> None:
    answer = invoke("data", "check", EXAMPLES / "messy.jsonl", "--json")
    assert answer.exit_code == 3
    found = json.loads(answer.stdout)
    assert {"read", "kept", "fixed", "dropped", "rows"} <= set(found)
    assert found["read"] == found["kept"] + found["dropped"] == 17
    assert all({"file", "line", "code", "reason", "action"} <= set(row) for row in found["rows"])
    documented = re.findall(r"\| (\d+) \| (kept|fixed|dropped) \| (\w+) \|", (EXAMPLES / "README.md").read_text())
    assert {(int(line), action, code) for line, action, code in documented} == {
        (row["line"], row["action"], row["code"]) for row in found["rows"]
    }
    text = invoke("data", "check", EXAMPLES / "messy.jsonl")
    assert text.exit_code == 3
    assert f"17 rows read: {found['kept']} kept" in text.stdout


def test_several_sources_are_prepared_from_a_configuration_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    config = EXAMPLES.parent / "configs" / "mix.yaml"
    answer = invoke("data", "prepare", config, "-o", tmp_path / "run", "--json")
    assert answer.exit_code == 0, answer.stderr
    manifest = tmp_path / "run" / "data" / "manifest.json"
    sources = {source["name"]: source for source in json.loads(manifest.read_text())["sources"]}
    assert set(sources) == {"task", "general", "house style"}
    assert sources["task"]["train_rows"] <= 300 < sources["task"]["read"]
    assert (sources["general"]["loss_weight"], sources["house style"]["loss_weight"]) == (0.5, 0.25)
    shown = invoke("data", "show", "-c", config, "--row", "601", "--json")
    assert shown.exit_code == 0, shown.stderr


def test_data_check_of_sound_rows_exits_0() -> None:
    answer = invoke("data", "check", EXAMPLES / "formats")
    assert answer.exit_code == 0, answer.output
    assert "0 dropped" in answer.stdout
    for file in sorted((EXAMPLES / "formats").iterdir()):
        told = [line for line in answer.stdout.splitlines() if line.startswith(f"{file}: ")]
        assert len(told) == 1, f"each file and its format once: {told}"


def test_data_show_prints_a_row_with_its_weights(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    command = ("data", "show", "--data", rows, "--model", tiny_model_dir, "--row", 2)
    shown = json.loads(invoke(*command, "--json").stdout)
    assert {"text", "tokens", "token_ids", "weights"} <= set(shown)
    assert len(shown["tokens"]) == len(shown["token_ids"]) == len(shown["weights"])
    assert "".join(shown["tokens"]) == shown["text"]
    row = json.loads(rows.read_text().splitlines()[1])
    trained = "".join(token for token, weight in zip(shown["tokens"], shown["weights"], strict=True) if weight)
    assert trained == row["answer"] + "<|im_end|>"
    answer = invoke(*command)
    assert answer.exit_code == 0, answer.stderr
    assert "\x1b" not in answer.stdout
    assert "trained" in answer.stderr


def test_data_prepare_stops_after_the_data(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    answer = invoke("data", "prepare", "--data", rows, "--model", tiny_model_dir, "-o", tmp_path / "run", "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["prepared"]["splits"]["train"]["rows"] > 0
    assert result["trained"] is None
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    told = [line.strip() for line in answer.stderr.splitlines() if "training rows:" in line]
    assert len(told) == 1, "a note is told once"


# ------------------------------------------------------------------------------------------------ machine, log, page


def test_doctor_answers_in_json() -> None:
    answer = invoke("doctor", "--json", "--no-hub")
    findings = json.loads(answer.stdout)
    assert answer.exit_code == (1 if any(found["status"] == "problem" for found in findings) else 0)
    assert all({"name", "status", "detail", "fix"} <= set(found) for found in findings)
    assert {found["status"] for found in findings} <= {"ok", "warning", "problem"}
    assert all(found["fix"] for found in findings if found["status"] == "problem")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run that was evaluated, made in this process."""
    root = tmp_path_factory.mktemp("finished")
    rows = write_rows(root / "rows.jsonl", 100)
    answer = invoke(
        "sft", "train", "--data", rows, "--model", tiny_model_dir, "--output", root / "run", "--epochs", "1",
        "--set", "evaluation.max_new_tokens=4", "--set", "data.holdout_split=0.5", "--set", "training.bf16=false",
        "--set", f"publish.registry={root / 'registry'}",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    return root / "run"


def test_report_and_evaluate_read_a_finished_run(finished: Path) -> None:
    page = finished / "report.html"
    page.unlink()
    answer = invoke("report", finished)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip() == str(page)
    assert page.is_file()
    before = (finished / "trained.json").read_bytes()
    evaluated = invoke("evaluate", finished, "--set", "evaluation.confidence=0.8", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["report"]["confidence"] == 0.8
    assert (finished / "trained.json").read_bytes() == before


def test_monitor_compares_a_log_with_the_release(finished: Path, tmp_path: Path) -> None:
    assert invoke("evaluate", finished).exit_code == 0
    assert invoke("gate", finished).exit_code in (4, 5)
    published = invoke("publish", finished, "--force", "--json")
    assert published.exit_code == 0, published.output
    version = json.loads(published.stdout)["path"]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"prompt": f"river {i}?", "answer": "stone."}) + "\n" for i in range(150)))
    few = invoke("monitor", version, log, "--set", "monitor.min_rows=1000")
    assert few.exit_code == 5, few.output
    drifted = invoke("monitor", version, log, "--json")
    assert drifted.exit_code == 4, drifted.output
    assert json.loads(drifted.stdout)["verdict"] == "drift"
    state = tmp_path / "state"
    kept = ("monitor", "watch", version, log, "--state", state, "--html", tmp_path / "page.html")
    assert invoke(*kept, "--set", "monitor.window_rows=100", "--dry-run").exit_code == 4
    assert not state.exists()
    first = invoke(*kept, "--set", "monitor.window_rows=100", "--json")
    assert first.exit_code == 4, first.output
    assert json.loads(first.stdout)["num_rows"] == 150
    assert list((state / "alerts").glob("*-raised.json"))
    assert "</html>" in (tmp_path / "page.html").read_text()
    again = invoke(*kept, "--set", "monitor.window_rows=100", "--json")
    assert json.loads(again.stdout)["num_rows"] == 150
    assert invoke("monitor", "watch", version, log, "--follow").exit_code == 2


def test_a_released_model_is_measured_again(finished: Path) -> None:
    assert invoke("evaluate", finished).exit_code == 0
    assert invoke("gate", finished).exit_code in (4, 5)
    assert invoke("publish", finished, "--force").exit_code == 0
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    checked = invoke("monitor", "regress", finished, "--dry-run")
    assert checked.exit_code == 0, checked.output
    found = invoke("monitor", "regress", finished, "--json")
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["verdict"] == "ok"
    assert report["num_answers_changed"] == 0
    assert {change["verdict"] for change in report["changes"]} <= {"same", "not_measured"}
    assert before == {
        path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_a_rule_of_a_users_scorer_is_known_to_every_command(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    scorer = tmp_path / "brand.py"
    scorer.write_text("def brief(answer, reference, row):\n    return len(answer) < 10_000\n")
    named = ["--set", f"evaluation.scorers=['{scorer}:brief']", "--set", "gate.rules=[{metric: brief, min: 0.5}]"]
    unknown = invoke("config", "check", *named[2:])
    assert unknown.exit_code == 2
    assert "there is no metric 'brief'" in unknown.stderr
    assert invoke("config", "check", *named).exit_code == 0
    before = invoke("gate", run, *named)
    assert before.exit_code == 5  # known, and not measured so far
    evaluated = invoke("evaluate", run, *named, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    judged = invoke("gate", run, *named)
    assert judged.exit_code == 0, judged.output
