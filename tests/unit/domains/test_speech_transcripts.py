"""Texts to decoder ids: the tokenizer's own prefix, what is trained, times on and off, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.audio_section import AudioSection
from halo_forge.domains.audio.transcripts import Transcripts, prefix_ids, sound_and_text
from halo_forge.errors import RowError, UsageError
from halo_forge.models.load import load_tokenizer

SOUND = MediaPart(kind="audio", path="a.wav", sha256="0" * 64)
IMAGE = MediaPart(kind="image", path="a.png", sha256="1" * 64)


@pytest.fixture(scope="module")
def tokenizer(tiny_whisper_dir: Path) -> Any:
    return load_tokenizer(str(tiny_whisper_dir))


def transcripts(tokenizer: Any, **audio: Any) -> Transcripts:
    return Transcripts(tokenizer, AudioSection(**audio), 32)


def test_ids_are_those_of_the_tokenizer_itself(tokenizer: Any) -> None:
    ids, notes = transcripts(tokenizer).ids_of("apple river stone")
    assert ids.tolist() == tokenizer("apple river stone")["input_ids"]
    assert notes == ()


def test_ids_of_a_real_whisper_are_those_of_its_tokenizer(whisper_tiny_path: Path) -> None:
    tokenizer = load_tokenizer(str(whisper_tiny_path))
    for text in ("The postman washed a jar of honey.", " two  spaces", "naïve café 12.5 %"):
        ids, _ = Transcripts(tokenizer, AudioSection(), 448).ids_of(text)
        assert ids.tolist() == tokenizer(text)["input_ids"]


def test_a_multilingual_model_is_told_language_and_task(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from halo_forge.domains.audio import transcripts as module

    monkeypatch.setattr(module, "is_multilingual", lambda _: True)
    before = tokenizer.backend_tokenizer.to_str()
    found = prefix_ids(tokenizer, AudioSection(language="german", task="translate"))
    assert tokenizer.convert_ids_to_tokens(list(found)) == [
        "<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>",
    ]  # fmt: skip
    assert tokenizer.backend_tokenizer.to_str() == before, "whoever holds the tokenizer keeps its prefix"
    with pytest.raises(UsageError, match="language"):
        prefix_ids(tokenizer, AudioSection())
    with pytest.raises(UsageError, match="klingon"):
        prefix_ids(tokenizer, AudioSection(language="klingon"))


def test_an_english_model_takes_no_other_language(tokenizer: Any) -> None:
    assert prefix_ids(tokenizer, AudioSection(language="en")) == prefix_ids(tokenizer, AudioSection())
    with pytest.raises(UsageError, match="English only"):
        prefix_ids(tokenizer, AudioSection(language="de"))
    with pytest.raises(UsageError, match="translate"):
        prefix_ids(tokenizer, AudioSection(task="translate"))


def test_times_become_tokens_when_they_are_wanted(tokenizer: Any) -> None:
    text = "<|0.00|>apple<|0.40|><|0.40|>river<|0.88|>"
    ids, notes = transcripts(tokenizer, timestamps=True).ids_of(text)
    written = "".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
    assert written == "<|startoftranscript|>" + text + "<|endoftext|>"
    assert len(ids) < 16, "a time is one token"
    assert notes == ()
    ids, notes = transcripts(tokenizer).ids_of(text)
    assert ids.tolist() == tokenizer("apple river")["input_ids"]
    assert notes == ("times_removed",)


@pytest.mark.parametrize(
    "text",
    ["apple", "<|0.00|>apple", "x<|0.00|>apple<|0.40|>", "<|0.40|>apple<|0.20|>", "<|0.00|>apple<|30.02|>",
     "<|0.00|>apple<|0.41|>", "<|0.00|>a<|0.20|>b<|0.40|>c<|0.60|>"],
)  # fmt: skip
def test_times_that_are_none(tokenizer: Any, text: str) -> None:
    with pytest.raises(RowError) as refused:
        transcripts(tokenizer, timestamps=True).ids_of(text)
    assert refused.value.code == "audio_times"


def test_special_tokens_in_a_text_stay_text(tokenizer: Any) -> None:
    ids, notes = Transcripts(tokenizer, AudioSection(), 64).ids_of("apple <|endoftext|> <|notimestamps|> river")
    assert ids.tolist().count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == 1
    assert ids.tolist().count(tokenizer.convert_tokens_to_ids("<|notimestamps|>")) == 1
    assert "special_tokens_neutralised" in notes


def test_too_long_and_empty_texts(tokenizer: Any) -> None:
    for text, code in (("apple " * 40, "too_long"), ("", "empty_content")):
        with pytest.raises(RowError) as refused:
            transcripts(tokenizer).ids_of(text)
        assert refused.value.code == code


def said(*messages: tuple[str, tuple[Any, ...]]) -> Conversation:
    made = tuple(
        Message(role=role, parts=tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts))  # type: ignore[arg-type]
        for role, parts in messages
    )
    return Conversation(id="x", messages=made, source=SourceRef(path="rows", line=1))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([("user", ("hello",)), ("assistant", ("apple",))], "audio_missing"),
        ([("user", (SOUND, SOUND)), ("assistant", ("apple",))], "audio_several"),
        ([("user", (SOUND,)), ("assistant", ("apple",)), ("user", ("x",)), ("assistant", ("y",))], "audio_several"),
        ([("user", (SOUND, "Transcribe this.")), ("assistant", ("apple",))], "audio_instruction"),
        ([("system", ("Be exact.",)), ("user", (SOUND,)), ("assistant", ("apple",))], "audio_instruction"),
        ([("user", (IMAGE,)), ("assistant", ("apple",))], "media_unsupported"),
        ([("user", ("",)), ("assistant", (SOUND, "apple"))], "media_unsupported"),
        ([("user", (SOUND,))], "no_assistant_turn"),
    ],
)
def test_rows_a_speech_model_cannot_read(messages: list[Any], code: str) -> None:
    with pytest.raises(RowError) as refused:
        sound_and_text(said(*messages))
    assert refused.value.code == code


def test_a_tokenizer_of_another_kind_is_told() -> None:
    from halo_forge.domains.audio.transcripts import _fresh
    from halo_forge.errors import DataError

    with pytest.raises(DataError, match="prefix"):
        _fresh(SimpleNamespace())  # type: ignore[arg-type]
