"""Changes to a sound while training, drawn from (seed, step, example) and nothing else.

    noise   white noise, 10 to 30 dB below the sound      speed  0.9 to 1.1 times as fast, pitch and all
    gain    -6 to +6 dB                                    masks  SpecAugment: two bands of mel rows and two of time
                                                                  set to the mean of the features
Each draw has its own stream, so that switching one on leaves what the others draw as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from halo_forge.media.sounds import Samples, resample

Change = Literal["noise", "speed", "gain", "masks"]
SPEED, GAIN_DB, NOISE_DB = (0.9, 1.1), (-6.0, 6.0), (10.0, 30.0)
NUM_MASKS, MAX_ROWS_SHARE, MAX_TIME_SHARE = 2, 0.2, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Where the numbers come from: the run's seed, the optimizer step, and the example's own name."""

    seed: int
    step: int
    example: str

    def numbers(self, what: Change) -> np.random.Generator:
        key = f"{self.seed}:{self.step}:{self.example}:{what}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


def change_samples(samples: Samples, rate: int, changes: Sequence[Change], draw: Draw, max_samples: int) -> Samples:
    """Speed, gain and noise of `changes`, in this order, whatever theirs; at most max_samples remain (a sound that
    slowing down would push out of the window is left at its speed)."""
    if "speed" in changes:
        factor = float(draw.numbers("speed").uniform(*SPEED))
        slowed = resample(samples, rate * factor, rate)
        samples = slowed if 0 < len(slowed) <= max_samples else samples
    if "gain" in changes:
        samples = samples * np.float32(10 ** (draw.numbers("gain").uniform(*GAIN_DB) / 20))
    if "noise" in changes:
        numbers = draw.numbers("noise")
        below = 10 ** (-numbers.uniform(*NOISE_DB) / 20)
        loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        samples = samples + (numbers.standard_normal(len(samples)) * loudness * below).astype(np.float32)
    return samples


def mask_features(features: npt.NDArray[np.float32], num_heard: int, draw: Draw) -> npt.NDArray[np.float32]:
    """features [mel rows, frames] with bands hidden; `num_heard` frames hold the sound, the rest is padding."""
    numbers = draw.numbers("masks")
    masked, filling = features.copy(), np.float32(features[:, :num_heard].mean())
    num_rows = features.shape[0]
    for _ in range(NUM_MASKS):
        width = int(numbers.integers(0, max(1, int(MAX_ROWS_SHARE * num_rows)) + 1))
        start = int(numbers.integers(0, num_rows - width + 1))
        masked[start : start + width] = filling
    for _ in range(NUM_MASKS):
        width = int(numbers.integers(0, max(1, int(MAX_TIME_SHARE * num_heard)) + 1))
        start = int(numbers.integers(0, max(1, num_heard - width + 1)))
        masked[:, start : start + width] = filling
    return masked
