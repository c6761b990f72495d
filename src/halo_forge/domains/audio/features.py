"""From the bytes of a sound to what the encoder reads: log-mel features [mel rows, frames], float32.

The model's own feature extractor of transformers makes them, one sound at a time, so that the same sound has the same
features in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from halo_forge.domains.audio.augmentation import Change, Draw, change_samples, mask_features
from halo_forge.errors import ModelNotFound
from halo_forge.media.sounds import samples_of

Features = npt.NDArray[np.float32]
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class FeatureMaker:
    """directory: the model's; extractor: transformers' WhisperFeatureExtractor of it."""

    directory: Path
    extractor: Any

    @property
    def rate(self) -> int:
        return int(self.extractor.sampling_rate)

    @property
    def max_seconds(self) -> float:
        return float(self.extractor.chunk_length)

    @property
    def num_frames(self) -> int:
        return int(self.extractor.nb_max_frames)

    def features(self, data: bytes, changes: Sequence[Change] = (), draw: Draw | None = None) -> Features:
        """Raises RowError as `samples_of` does. With `draw`, the sound is changed as `changes` say."""
        samples = samples_of(data, self.rate, self.max_seconds)
        num_heard = len(samples)
        if changes and draw is not None:
            samples = change_samples(samples, self.rate, changes, draw, self.extractor.n_samples)
            num_heard = len(samples)
        with torch.autocast("cpu", enabled=False):  # the model may be computed in bfloat16; what it hears never is
            made = self.extractor(samples, sampling_rate=self.rate, return_tensors="np")["input_features"][0]
        features: Features = made.astype(np.float32, copy=False)
        if "masks" in changes and draw is not None:
            frames = max(1, min(features.shape[1], num_heard // int(self.extractor.hop_length)))
            features = mask_features(features, frames, draw)
        return features


def open_features(directory: Path) -> FeatureMaker:
    """The model directory's feature extractor. Raises ModelNotFound where it has none, or one of another kind."""
    from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

    if not any((directory / name).is_file() for name in EXTRACTOR_FILES):
        raise ModelNotFound(
            "the speech model does not say how it hears", where=str(directory),
            expected=" or ".join(EXTRACTOR_FILES), fix="copy the file from the model's repository",
        )  # fmt: skip
    try:
        extractor = AutoFeatureExtractor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelNotFound(f"its feature extractor cannot be read: {words}", where=str(directory)) from None
    if not isinstance(extractor, WhisperFeatureExtractor):
        raise ModelNotFound(
            f"{type(extractor).__name__} is not covered", where=str(directory), expected="a Whisper model"
        )
    return FeatureMaker(directory, extractor)
