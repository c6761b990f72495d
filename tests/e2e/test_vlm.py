"""`halo-forge vlm sft` on a tiny model that sees: from rows to a published version, and stopped and gone on."""

import json
from pathlib import Path

import pytest
import torch

from halo_forge.config import load_config
from halo_forge.data.prepare import prepare
from halo_forge.errors import DataError, Interrupted
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_tokenizer
from halo_forge.pipeline import run as run_pipeline
from halo_forge.runs import RunDirectory
from halo_forge.train import train
from training_runs import final_weights, losses
from vision_models import draw, make_model

ANSWERS = ("a box", "left", "right")


@pytest.fixture(scope="module")
def seeing_model(tmp_path_factory, tiny_tokenizer_dir):
    return make_model(tmp_path_factory.mktemp("seeing") / "model", "idefics3", tiny_tokenizer_dir)


def write_rows(directory: Path, num_rows: int = 40) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "rows.jsonl", "w") as file:
        for number in range(num_rows):
            (directory / f"{number}.png").write_bytes(draw(number))
            turns = [
                {"from": "human", "value": f"<image>\nWhat is it, number {number}?"},
                {"from": "gpt", "value": ANSWERS[number % 3]},
            ]
            file.write(json.dumps({"image": f"{number}.png", "conversations": turns}) + "\n")
    return directory / "rows.jsonl"


def settings(model: Path, rows: Path, output: Path, **more):
    values = {
        "model.name": str(model), "data.train_file": str(rows), "data.max_seq_length": 160, "data.holdout_split": 0.2,
        "data.validation_split": 0.1, "data.near_duplicate_threshold": None, "data.max_bad_fraction": 1.0,
        "vision.freeze": [], "training.method": "lora", "training.max_steps": 6, "training.bf16": False,
        "training.per_device_train_batch_size": 4, "training.gradient_accumulation_steps": 1,
        "training.learning_rate": 1e-3, "training.preflight": False, "lora.r": 2, "lora.dropout": 0.1,
        "lora.target_modules": ["q_proj", "down_proj"], "lora.modules_to_save": ["connector"],
        "output.dir": str(output), "output.save_steps": 2, "evaluation.sample_prompts": 0,
    }  # fmt: skip
    values |= more
    return load_config(flags={key: (value, "test") for key, value in values.items()}).config


def trained(model, rows, output, check=None, **more):
    config = settings(model, rows, output, **more)
    run, tokenizer = RunDirectory.open(output), load_tokenizer(str(model))
    try:
        options = {"compute": Compute(device=torch.device("cpu"), precision="float32")}
        if check is not None:
            options["check"] = check
        return train(config, run, prepare(config, run, tokenizer), tokenizer, **options)
    finally:
        run.close()


def test_a_stopped_run_goes_on_bitwise(seeing_model, tmp_path):
    rows = write_rows(tmp_path / "rows")
    trained(seeing_model, rows, tmp_path / "whole")
    calls = 0

    def stop_once():
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        trained(seeing_model, rows, tmp_path / "parts", stop_once)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")[: len(losses(tmp_path / "parts"))]
    trained(seeing_model, rows, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")


def test_other_images_train_other_weights(seeing_model, tmp_path):
    rows = write_rows(tmp_path / "rows")
    trained(seeing_model, rows, tmp_path / "one")
    for number in range(40):
        (rows.parent / f"{number}.png").write_bytes(draw(1000 + number))
    with pytest.raises(DataError, match="changed"):
        trained(seeing_model, rows, tmp_path / "stale", **{"data.max_samples": None})
    write_rows(tmp_path / "others")
    for number in range(40):
        (tmp_path / "others" / f"{number}.png").write_bytes(draw(1000 + number))
    trained(seeing_model, tmp_path / "others" / "rows.jsonl", tmp_path / "other")
    assert losses(tmp_path / "one") != losses(tmp_path / "other")


def test_from_rows_to_a_version_whose_images_are_asked_again(seeing_model, tmp_path):
    rows = write_rows(tmp_path / "rows")
    bad = [
        {"image": "gone.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]},
        {"image": "https://example.org/a.png", "question": "What?", "answer": "a"},
        {"image": "broken.png", "question": "What is broken?", "answer": "a"},
        {"images": ["0.png"], "question": "<image><image>?", "answer": "a"},
        {"audio": "a.wav", "question": "What is said?", "answer": "a"},
    ]  # fmt: skip
    (rows.parent / "broken.png").write_bytes(draw(1)[:60])
    with open(rows, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in bad)
    config = settings(
        seeing_model, rows, tmp_path / "run",
        **{"gate.rules": [{"metric": "perplexity", "max": 1e9}], "gate.min_items": 2, "evaluation.max_new_tokens": 3,
           "publish.name": "tiny", "publish.registry": str(tmp_path / "registry"), "training.max_steps": 2},
    )  # fmt: skip
    outcome = run_pipeline(config)
    ledger = [json.loads(line) for line in (tmp_path / "run/data/ledger.jsonl").read_text().splitlines()]
    refused = {line["code"] for line in ledger if line.get("outcome") == "dropped" or line.get("code")}
    assert {"media_missing", "url_refused", "image_broken", "media_count_mismatch"} <= refused
    version = tmp_path / "registry" / "tiny" / "v1"
    assert version.is_dir(), outcome
    manifest = (version / "manifest.json").read_text()
    assert (version / "processor_config.json").is_file()
    assert "processor_config.json" in manifest
    proof = json.loads((version / "proof.json").read_text())
    assert proof["num_identical"] == proof["num_prompts"] >= 1
    assert "AutoModelForImageTextToText" in (version / "README.md").read_text()
    assert "data:image/png;base64," in (tmp_path / "run/report.html").read_text()
