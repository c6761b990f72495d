"""From the bytes of a sound to checked mono samples at the rate that a model hears. numpy; soundfile and soxr (the
`audio` extra) are imported where they are needed.

What the header says is checked before anything is decoded, so that a day of audio costs no memory. A refusal is a
RowError:

    audio_broken      not a sound, another format than FORMATS, damaged, or samples far beyond full scale
    audio_empty       no samples                       audio_not_finite  NaN or infinite samples
    audio_too_long    longer than the model's window   audio_too_large   more bytes than MAX_BYTES
    audio_rate        a rate outside MIN_RATE..MAX_RATE, or samples without a rate

A sound of several channels becomes their mean. Another rate is resampled by soxr (band-limited, quality HQ), which
keeps what lies below half of the lower rate and folds nothing into it.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from halo_forge.errors import RowError, UsageError

Samples = npt.NDArray[np.float32]

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF"})
EXACT_FORMATS = FORMATS - {"OGG", "MP3", "MPEG"}
"""Those whose header knows the number of samples; the others estimate it."""
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
MAX_BYTES = 64 * 2**20
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 32
MAX_PEAK = 16.0
"""Full scale is 1.0. A louder float file is a matter of gain; one with peaks in the thousands holds integers under a
float's name, which no model was trained on."""
UNKNOWN_LENGTH = 0x7FFFF000
INSTALL = 'pip install "halo-forge[audio]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundHeader:
    """What a file says of itself: sample frames, rate in Hz, channels."""

    num_frames: int
    rate: int
    channels: int
    format: str

    @property
    def seconds(self) -> float:
        return self.num_frames / self.rate


def sound_header(data: bytes) -> SoundHeader:
    """The header alone; nothing is decoded. Raises RowError `audio_broken`, `audio_empty`, `audio_too_large`,
    `audio_rate`."""
    soundfile = _soundfile()
    if not data:
        raise RowError("audio_empty", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise RowError("audio_too_large", f"{len(data) / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} are read")
    try:
        info = soundfile.info(io.BytesIO(data))
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise RowError("audio_broken", f"this is not a sound that can be read: {_words(error)}") from None
    if info.format not in FORMATS:
        raise RowError("audio_broken", f"a sound in the format {info.format}; {', '.join(sorted(FORMATS))} are read")
    if not MIN_RATE <= info.samplerate <= MAX_RATE:
        raise RowError("audio_rate", f"{info.samplerate} Hz; {MIN_RATE} to {MAX_RATE} Hz are read")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise RowError("audio_broken", f"{info.channels} channels; at most {MAX_CHANNELS} are mixed")
    if info.frames <= 0:
        raise RowError("audio_empty", "the sound has 0 samples")
    if (missing := _missing_bytes(data)) > 0:
        raise RowError("audio_broken", f"the file breaks off: its header tells of {missing} bytes more than there are")
    return SoundHeader(num_frames=info.frames, rate=info.samplerate, channels=info.channels, format=info.format)


def _missing_bytes(data: bytes) -> int:
    """How many bytes the data of a WAV file lacks. libsndfile reads a file that was cut as a shorter sound, whose text
    would then say more than is heard. Programs that write to a pipe do not know the length and say a huge one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    place = 12
    while place + 8 <= len(data):
        name, (length,) = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])
        if name == b"data":
            return 0 if length >= UNKNOWN_LENGTH else place + 8 + length - len(data)
        place += 8 + length + length % 2
    return 0


def check_length(seconds: float, max_seconds: float) -> None:
    """A longer sound is refused: its text cannot be cut where the sound would be cut."""
    if seconds > max_seconds + 1e-9:
        raise RowError(
            "audio_too_long",
            f"{seconds:.1f} s; the model hears {max_seconds:g} s at once. Cut sound and text together before",
        )


def samples_of(data: bytes, rate: int, max_seconds: float) -> Samples:
    """Mono samples [n] at `rate` Hz, n >= 1 and at most max_seconds of them. Raises RowError, see the module."""
    soundfile = _soundfile()
    header = sound_header(data)
    check_length(header.seconds, max_seconds)
    try:
        frames, _ = soundfile.read(io.BytesIO(data), frames=header.num_frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise RowError("audio_broken", f"the sound breaks off: {_words(error)}") from None
    if not len(frames):
        raise RowError("audio_empty", "the header tells of samples and there are none")
    if len(frames) < header.num_frames and header.format in EXACT_FORMATS:
        raise RowError("audio_broken", f"the sound breaks off after {len(frames)} of {header.num_frames} samples")
    return _at_rate(checked_mono(frames), header.rate, rate)


def checked_mono(frames: npt.NDArray[np.floating[Any]]) -> Samples:
    """Samples [n, channels] -> their mean [n]. Raises RowError `audio_not_finite`, `audio_broken`."""
    if not np.isfinite(frames).all():
        raise RowError("audio_not_finite", "the sound holds samples that are not finite")
    peak = float(np.abs(frames).max())
    if peak > MAX_PEAK:
        raise RowError("audio_broken", f"samples up to {peak:.0f} where full scale is 1: integers called floats")
    mean: Samples = frames.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mean


def _at_rate(samples: Samples, rate: int, wanted: int) -> Samples:
    resampled = resample(samples, rate, wanted)
    if not len(resampled):
        raise RowError("audio_empty", f"{len(samples)} samples at {rate} Hz are none at {wanted} Hz")
    return resampled


def resample(samples: Samples, rate: float, wanted: float) -> Samples:
    """Samples [n] at `rate` -> [round(n * wanted / rate)] at `wanted`, band-limited."""
    if rate == wanted:
        return samples
    soxr = _soxr()
    found: Samples = soxr.resample(samples, rate, wanted, quality="HQ").astype(np.float32, copy=False)
    return found


def bytes_of_samples(values: Sequence[float] | npt.NDArray[Any], rate: Any) -> bytes:
    """Decoded samples of a row ([n] or [n, channels], or [channels, n] with few channels) as a float32 WAV file: the
    form in which they are kept. Raises RowError."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate):
        raise RowError("audio_rate", "samples without a sampling_rate")
    if not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
        raise RowError("audio_rate", f"sampling_rate {rate:g}; {MIN_RATE} to {MAX_RATE} Hz are read")
    try:
        frames = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise RowError("audio_broken", "the array is not one of numbers") from None
    if frames.size == 0:
        raise RowError("audio_empty", "the array has 0 samples")
    if frames.ndim == 1:
        frames = frames[:, None]
    elif frames.ndim == 2 and frames.shape[0] <= MAX_CHANNELS < frames.shape[1]:
        frames = frames.T
    if frames.ndim != 2 or frames.shape[1] > MAX_CHANNELS:
        raise RowError("audio_broken", f"an array of shape {list(frames.shape)} is no sound")
    return wav_bytes(checked_mono(frames), int(rate))


def wav_bytes(samples: Samples, rate: int) -> bytes:
    """A mono float32 WAV file, byte for byte a function of its arguments."""
    held = samples.astype("<f4").tobytes()
    kind = struct.pack("<HHIIHH", 3, 1, rate, rate * 4, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(kind)) + kind + b"fact" + struct.pack("<II", 4, len(samples))
    chunks += b"data" + struct.pack("<I", len(held)) + held
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _words(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(": ")[2][:120] or type(error).__name__


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
        raise UsageError(
            f"sounds are read by soundfile, which cannot be imported: {error}", where="the `audio` extra", fix=INSTALL
        ) from None
    return soundfile


def _soxr() -> Any:
    try:
        import soxr
    except ImportError:
        raise UsageError("sounds are resampled by soxr, which is not installed", fix=INSTALL) from None
    return soxr
