"""Signatures over whole versions, made and checked offline with a key of the user's own (package `model-signing`).

A signature is an OpenSSF Model Signing bundle: an in-toto statement with the sha256 of every file of the version,
signed with an elliptic-curve key. It lies beside the version, `<name>/signatures/vN.sig`, which never changes.
Whoever has the public key needs nothing else of ours to check it: `model_signing verify key` does the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from halo_forge.artifacts import Record
from halo_forge.errors import UsageError
from halo_forge.publish.history import writing
from halo_forge.publish.manifest import MANIFEST_NAME
from halo_forge.publish.registry import verified_version, version_directory
from halo_forge.publish.store import storage_errors
from halo_forge.runs import sha256_file

SIGNATURES = "signatures"
PASSWORD_VARIABLE = "HALO_FORGE_SIGNING_PASSWORD"


class Signature(Record):
    """`ok` is the answer to "did the holder of this key sign exactly these bytes?"; `problem` says why not."""

    name: str
    version: int
    path: str
    ok: bool
    problem: str = ""


def signature_path(directory: Path) -> Path:
    """Where the signature of a version directory is, or would be."""
    return directory.parent / SIGNATURES / f"{directory.name}.sig"


def sign_release(registry: Path, name: str, version: int | str | None, private_key: Path) -> Signature:
    """Sign a version whose every byte was just verified, and log it.

    private_key  PEM file, curve P-256, P-384 or P-521; the password of an encrypted one is taken from the environment
    Raises UsageError (package missing, no usable key), ModelNotFound, DataError (the version is not whole).
    """
    signing = _package().signing
    directory, _ = verified_version(registry, name, version)
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password.encode() if password else None
        )
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(private_key, error, "a private key") from None
    path = signature_path(directory)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path, "nothing was signed"):
        path.parent.mkdir(exist_ok=True)
        try:
            config.set_hashing_config(_hashing()).sign(directory, staging)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
        with writing(directory.parent) as writer:
            writer.append(
                "sign",
                version=int(directory.name[1:]),
                manifest_sha256=sha256_file(directory / MANIFEST_NAME),
                note=f"signature sha256 {sha256_file(path)[:16]}",
            )
    return Signature(name=name, version=int(directory.name[1:]), path=str(path), ok=True)


def check_signature(registry: Path, name: str, version: int | str | None, public_key: Path) -> Signature:
    """Hold a version against its signature: every file, none more, signed by this key. Raises UsageError (package
    missing, no usable key) and ModelNotFound."""
    verifying = _package().verifying
    directory = version_directory(registry, name, version)
    path = signature_path(directory)
    found = Signature(name=name, version=int(directory.name[1:]), path=str(path), ok=False)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(public_key, error, "a public key") from None
    if not path.is_file():
        return found.model_copy(update={"problem": "this version was not signed"})
    try:
        config.set_hashing_config(_hashing()).verify(directory, path)
    except Exception as error:  # hostile input to a foreign parser: whatever it says, it is no proof
        reason = " ".join((str(error) or type(error).__name__).replace("\\'", "'").split())[:300]
        return found.model_copy(update={"problem": f"the signature does not fit: {reason}"})
    return found.model_copy(update={"ok": True})


def _hashing() -> Any:
    """Every file whole, with sha256, git's own included; a link is an error."""
    config = _package().hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=(), ignore_git_paths=False)


def _package() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise UsageError(
            f"signing needs a package that is not installed: {error.name}",
            expected="the extra `sign` (model-signing)",
            fix="pip install 'halo-forge[sign]'",
        ) from None
    return model_signing


def _unusable(path: Path, error: Exception, what: str) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(
        f"this is not {what} that can be used: {reason}" if path.is_file() else "no such key",
        where=str(path),
        expected=f"{what} in PEM, curve P-256, P-384 or P-521; {PASSWORD_VARIABLE} holds its password, if it has one",
        fix="openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub",
    )
