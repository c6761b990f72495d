"""From a passing run to a released version: checks, model card, manifest, registry. No torch."""

from __future__ import annotations

from halo_forge.publish.manifest import Manifest, VerifyResult
from halo_forge.publish.proof import Proof, prove_reload
from halo_forge.publish.registry import (
    list_releases,
    name_and_version,
    roll_back,
    set_alias,
    show_release,
    verified_version,
    verify_release,
)
from halo_forge.publish.release import PublishRefused, publish
from halo_forge.publish.store import Collected, collect

__all__ = [
    "Collected",
    "Manifest",
    "Proof",
    "PublishRefused",
    "VerifyResult",
    "collect",
    "list_releases",
    "name_and_version",
    "prove_reload",
    "publish",
    "roll_back",
    "set_alias",
    "show_release",
    "verified_version",
    "verify_release",
]
