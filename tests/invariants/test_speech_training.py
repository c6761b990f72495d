"""Training on speech: what is kept changes nothing, augmentation and resume are exact, a frozen encoder stays."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from halo_forge.artifacts import PreparedData
from halo_forge.config import load_config
from halo_forge.data import prepare
from halo_forge.domains.audio.augmentation import Draw, change_samples, mask_features
from halo_forge.domains.audio.whisper import WhisperMedia
from halo_forge.domains.media import inputs_of_step, open_media
from halo_forge.errors import DataError, Interrupted, RunConflict
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.runs import RunDirectory
from halo_forge.train.batches import examples_to_batch
from halo_forge.train.checkpoint import list_checkpoints
from halo_forge.train.loss import model_objective
from halo_forge.train.session import open_session
from speech_runs import RATE, tone, write_speech
from training_runs import CPU, Prepared, final_weights, losses, settings, train_now

CADENCE: dict[str, Any] = {
    "output.save_steps": 2,
    "eval_steps": 3,
    "method": "full",
    "data.near_duplicate_threshold": None,
}
FROZEN = {"audio.freeze_encoder": True}


def speech_run(model: Path, output: Path, num_rows: int = 20, **training: Any) -> Prepared:
    output.mkdir(parents=True)
    rows = write_speech(output.parent, num_rows)
    config = load_config(flags=settings(model, rows, output, **{**CADENCE, **training})).config
    run = RunDirectory.open(output)
    tokenizer = load_tokenizer(str(model))
    return Prepared(config, run, prepare(config, run, tokenizer), tokenizer)


def stopping_before(number: int) -> Any:
    counter = itertools.count()

    def check() -> None:
        if next(counter) == number:
            raise Interrupted("stopped by a test")

    return check


@pytest.mark.parametrize(
    "settings",
    [
        {**FROZEN, "method": "lora"},
        {"audio.augmentation": ["noise", "speed", "gain", "masks"]},
    ],
    ids=["frozen-lora", "augmented"],
)  # fmt: skip
def test_resumed_is_uninterrupted(settings: dict[str, Any], tiny_whisper_dir: Path, tmp_path: Path) -> None:
    whole, stopped = (tmp_path / name / "run" for name in ("whole", "stopped"))
    train_now(speech_run(tiny_whisper_dir, whole, **settings))
    prepared = speech_run(tiny_whisper_dir, stopped, **settings)
    for stop in (3, 2):
        with pytest.raises(Interrupted):
            train_now(prepared, check=stopping_before(stop))
    train_now(prepared)
    assert losses(whole) == losses(stopped)
    assert len(losses(whole)) == 6
    assert final_weights(whole) == final_weights(stopped)
    assert (whole / "final_model" / "preprocessor_config.json").is_file()
    if "method" in settings:
        ends = load_file(whole / "final_model" / "adapter_model.safetensors")
        grown = {name for name, value in ends.items() if "lora_B" in name and value.any()}
        assert any(".decoder." in name for name in grown)
        assert not any(".encoder." in name for name in grown), "adapters of a frozen encoder trained"


def test_a_frozen_encoder_stays_and_the_decoder_learns(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run", num_train_epochs=6, **FROZEN)
    train_now(prepared)
    before = load_model(str(tiny_whisper_dir), dtype=torch.float32).state_dict()
    after = load_model(str(prepared.run.file("final_model")), dtype=torch.float32).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(".encoder." in name for name in moved)
    told = losses(prepared.run.path)
    assert np.mean(told[-3:]) < 0.9 * np.mean(told[:3])


def one_step(prepared: Prepared, model: Any, media: WhisperMedia) -> tuple[float, dict[str, torch.Tensor]]:
    from halo_forge.chat import read_examples

    examples = read_examples(prepared.run.file(prepared.data.splits["train"].examples))
    chosen = [examples[at] for at in (0, 1, 2, 0)]  # two transcripts of one sound
    batch = examples_to_batch(chosen, media_inputs=media.inputs)
    total, _ = model_objective(model, "float32", media=media).nll(batch, batch.weights)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return total.item(), gradients


def test_kept_encoder_outputs_change_no_gradient(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    """The off switch: the same loss and gradient with what was kept, with what is computed now, and without keeping."""
    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run", **FROZEN)
    model = load_model(str(tiny_whisper_dir), dtype=torch.float32)
    found = []
    for keeps in (True, False):
        audio = {"freeze_encoder": True, "keep_encoder_output": keeps}
        config = prepared.config.model_copy(update={"audio": prepared.config.audio.model_copy(update=audio)})
        media = open_media(config, prepared.tokenizer)
        assert isinstance(media, WhisperMedia)
        media.configure(model)
        found += [one_step(prepared, model, media), one_step(prepared, model, media)]
        assert len(media.kept.outputs) == (3 if keeps else 0)
    first, again, *computed = found
    assert first[0] == again[0]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    assert not any(".encoder." in name and "encoder_attn" not in name for name in first[1])
    for loss, gradient in computed:
        assert loss == pytest.approx(first[0], rel=1e-6)
        assert gradient.keys() == first[1].keys()
        for name, value in gradient.items():
            assert (value - first[1][name]).abs().max() <= 1e-5 * value.abs().max().clamp_min(1e-3), name


def test_a_kept_output_is_of_its_encoder_alone(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run", **FROZEN)
    media = open_media(prepared.config, prepared.tokenizer)
    assert isinstance(media, WhisperMedia)
    one, two = (load_model(str(tiny_whisper_dir), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        two.model.encoder.conv1.bias.add_(0.5)
    for model in (one, two):
        media.configure(model)
    media.kept.belong_to(one.model.encoder)
    first, _ = one_step(prepared, one, media)
    media.kept.belong_to(two.model.encoder)
    assert one_step(prepared, two, media)[0] != first


def test_every_transcript_hears_its_own_sound(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    """Packed = alone, and one sound changed moves the logits of its transcript and of no other."""
    from halo_forge.chat import read_examples

    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run")
    media = open_media(prepared.config, prepared.tokenizer)
    assert isinstance(media, WhisperMedia)
    model = load_model(str(tiny_whisper_dir), dtype=torch.float32)
    examples = [read_examples(prepared.run.file(prepared.data.splits["train"].examples))[at] for at in range(3)]
    with torch.no_grad():
        batch = examples_to_batch(examples, media_inputs=media.inputs)
        together = media.logits(model, batch)
        alone = [media.logits(model, examples_to_batch([one], media_inputs=media.inputs)) for one in examples]
        assert (together - torch.cat(alone)).abs().max() < 1e-4
        batch.media["input_features"][1] = 0.0
        changed = (media.logits(model, batch) - together).abs().amax(1)
    first, second = len(alone[0]), len(alone[0]) + len(alone[1])
    assert changed[first:second].max() > 1e-3
    assert changed[:first].max() == 0
    assert changed[second:].max() == 0


def test_augmentation_is_of_seed_step_and_row(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run", **{"audio.augmentation": ["noise", "masks"]})
    session = open_session(
        prepared.config, prepared.run.path, prepared.data, prepared.tokenizer, Compute(device=CPU, precision="float32"),
        lambda event, fields: None,
    )  # fmt: skip
    examples = session.examples_of(0)
    assert session.media is not None
    plain = session.media.inputs(examples)["input_features"]
    first, again, later = (inputs_of_step(session.media, step)(examples)["input_features"] for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, plain)
    reversed_order = inputs_of_step(session.media, 0)(examples[::-1])["input_features"]
    assert torch.equal(reversed_order.flip(0), first), "a row is changed alike in any batch"


def test_each_change_does_what_it_says() -> None:
    sound, draw = tone("apple river", 0.5), Draw(seed=1, step=2, example="x")
    louder = change_samples(sound, RATE, ["gain"], draw, RATE)
    assert 0.5 <= np.abs(louder).max() / np.abs(sound).max() <= 2.0
    assert not np.array_equal(louder, sound)
    other = change_samples(sound, RATE, ["speed"], draw, RATE)
    assert 0.9 <= len(sound) / len(other) <= 1.1
    assert len(other) != len(sound)
    assert len(change_samples(sound, RATE, ["speed"], draw, len(sound))) <= len(sound)
    noisy = change_samples(sound, RATE, ["noise"], draw, RATE) - sound
    assert 10 <= 20 * np.log10(np.std(sound) / np.std(noisy)) <= 30.5
    both = change_samples(sound, RATE, ["gain", "noise"], draw, RATE)
    assert np.std(both) / np.std(louder) == pytest.approx(1, abs=0.06), "the draw of one is not moved by the other"
    features = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
    masked = mask_features(features, 50, draw)
    assert not np.array_equal(masked, features)
    assert np.array_equal(features, features.copy())


def test_changed_sounds_and_settings_are_told(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    prepared = speech_run(tiny_whisper_dir, tmp_path / "a" / "run")
    sound = sorted((tmp_path / "a" / "wav").iterdir())[0]
    for path in (tmp_path / "a" / "wav").iterdir():
        path.write_bytes(sound.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(DataError, match="changed after"):
        train_now(prepared)
    other = prepared.config.model_copy(update={"audio": prepared.config.audio.model_copy(update={"timestamps": True})})
    with pytest.raises(RunConflict, match="media"):
        prepare(other, prepared.run, prepared.tokenizer)


def test_bad_sounds_are_counted_and_the_rest_is_trained(tiny_whisper_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    rows = write_speech(tmp_path, 12)
    wav = tmp_path / "wav"
    (wav / "0.wav").unlink()
    (wav / "1.wav").write_bytes(b"apple river\n" * 9)
    (wav / "2.wav").write_bytes(b"")
    (wav / "3.wav").write_bytes((wav / "4.wav").read_bytes()[:900])
    lines = rows.read_text().splitlines()
    lines[5] = json.dumps({"audio": "http://127.0.0.1:9/a.wav", "text": "apple"})
    rows.write_text("\n".join(lines) + "\n")
    flags = settings(tiny_whisper_dir, rows, output, **CADENCE, **{"data.max_bad_fraction": 1.0})
    config = load_config(flags=flags).config
    run = RunDirectory.open(output)
    data: PreparedData = prepare(config, run, load_tokenizer(str(tiny_whisper_dir)))
    codes = [json.loads(line).get("code") for line in run.file("data/ledger.jsonl").read_text().splitlines()]
    assert sorted(code for code in codes if code) == [
        "audio_broken", "audio_broken", "audio_empty", "media_missing", "url_refused",
    ]  # fmt: skip
    assert sum(split.rows for split in data.splits.values()) == 7
    assert not list_checkpoints(output)
