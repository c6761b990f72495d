"""Offline, a missing model or data set is told in a moment: before torch is imported, and both at once."""

from __future__ import annotations

from halo_forge.config.schema import Config
from halo_forge.errors import DataError, HaloForgeError, ModelNotFound


def require_on_hand(config: Config) -> None:
    """Raises ModelNotFound or DataError for what is not on this machine, where the Hub is switched off; where both
    are missing, the model's error names the data set too."""
    from halo_forge.models.hub import is_offline

    if not is_offline():
        return
    missing = [problem for problem in (_missing_model(config), *_missing_datasets(config)) if problem is not None]
    if not missing:
        return
    first, *others = missing
    fixes = [problem.fix for problem in missing if problem.fix]
    raise type(first)(
        "; ".join([first.what, *(problem.what for problem in others)]),
        where=first.where,
        expected=first.expected,
        fix="; then ".join(fix.removeprefix("with a network: ") if at else fix for at, fix in enumerate(fixes)) or None,
    )


def _missing_model(config: Config) -> ModelNotFound | None:
    from halo_forge.models.embedded import NAME
    from halo_forge.models.resolve import resolve_model

    if config.model.name.lower() == NAME:  # it may have to be converted first, which is no check
        return None
    try:
        resolve_model(config.model.name, config.model.revision, weights=False)
    except ModelNotFound as problem:
        return problem
    return None


def _missing_datasets(config: Config) -> list[HaloForgeError]:
    from halo_forge.data.files.datasets_table import find_dataset
    from halo_forge.data.files.hub_rows import require_dataset

    names = [config.data.dataset, *(entry.dataset for entry in config.data.sources or ())]
    missing: list[HaloForgeError] = []
    for name in dict.fromkeys(name for name in names if name):
        try:
            require_dataset(find_dataset(name))
        except DataError as problem:
            missing.append(problem)
    return missing
