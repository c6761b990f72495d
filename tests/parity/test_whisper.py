"""Our Whisper against transformers' own: features, logits, loss, gradient, transcripts, and the conversion."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halo_forge.chat.records import Conversation, Example, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.schema import Config
from halo_forge.domains.audio.whisper import WhisperMedia
from halo_forge.domains.media import open_media
from halo_forge.media.sounds import samples_of, wav_bytes
from halo_forge.models.generate import Prompt
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import model_objective
from speech_runs import RATE, tone

TEXTS = ("apple river stone", "green", "cloud lamp", "river river apple")


def heard(directory: Path, model: Path, **audio: Any) -> tuple[WhisperMedia, list[Conversation]]:
    tokenizer = load_tokenizer(str(model))
    media = open_media(Config.model_validate({"model": {"name": str(model)}, "audio": audio}), tokenizer)
    assert isinstance(media, WhisperMedia)
    conversations = []
    for number, text in enumerate(TEXTS):
        path = directory / f"{number}.wav"
        path.write_bytes(wav_bytes(tone(text, 0.3 + 0.1 * number), RATE))
        sound = MediaPart(kind="audio", path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        turns = Message(role="user", parts=(sound,)), Message(role="assistant", parts=(TextPart(text=text),))
        conversations.append(Conversation(id=f"{number}" * 8, messages=turns, source=SourceRef(path="rows", line=1)))
    return media, conversations


def examples_of(media: WhisperMedia, conversations: list[Conversation]) -> list[Example]:
    encoded = media.encoder(Config().data).encode_batch(conversations)
    assert not encoded.problems
    examples = [encoded.example(row, conversation.id) for row, conversation in enumerate(conversations)]
    return [example for example in examples if example is not None]


def recipe(model: Any, media: WhisperMedia, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, labels) of the padded batch that transformers' recipe makes, supervised positions only: [S, V], [S]."""
    extractor = media.maker.extractor
    sounds = [samples_of(Path(example.media[0].path).read_bytes(), RATE, 30.0) for example in examples]
    features = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    labels = torch.full((len(examples), max(len(example.input_ids) for example in examples) - 1), -100)
    for row, example in enumerate(examples):
        labels[row, : len(example.input_ids) - 1] = torch.from_numpy(example.input_ids[1:].astype(np.int64))
    labels[:, : len(media.transcripts.prefix) - 1] = -100
    shifted = labels.clone()
    for row in range(len(examples)):  # the decoder reads the prefix, which is not trained
        shifted[row, : len(media.transcripts.prefix) - 1] = torch.tensor(media.transcripts.prefix[1:])
    start = torch.full((len(examples), 1), model.config.decoder_start_token_id)
    fed = torch.cat([start, shifted[:, :-1].masked_fill(shifted[:, :-1] == -100, model.config.pad_token_id)], dim=1)
    logits = model(input_features=features, decoder_input_ids=fed).logits
    return logits[labels != -100], labels[labels != -100]


def batch_of(media: WhisperMedia, examples: list[Example]) -> Batch:
    return examples_to_batch(examples, media_inputs=media.inputs)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_whisper_dir: Path) -> Any:
    return load_model(str(tiny_whisper_dir), dtype=torch.float32, attn_implementation=request.param)


def test_features_are_those_of_transformers(tmp_path: Path, tiny_whisper_dir: Path) -> None:
    media, conversations = heard(tmp_path, tiny_whisper_dir)
    examples = examples_of(media, conversations)
    sounds = [samples_of(Path(example.media[0].path).read_bytes(), RATE, 30.0) for example in examples]
    wanted = media.maker.extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    found = batch_of(media, examples).media["input_features"]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-5


def test_logits_loss_and_gradient_are_those_of_transformers(tmp_path: Path, tiny_whisper_dir: Path, model: Any) -> None:
    media, conversations = heard(tmp_path, tiny_whisper_dir)
    examples = examples_of(media, conversations)
    wanted, labels = recipe(model, media, examples)
    loss = torch.nn.functional.cross_entropy(wanted, labels)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    batch = batch_of(media, examples)
    found = media.logits(model, batch)[batch.rows]
    assert torch.equal(batch.targets, labels)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    total, _nll = model_objective(model, "float32", media=media).nll(batch, batch.weights / batch.weights.sum())
    total.backward()
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    assert set(gradients) == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if name in gradients and parameter.grad is not None:
            scale = gradients[name].abs().max().clamp_min(1e-3)
            assert (parameter.grad - gradients[name]).abs().max() < 1e-3 * scale, name


def test_transcripts_are_those_of_transformers(tmp_path: Path, tiny_whisper_dir: Path, model: Any) -> None:
    """Also where what the model would say first, or next, is not to be said."""
    media, conversations = heard(tmp_path, tiny_whisper_dir)
    examples = examples_of(media, conversations)
    media.logits(model, batch_of(media, examples))  # leaves its own attention behind; generation takes another
    said = compared_transcripts(media, model, conversations)
    model.generation_config.begin_suppress_tokens = [said[0][0]]
    without_first = compared_transcripts(media, model, conversations)
    assert without_first[0][0] != said[0][0]
    banned = {without_first[0][0], without_first[1][1]}
    model.generation_config.suppress_tokens = sorted(banned)
    for transcript in compared_transcripts(media, model, conversations):
        assert not banned & set(transcript)


def compared_transcripts(media: WhisperMedia, model: Any, conversations: list[Conversation]) -> list[list[int]]:
    """Greedy transcripts, once each is what transformers' own generate gives."""
    prompts = [Prompt(tuple(ids), frozenset(stops), media=sounds)
               for ids, _, stops, sounds in map(media.question, conversations)]  # fmt: skip
    found = media.generate(model, prompts, decode=media.transcripts.tokenizer.decode, max_new_tokens=12, batch_size=3)
    model.set_attn_implementation("sdpa")
    for prompt, generation in zip(prompts, found, strict=True):
        features = torch.from_numpy(media.maker.features(Path(prompt.media[0].path).read_bytes()))[None]
        prefix = list(prompt.token_ids)
        told = model.generate(features, decoder_input_ids=torch.tensor([prefix]), max_new_tokens=12, do_sample=False)
        wanted = told[0].tolist()
        wanted = wanted[len(prefix) :] if wanted[: len(prefix)] == prefix else wanted
        stops = [at for at, token in enumerate(wanted) if token in prompt.stop_token_ids]
        assert list(generation.token_ids) == wanted[: stops[0] if stops else 12]
        assert generation.stopped == bool(stops)
    return [list(generation.token_ids) for generation in found]


def test_silence_changes_features_loss_and_transcript(tmp_path: Path, whisper_tiny_path: Path) -> None:
    """A model that hears: with the sound switched off, the same words are far less likely."""
    media, conversations = heard(tmp_path, whisper_tiny_path)
    model = load_model(str(whisper_tiny_path), dtype=torch.float32)
    example = examples_of(media, conversations)[0]
    path = tmp_path / "silence.wav"
    path.write_bytes(wav_bytes(np.zeros(RATE // 2, np.float32), RATE))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    silent = dataclasses.replace(example, media=(dataclasses.replace(example.media[0], path=str(path), sha256=sha256),))
    objective = model_objective(model, "float32", media=media)
    losses = []
    for one in (example, silent):
        batch = batch_of(media, [one])
        with torch.no_grad():
            losses.append(float(objective.nll(batch, batch.weights)[0]))
    features = [batch_of(media, [one]).media["input_features"] for one in (example, silent)]
    assert not torch.equal(*features)
    assert abs(losses[0] - losses[1]) > 0.05


def test_the_converted_model_is_whole_and_hears(whisper_tiny_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model, report = WhisperForConditionalGeneration.from_pretrained(
        whisper_tiny_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 37_760_256
    processor = WhisperProcessor.from_pretrained(whisper_tiny_path)
    assert processor.tokenizer.prefix_tokens == [50257, 50362]
    assert processor.tokenizer.convert_tokens_to_ids(["<|0.00|>", "<|30.00|>"]) == [50363, 51863]
    # The positions of its encoder are sinusoids: a transposed or shifted table would not be.
    from transformers.models.whisper.modeling_whisper import sinusoids

    assert (model.model.encoder.embed_positions.weight - sinusoids(1500, 384)).abs().max() < 1e-3
    silence = processor(np.zeros(RATE, np.float32), sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        logits = model(silence, decoder_input_ids=torch.tensor([[50257, 50362]])).logits
    assert torch.isfinite(logits).all()
    said = processor.tokenizer.decode(int(logits[0, -1].argmax()))
    assert said.strip() in ("you", "", "<|endoftext|>", ".", "Thank", "Thanks", "You"), said
