"""Bytes to samples: what is refused, by which code, and that what is read is what was recorded."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from halo_forge.errors import RowError  # noqa: E402
from halo_forge.media import sounds  # noqa: E402
from halo_forge.media.sounds import bytes_of_samples, resample, samples_of, sound_header, wav_bytes  # noqa: E402

RATE = 16_000


def tone(hz: float, rate: int = RATE, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def written(samples: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav_of(payload: bytes, *, rate: int = RATE, channels: int = 1, declared: int | None = None) -> bytes:
    kind = struct.pack("<HHIIHH", 3, channels, rate, min(rate * 4 * channels, 2**32 - 1), 4 * channels, 32)
    size = len(payload) if declared is None else declared
    chunks = b"fmt " + struct.pack("<I", 16) + kind + b"data" + struct.pack("<I", size) + payload
    return b"RIFF" + struct.pack("<I", min(4 + len(chunks), 2**32 - 1)) + b"WAVE" + chunks


GOOD = wav_bytes(tone(440), RATE)
NAN = tone(440)
NAN[7] = np.nan
BAD = {
    "no bytes": (b"", "audio_empty"),
    "0 samples": (wav_of(b""), "audio_empty"),
    "a text called .wav": (b"apple river stone\n" * 20, "audio_broken"),
    "half a header": (GOOD[:30], "audio_broken"),
    "cut in its data": (GOOD[: len(GOOD) // 2], "audio_broken"),
    "a cut FLAC": (written(np.random.default_rng(0).uniform(-0.5, 0.5, 9000), RATE, "FLAC")[:9000], "audio_broken"),
    "not a number": (wav_bytes(NAN, RATE), "audio_not_finite"),
    "infinite": (wav_bytes(np.array([np.inf], np.float32), RATE), "audio_not_finite"),
    "integers as floats": (wav_bytes(tone(440) * 30000, RATE), "audio_broken"),
    "rate 0": (wav_of(b"\0" * 400, rate=0), "audio_broken"),
    "rate 100": (wav_of(b"\0" * 400, rate=100), "audio_rate"),
    "rate 4 billion": (wav_of(b"\0" * 400, rate=4_000_000_000), "audio_broken"),
    "40 channels": (wav_of(b"\0" * 1600, channels=40), "audio_broken"),
    "longer than the window": (wav_bytes(np.zeros(RATE * 2, np.float32), RATE), "audio_too_long"),
    "a raw format": (written(tone(440), RATE, "PAF"), "audio_broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sound_is_refused_by_its_code(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(RowError) as refused:
        samples_of(data, RATE, 1.0)
    assert refused.value.code == code, refused.value.reason


def test_a_long_sound_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "read", lambda *_, **__: pytest.fail("it was decoded"))
    silence = np.zeros(RATE * 40, np.int16)  # 40 s in a few bytes
    with pytest.raises(RowError) as refused:
        samples_of(written(silence, RATE, "FLAC"), RATE, 30.0)
    assert refused.value.code == "audio_too_long"


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MAX_BYTES", 1000)
    with pytest.raises(RowError) as refused:
        sound_header(GOOD)
    assert refused.value.code == "audio_too_large"


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AIFF", None)]
)
def test_what_is_read_is_what_was_recorded(format: str, subtype: str | None) -> None:
    read = samples_of(written(tone(440), RATE, format, subtype), RATE, 1.0)
    assert read.dtype == np.float32
    assert read.shape == (RATE // 2,)
    assert np.abs(read - tone(440)).max() < 2**-14


@pytest.mark.parametrize("format", ["OGG", "MP3"])
def test_lossy_formats_keep_the_tone(format: str) -> None:
    read = samples_of(written(tone(440), RATE, format), RATE, 1.0)
    spectrum = np.abs(np.fft.rfft(read))
    assert abs(np.argmax(spectrum) * RATE / len(read) - 440) < 5


def test_a_wav_from_a_pipe_is_read() -> None:
    """Its writer did not know the length and said the greatest."""
    assert len(samples_of(wav_of(tone(440).tobytes(), declared=0xFFFFFFFF), RATE, 1.0)) == RATE // 2


def test_stereo_becomes_the_mean() -> None:
    both = np.stack([tone(440), tone(880)], axis=1)
    read = samples_of(written(both, RATE, "WAV", "FLOAT"), RATE, 1.0)
    assert np.allclose(read, (tone(440) + tone(880)) / 2, atol=1e-6)


def test_resampling_keeps_what_fits_and_folds_nothing_in() -> None:
    kept = resample(tone(1000, 44_100), 44_100, RATE)
    assert len(kept) == RATE // 2
    inner = slice(800, -800)
    assert np.abs(kept[inner] - tone(1000)[inner]).max() < 1e-3
    folded = resample(tone(12_000, 44_100), 44_100, RATE)  # above 8 kHz: nothing of it may come back at 4 kHz
    assert np.abs(folded[inner]).max() < 1e-3


def test_samples_of_a_row_are_kept_as_they_are() -> None:
    read = samples_of(bytes_of_samples(tone(440).tolist(), RATE), RATE, 1.0)
    assert np.array_equal(read, tone(440))
    assert np.array_equal(samples_of(bytes_of_samples([tone(440), tone(440)], RATE), RATE, 1.0), tone(440))


@pytest.mark.parametrize(
    ("values", "rate", "code"),
    [
        ([0.1], None, "audio_rate"), ([0.1], "16000", "audio_rate"), ([0.1], True, "audio_rate"),
        ([0.1], 16000.5, "audio_rate"), ([0.1], float("nan"), "audio_rate"), ([0.1], 0, "audio_rate"),
        ([], RATE, "audio_empty"), (["a"], RATE, "audio_broken"), ([[0.1], [0.1, 0.2]], RATE, "audio_broken"),
        (np.zeros((2, 2, 2)), RATE, "audio_broken"), ([float("nan")], RATE, "audio_not_finite"),
    ],
)  # fmt: skip
def test_samples_that_are_none(values: object, rate: object, code: str) -> None:
    with pytest.raises(RowError) as refused:
        bytes_of_samples(values, rate)  # type: ignore[arg-type]
    assert refused.value.code == code
