"""halo-forge: supervised fine-tuning from raw rows to a released, watched model.

Importing the package imports nothing heavy and changes nothing: the functions below load on first use. Each stage is
a function of its room: `halo_forge.data.prepare`, `train.train`, `evaluate.evaluate`, `gate.decide`, `publish.publish`,
`monitor.observe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC = {
    "load_config": "halo_forge.config",
    "plan": "halo_forge.pipeline",
    "publish_run": "halo_forge.pipeline",
    "run": "halo_forge.pipeline",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'halo_forge' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
