"""Are the model and the data sets of a configuration on this machine, or within reach? Asked before torch is loaded.

Importing what trains takes seconds; a name that leads nowhere is told in less than one, and both are told at once.
"""

from __future__ import annotations

from halo_forge.config import Config
from halo_forge.data.files.datasets_table import find_dataset
from halo_forge.data.files.hub_rows import require_dataset
from halo_forge.errors import DataError, HaloForgeError, ModelNotFound
from halo_forge.models.resolve import resolve_model
from halo_forge.runs import Notify, silent


def require_present(config: Config, notify: Notify = silent) -> None:
    """Raises ModelNotFound or DataError with the command that fetches what is missing. Where the Hub can be reached,
    the model's small files may be fetched; nothing else is."""
    missing: list[HaloForgeError] = []
    try:
        resolve_model(config.model.name, config.model.revision, weights=False, notify=notify)
    except ModelNotFound as error:
        missing.append(error)
    for name in [config.data.dataset, *(source.dataset for source in config.data.sources or [])]:
        try:
            if name:
                require_dataset(find_dataset(name))
        except DataError as error:
            missing.append(error)
    if len(missing) > 1:
        raise type(missing[0])(
            "\n       ".join(error.what for error in missing), expected=missing[0].expected,
            fix="\n       ".join(error.fix for error in missing if error.fix),
        )  # fmt: skip
    if missing:
        raise missing[0]
