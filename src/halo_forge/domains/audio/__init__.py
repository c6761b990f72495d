"""Sound in, text out: Whisper, an encoder-decoder for speech, and Qwen2-Audio, a language model that hears.

transcripts.py  text <-> decoder ids          features.py      bytes -> log-mel features, augmented or not
whisper.py      the Media of the domain       attention.py     transcripts of one row, each hearing its own sound
decoding.py     greedy transcripts            augmentation.py  draws from (seed, step, example)
listener.py     the Media of audio language models: chats with sounds
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_forge.models.inspection import AUDIO_LANGUAGE_MODELS, read_json_object

if TYPE_CHECKING:
    from halo_forge.config.schema import Config
    from halo_forge.domains.media import Media


def open_speech(config: Config, tokenizer: Any, directory: Path) -> Media:
    """The ears of the model in `directory`. Raises ModelNotFound and UsageError for one that cannot be used as
    `config.audio` says."""
    if read_json_object(directory / "config.json").get("model_type") in AUDIO_LANGUAGE_MODELS:
        from halo_forge.domains.audio.listener import open_listener

        return open_listener(config, tokenizer, directory)
    from halo_forge.domains.audio.whisper import open_whisper

    return open_whisper(config, tokenizer, directory)
