"""The section `audio`: what a speech model is told beside the sound. Read where the model hears; else it is ignored."""

from __future__ import annotations

from typing import Literal

from halo_forge.config.section import Section


class AudioSection(Section):
    language: str | None = None
    """Language that a multilingual Whisper is told (`en`, `german`, ...). English-only models take none."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """What a multilingual Whisper is told to do; `translate` writes English."""
    timestamps: bool = False
    """Train and write times: texts hold them as `<|0.00|> words <|2.40|>`. Off, they are taken out of the texts."""
    freeze_encoder: bool = False
    """Train the decoder alone."""
    keep_encoder_output: bool = True
    """With a frozen encoder and no augmentation, compute what it makes of a sound once and keep it (up to 4 GB).
    Same loss and gradient; false computes it at every step."""
    augmentation: list[Literal["noise", "speed", "gain", "masks"]] = []
    """Changes to the sound while training: white noise 10 to 30 dB below it, speed 0.9 to 1.1, gain of 6 dB up or
    down, masked bands of the spectrogram (SpecAugment). Drawn from seed, step and row."""
