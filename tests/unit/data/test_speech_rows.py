"""Rows of speech in the forms of the field become a sound and its transcript."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halo_forge.chat.records import MediaPart
from halo_forge.data.conversion.formats import convert, detect, format_of
from halo_forge.data.files.rows import Row
from halo_forge.data.files.sources import expand_paths, read_rows
from halo_forge.errors import RowError
from halo_forge.media.sounds import samples_of, wav_bytes
from halo_forge.media.store import read_medium, settle_media
from speech_runs import RATE, tone

WAV = wav_bytes(tone("apple river"), RATE)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_FORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HALO_FORGE_MEDIA", str(tmp_path / "cache" / "media"))


def converted(value: dict[str, Any], tmp_path: Path) -> tuple[np.ndarray, str]:
    """(samples heard, transcript) of a row, as the data stage makes them."""
    found = format_of(value)
    assert found is not None
    conversation = convert(Row(path=str(tmp_path / "rows.jsonl"), line=1, value=value), found, media=True).conversation
    settled = settle_media(conversation, tmp_path)
    user, assistant = settled.messages
    (sound,) = user.parts
    assert isinstance(sound, MediaPart)
    assert sound.kind == "audio"
    return samples_of(read_medium(sound), RATE, 1.0), assistant.text


SPELLINGS: dict[str, dict[str, Any]] = {
    "a path": {"audio": "a.wav", "text": "apple river"},
    "librispeech": {"file": "x", "audio": {"bytes": WAV, "path": "x.flac"}, "text": "apple river", "speaker_id": 1},
    "samples": {"audio": {"array": tone("apple river").tolist(), "sampling_rate": RATE}, "sentence": "apple river"},
    "numpy samples": {"audio": {"array": tone("apple river"), "sampling_rate": RATE}, "text": "apple river"},
    "bytes as base64": {"audio": {"bytes": base64.b64encode(WAV).decode()}, "transcription": "apple river"},
    "a data address": {"audio": "data:audio/wav;base64," + base64.b64encode(WAV).decode(), "text": "apple river"},
    "a folder's table": {"file_name": "a.wav", "transcription": "apple river"},
    "nemo": {"audio_filepath": "a.wav", "text": "apple river", "duration": 0.6},
    "common voice": {"client_id": "f00", "path": "b.wav", "sentence": "apple river", "locale": "en"},
    "messages": {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]},
                              {"role": "assistant", "content": "apple river"}]},
    "openai": {"messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(WAV).decode(), "format": "wav"}}]},
        {"role": "assistant", "content": "apple river"}]},
    "a column beside": {"messages": [{"role": "user", "content": [{"type": "audio"}]},
                                     {"role": "assistant", "content": "apple river"}], "audios": ["a.wav"]},
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_row_becomes_its_sound_and_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "b.wav").write_bytes(WAV)
    heard, text = converted(SPELLINGS[name], tmp_path)
    assert np.array_equal(heard, tone("apple river"))
    assert text == "apple river"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such file": ({"audio": "none.wav", "text": "apple"}, "media_missing"),
    "an address": ({"audio": "https://127.0.0.1:1/a.wav", "text": "apple"}, "url_refused"),
    "null sound": ({"audio": None, "text": "apple"}, "media_missing"),
    "a number": ({"audio": 7, "text": "apple"}, "media_missing"),
    "an empty struct": ({"audio": {"bytes": None, "path": None}, "text": "apple"}, "media_missing"),
    "no rate": ({"audio": {"array": [0.1]}, "text": "apple"}, "audio_rate"),
    "0 samples": ({"audio": {"array": [], "sampling_rate": RATE}, "text": "apple"}, "audio_empty"),
    "NaN": ({"audio": {"array": [float("nan")], "sampling_rate": RATE}, "text": "apple"}, "audio_not_finite"),
    "no base64": ({"audio": {"bytes": "%%%"}, "text": "apple"}, "audio_broken"),
    "null text": ({"audio": "a.wav", "text": None}, "null_content"),
    "empty text": ({"audio": "a.wav", "text": "  "}, "empty_content"),
    "text is a list": ({"audio": "a.wav", "text": ["apple"]}, "bad_content_type"),
    "two sounds, one place": (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "apple"}],
         "audios": ["a.wav", "a.wav"]}, "media_count_mismatch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_by_its_code(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(WAV)
    value, code = BAD[name]
    with pytest.raises(RowError) as refused:
        converted(value, tmp_path)
    assert refused.value.code == code, refused.value.reason


def test_a_text_model_opens_and_keeps_nothing(tmp_path: Path) -> None:
    row = Row(path="rows.jsonl", line=1, value=SPELLINGS["librispeech"])
    with pytest.raises(RowError) as refused:
        convert(row, "speech", media=False)
    assert refused.value.code == "media_unsupported"
    assert not (tmp_path / "cache").exists()


def test_rows_of_other_kinds_are_no_speech() -> None:
    assert format_of({"path": "a.py", "text": "print(1)"}) == "text"
    assert format_of({"file_name": "a.png", "text": "a dog"}) == "text"
    assert detect("f", [SPELLINGS["common voice"]] * 3).format == "speech"


def written(directory: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def rows_below(directory: Path) -> list[dict[str, Any]]:
    return [row.value or {} for path in expand_paths([str(directory)]) for row in read_rows(path, lambda _: None)]


def test_a_folder_of_sounds_and_texts(tmp_path: Path) -> None:
    folder = written(tmp_path / "speech", {"a.wav": WAV, "a.txt": "apple river\n", "sub/b.flac": WAV})
    rows = rows_below(folder)
    assert rows == [{"audio": str(folder / "a.wav"), "text": "apple river"}, {"audio": str(folder / "sub/b.flac")}]
    assert converted(rows[0], tmp_path)[1] == "apple river"


def test_a_librispeech_folder(tmp_path: Path) -> None:
    lines = "84-1-0000 APPLE RIVER\n84-1-0001 STONE\n"
    folder = written(tmp_path / "dev", {"84/1/84-1.trans.txt": lines, "84/1/84-1-0000.flac": WAV})
    first, second = rows_below(folder)
    assert first == {"audio": str(folder / "84/1/84-1-0000.flac"), "text": "APPLE RIVER"}
    assert second["text"] == "STONE"
    assert not Path(second["audio"]).exists()


def test_a_folder_with_a_table_is_read_by_it(tmp_path: Path) -> None:
    table = json.dumps({"file_name": "a.wav", "text": "apple river"})
    folder = written(tmp_path / "speech", {"a.wav": WAV, "metadata.jsonl": table})
    assert rows_below(folder) == [json.loads(table)]
    folder = written(tmp_path / "csv", {"a.wav": WAV, "metadata.csv": "file_name,transcription\na.wav,apple river\n"})
    assert rows_below(folder)[0]["transcription"] == "apple river"


def test_a_folder_of_texts_is_texts(tmp_path: Path) -> None:
    assert rows_below(written(tmp_path / "texts", {"a.txt": "apple river"}))[0] == {"text": "apple river"}
