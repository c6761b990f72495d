"""What is installed and reachable: caches, Hub, token, libraries, the embedded model, extras."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from halo_forge.doctor.finding import PACKAGE, Finding
from halo_forge.doctor.hardware import existing_parent
from halo_forge.runs import cache_directory

if TYPE_CHECKING:
    from halo_forge.sandbox.selftest import SandboxStatus

HUB_TIMEOUT_S = 2.0


def caches_findings() -> Iterable[Finding]:
    from huggingface_hub import constants

    for variable, path in (("HALO_FORGE_CACHE", cache_directory()), ("HF_HOME", Path(constants.HF_HUB_CACHE))):
        yield judge_cache(variable, path)


def judge_cache(variable: str, path: Path) -> Finding:
    """Tries to write a file where the cache is, or will be."""
    place = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(
            name="cache", status="problem", detail=f"{path} cannot be written to: {error.strerror}",
            fix=f"export {variable}=/a/directory/you/own",
        )  # fmt: skip
    return Finding(name="cache", status="ok", detail=f"{path} is writable")


def hub_findings(ask: bool) -> Iterable[Finding]:
    from huggingface_hub import constants

    from halo_forge.models.hub import is_offline, unreachable_reason

    if is_offline():
        yield Finding(name="hub", status="ok", detail="switched off (HF_HUB_OFFLINE): only what is on this machine")
    elif not ask:
        yield Finding(name="hub", status="ok", detail="not asked")
    elif reason := unreachable_reason(HUB_TIMEOUT_S):
        yield Finding(
            name="hub", status="warning", detail=f"{reason}; models on this machine and the embedded one still work",
            fix="export HF_HUB_OFFLINE=1 (no more attempts), or set HTTPS_PROXY or HF_ENDPOINT",
        )  # fmt: skip
    else:
        yield Finding(name="hub", status="ok", detail=f"{constants.ENDPOINT} answers")


def token_findings() -> Iterable[Finding]:
    from huggingface_hub import get_token

    if get_token():
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "a login on this machine"
        yield Finding(name="token", status="ok", detail=f"present ({source}); gated models can be fetched")
    else:
        yield Finding(
            name="token", status="ok", detail="none; only gated and private models need one", fix="hf auth login"
        )


def libraries_findings() -> Iterable[Finding]:
    required = [line for line in metadata.requires(PACKAGE) or [] if "extra ==" not in line]
    yield from judge_libraries(required, _installed_version)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def judge_libraries(required: list[str], installed: Callable[[str], str | None]) -> list[Finding]:
    """required: lines as package metadata has them; installed: name -> version or None"""
    from packaging.requirements import Requirement

    findings = []
    for line in required:
        requirement = Requirement(line)
        version = installed(requirement.name)
        fix = f'pip install "{requirement.name}{requirement.specifier}"'
        if version is None:
            detail = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(version, prereleases=True):
            detail = f"{requirement.name} {version} is outside the supported range {requirement.specifier}"
        else:
            continue
        findings.append(Finding(name="libraries", status="problem", detail=detail, fix=fix))
    if findings:
        return findings
    return [Finding(name="libraries", status="ok", detail=f"all {len(required)} are within their supported ranges")]


def embedded_findings() -> Iterable[Finding]:
    from halo_forge.models import embedded

    if embedded.package_directory() is None:
        yield Finding(
            name="embedded model", status="warning", detail=f"{embedded.NAME} is not installed", fix=embedded.INSTALL
        )
        return
    if importlib.util.find_spec("gguf") is None and not _converted():
        yield Finding(
            name="embedded model", status="problem", detail=f"{embedded.NAME} needs the package gguf to be converted",
            fix="pip install gguf",
        )  # fmt: skip
        return
    state = "ready" if _converted() else "installed; converted at its first use (seconds)"
    yield Finding(name="embedded model", status="ok", detail=f"{embedded.NAME}: {state}")


def _converted() -> bool:
    from halo_forge.models import embedded

    pattern = f"{embedded.NAME}-*-{embedded.CONVERSION}"
    return any(path.is_dir() for path in (cache_directory() / "models").glob(pattern))


def extras_findings() -> Iterable[Finding]:
    provided = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    yield from judge_extras(provided, metadata.requires(PACKAGE) or [], _installed_version)


def judge_extras(provided: list[str], required: list[str], installed: Callable[[str], str | None]) -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for extra in provided:
        names = [
            requirement.name
            for requirement in map(Requirement, required)
            if requirement.marker and requirement.marker.evaluate({"extra": extra})
        ]
        missing = [name for name in names if installed(name) is None]
        findings.append(
            Finding(
                name="extras",
                status="ok",
                detail=f"{extra}: " + (f"without {', '.join(missing)}" if missing else "installed"),
                fix=f'pip install "{PACKAGE}[{extra}]"' if missing else None,
            )
        )
    return findings


def media_findings() -> Iterable[Finding]:
    """What images and sounds need beside this package; nothing else does."""
    yield judge_media("images (Pillow)", _import_error("PIL.Image"), f'pip install "{PACKAGE}[vlm]"')
    yield judge_media("sounds (soundfile, libsndfile)", _import_error("soundfile"), f'pip install "{PACKAGE}[audio]"')
    missing = None if shutil.which("espeak-ng") else "not installed"
    yield judge_media("speech of the examples (espeak-ng)", missing, "apt-get install espeak-ng")


def _import_error(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of the system that the package loads
        return str(error).splitlines()[0]
    return None


def judge_media(what: str, missing: str | None, fix: str) -> Finding:
    """missing: why it cannot be used, or None"""
    if missing is None:
        return Finding(name="media", status="ok", detail=f"{what}: ready")
    return Finding(name="media", status="ok", detail=f"{what}: {missing}", fix=fix)


def sandbox_findings() -> Iterable[Finding]:
    from halo_forge.sandbox import sandbox_status

    yield judge_sandbox(sandbox_status())


def judge_sandbox(status: SandboxStatus) -> Finding:
    """Whether generated code may run here. Nothing but verifiers and metrics of code needs it."""
    if status.available:
        detail = f"generated code can be run: {status.num_attacks} attacks held off (Landlock {status.landlock_abi})"
        return Finding(name="sandbox", status="ok", detail=detail)
    return Finding(
        name="sandbox", status="warning", detail=f"generated code will not be run: {status.reason}",
        fix="where compile, unit-test or pass_at_1 are wanted: Linux 5.13 or newer with Landlock, x86_64 or aarch64",
    )  # fmt: skip
