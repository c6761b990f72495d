"""From a passing run to a released version: checks, model card, manifest, registry. No torch."""

from __future__ import annotations

from halo_forge.publish.manifest import Manifest, VerifyResult
from halo_forge.publish.registry import list_releases, show_release, verify_release
from halo_forge.publish.release import PublishRefused, publish

__all__ = [
    "Manifest",
    "PublishRefused",
    "VerifyResult",
    "list_releases",
    "publish",
    "show_release",
    "verify_release",
]
