"""Speech: sound in, text out, by an encoder-decoder model such as Whisper.

transcripts.py  text <-> decoder ids          features.py      bytes -> log-mel features, augmented or not
whisper.py      the Media of the domain       attention.py     transcripts of one row, each hearing its own sound
decoding.py     greedy transcripts            augmentation.py  draws from (seed, step, example)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halo_forge.config.schema import Config
    from halo_forge.domains.audio.whisper import WhisperMedia


def open_speech(config: Config, tokenizer: Any, directory: Path) -> WhisperMedia:
    """The ears of the Whisper model in `directory`. Raises ModelNotFound and UsageError for one that cannot be used
    as `config.audio` says."""
    from halo_forge.domains.audio.whisper import open_whisper

    return open_whisper(config, tokenizer, directory)
