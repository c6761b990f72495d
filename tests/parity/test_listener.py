"""Qwen2-Audio, a language model that hears, against transformers' own processor, forward pass and generate."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.schema import Config
from halo_forge.domains.audio.listener import Listener, num_features
from halo_forge.domains.documents import documents
from halo_forge.domains.media import open_media
from halo_forge.errors import ModelNotFound
from halo_forge.media.sounds import samples_of, wav_bytes
from halo_forge.models.generate import Prompt
from halo_forge.models.load import load_model, load_tokenizer

pytest.importorskip("soundfile")
RATE = 16_000


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    from speech_runs import write_listener

    return write_listener(tmp_path_factory.mktemp("listener") / "model", tiny_tokenizer_dir)


def sound(directory: Path, seconds: float, seed: int) -> MediaPart:
    samples = (0.2 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))).astype(np.float32)
    path = directory / f"{seed}.wav"
    path.write_bytes(wav_bytes(samples, RATE))
    return MediaPart(kind="audio", path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def chat(*turns: tuple[str, tuple[Any, ...]]) -> Conversation:
    messages = tuple(
        Message(role=role, parts=tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts))  # type: ignore[arg-type]
        for role, parts in turns
    )
    return Conversation(id="0" * 64, messages=messages, source=SourceRef(path="rows", line=1))


def rows(directory: Path) -> list[Conversation]:
    one, two, three = (sound(directory, seconds, seed) for seed, seconds in enumerate((0.3, 0.97, 0.51)))
    return [
        chat(("user", (one, "What is said?")), ("assistant", ("Good morning.",))),
        chat(("user", (two, "And then")), ("assistant", ("Rain.",)), ("user", (three,)), ("assistant", ("Snow.",))),
        chat(("user", ("Without any sound?",)), ("assistant", ("Yes.",))),
        chat(("user", ("I typed <|AUDIO|> myself.",)), ("assistant", ("I see.",))),
    ]


def opened(directory: Path, **audio: Any) -> tuple[Listener, Any, Config]:
    config = Config.model_validate({"model": {"name": str(directory)}, "audio": audio})
    media = open_media(config, load_tokenizer(str(directory)))
    assert isinstance(media, Listener)
    return media, load_model(str(directory), dtype=torch.float32, attn_implementation="sdpa").eval(), config


def by_processor(directory: Path, conversation: Conversation) -> Any:
    """What transformers' own processor makes of the conversation."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(directory)
    messages, sounds = [], []
    for message in conversation.messages:
        parts: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            elif isinstance(part, MediaPart):
                parts.append({"type": "audio"})
                sounds.append(samples_of(Path(part.path).read_bytes(), RATE, 30.0))
        messages.append({"role": message.role, "content": parts})
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=[text], audio=sounds or None, sampling_rate=RATE, return_tensors="pt")


def test_placeholders_features_and_logits_are_those_of_transformers(model_dir: Path, tmp_path: Path) -> None:
    media, model, config = opened(model_dir)
    conversations = rows(tmp_path)
    batch = media.encoder(config.data).encode_batch(conversations)
    assert not batch.problems
    for at, conversation in enumerate(conversations[:3]):
        example = batch.example(at, str(at))
        wanted = by_processor(model_dir, conversation)
        assert example.input_ids.tolist() == wanted["input_ids"][0].tolist()
        inputs = media.inputs([example])
        assert inputs.keys() == wanted.keys() - {"input_ids", "attention_mask"}
        for name, tensor in inputs.items():
            assert torch.allclose(tensor.float(), wanted[name].float(), atol=1e-5), name
        document = documents([example], media, torch.device("cpu"))
        with torch.no_grad():
            expected = model(**wanted).logits[0, document.positions]
            found = media.logits(model, document)
        assert (found - expected).abs().max() < 1e-4
        assert not example.loss_weights[example.input_ids == media.placeholder[1]].any()
    typed = batch.example(3, "3")
    assert not (typed.input_ids == media.placeholder[1]).any(), "a user's words are text"


def test_answers_are_those_of_generate(model_dir: Path, tmp_path: Path) -> None:
    media, model, _ = opened(model_dir)
    prompts = [
        Prompt(tuple(ids), frozenset(stops), media=heard)
        for ids, _, stops, heard in map(media.question, rows(tmp_path)[:3])
    ]
    assert [len(prompt.media) for prompt in prompts] == [1, 2, 0]
    found = media.generate(model, prompts, decode=str, max_new_tokens=12, batch_size=2)
    for prompt, answer in zip(prompts, found, strict=True):
        told = model.generate(
            input_ids=torch.tensor([prompt.token_ids]), **media._inputs([(one, "") for one in prompt.media]),
            max_new_tokens=12, do_sample=False, eos_token_id=sorted(prompt.stop_token_ids),
        )[0, len(prompt.token_ids) :].tolist()  # fmt: skip
        stopped = bool(told) and told[-1] in prompt.stop_token_ids
        assert (list(answer.token_ids), answer.stopped) == (told[:-1] if stopped else told, stopped)


def test_a_frozen_encoder_and_the_sinusoids_do_not_train(model_dir: Path) -> None:
    media, model, _ = opened(model_dir)
    media.configure(model)
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == ["model.audio_tower.embed_positions.weight"]
    media, model, _ = opened(model_dir, freeze_encoder=True)
    media.configure(model)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert not any("audio_tower" in name for name in trained)
    assert any("multi_modal_projector" in name for name in trained)


def test_sounds_that_cannot_be_heard_are_told_by_code(model_dir: Path, tmp_path: Path) -> None:
    media, _, config = opened(model_dir)
    long, short = sound(tmp_path, 1.5, 7), sound(tmp_path, 0.02, 8)
    gone = MediaPart(kind="audio", path=str(tmp_path / "gone.wav"), sha256="0" * 64)
    asked = [chat(("user", (one,)), ("assistant", ("?",))) for one in (long, short, gone)]
    batch = media.encoder(config.data).encode_batch(asked)
    assert [batch.problems[at].code for at in range(3)] == ["audio_too_long", "audio_empty", "media_missing"]


@pytest.mark.parametrize("num_frames", [5, 8, 50, 99, 100, 2999, 3000])
def test_the_number_of_features_is_the_encoders(num_frames: int, model_dir: Path) -> None:
    _, model, _ = opened(model_dir)
    _, wanted = model.model.audio_tower._get_feat_extract_output_lengths(torch.tensor(num_frames))
    assert num_features(num_frames) == int(wanted)


def test_a_tokenizer_without_the_token_is_refused(model_dir: Path, tmp_path: Path) -> None:
    import json
    import shutil

    broken = Path(shutil.copytree(model_dir, tmp_path / "broken"))
    described = json.loads((broken / "config.json").read_text())
    described |= {"audio_token_id": 10**6, "audio_token_index": 10**6}
    (broken / "config.json").write_text(json.dumps(described))
    config = Config.model_validate({"model": {"name": str(broken)}})
    with pytest.raises(ModelNotFound, match="no token 1000000"):
        open_media(config, load_tokenizer(str(broken)))
