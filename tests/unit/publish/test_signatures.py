"""A signature holds for exactly the bytes that were signed, and for the key that signed them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.errors import DataError, UsageError
from halo_forge.publish import publish
from halo_forge.publish.history import read_log
from halo_forge.publish.sign import PASSWORD_VARIABLE, check_signature, sign_release

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PEM = serialization.Encoding.PEM


def write_keys(directory: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(builder: ModuleType, tmp_path: Path) -> tuple[Path, Path]:
    """A registry with two versions, v2 signed; and the public key."""
    registry = tmp_path / "registry"
    for seed in (1, 2):
        publish(*builder.build_run(tmp_path / str(seed) / "run", registry=registry, seed=seed).records)
    private, public = write_keys(tmp_path, "key")
    signature = sign_release(registry, "run", 2, private)
    assert Path(signature.path) == registry / "run" / "signatures" / "v2.sig"
    return registry, public


def problem(registry: Path, public: Path, version: int = 2) -> str:
    found = check_signature(registry, "run", version, public)
    assert found.ok is (found.problem == "")
    return found.problem


def test_what_was_signed_verifies_and_the_log_tells_of_it(signed: tuple[Path, Path]) -> None:
    registry, public = signed
    assert problem(registry, public) == ""
    assert [line.action for line in read_log(registry / "run").lines] == ["publish", "publish", "sign"]
    assert problem(registry, public, version=1) == "this version was not signed"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "gate.json", "manifest.json", "tokenizer_config.json"])
def test_one_changed_byte_is_found(signed: tuple[Path, Path], name: str) -> None:
    registry, public = signed
    path = registry / "run" / "v2" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert f"Hash mismatch for '{name}'" in problem(registry, public)


@pytest.mark.parametrize("name", ["more.txt", ".gitattributes", ".git/config"])
def test_a_removed_and_an_added_file_are_found(signed: tuple[Path, Path], name: str) -> None:
    registry, public = signed
    added = registry / "run" / "v2" / name
    added.parent.mkdir(exist_ok=True)
    added.write_text("")
    assert "Extra files" in problem(registry, public)
    added.unlink()
    (registry / "run" / "v2" / "adapter_config.json").unlink()
    assert "Missing files" in problem(registry, public)


def test_another_key_and_another_versions_signature_are_found(signed: tuple[Path, Path], tmp_path: Path) -> None:
    registry, public = signed
    _, other = write_keys(tmp_path, "other")
    assert "Key mismatch" in problem(registry, other)
    signatures = registry / "run" / "signatures"
    (signatures / "v1.sig").write_bytes((signatures / "v2.sig").read_bytes())
    assert "mismatch" in problem(registry, public, version=1).lower()


def test_a_signature_re_made_by_another_key_under_the_first_keys_name_is_found(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    registry, public = signed
    path = registry / "run" / "signatures" / "v2.sig"
    hint = json.loads(path.read_text())["verificationMaterial"]
    other, _ = write_keys(tmp_path, "other")
    sign_release(registry, "run", 2, other)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verificationMaterial": hint}))
    assert problem(registry, public).startswith("the signature does not fit")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"dsseEnvelope": 3}', "\x00\xff"])
def test_a_signature_that_is_none_is_no_proof(signed: tuple[Path, Path], content: str) -> None:
    registry, public = signed
    (registry / "run" / "signatures" / "v2.sig").write_text(content)
    assert problem(registry, public).startswith("the signature does not fit")


def test_a_version_that_is_not_whole_is_not_signed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    registry, _ = signed
    (registry / "run" / "v1" / "gate.json").unlink()
    with pytest.raises(DataError, match=r"missing: gate\.json"):
        sign_release(registry, "run", 1, tmp_path / "key.pem")


def test_keys_that_do_not_fit_are_told(
    signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, _ = signed
    with pytest.raises(UsageError, match="no such key"):
        sign_release(registry, "run", 1, tmp_path / "nowhere.pem")
    edwards = tmp_path / "edwards.pem"
    edwards.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for bad in (edwards, tmp_path / "key.pub"):
        with pytest.raises(UsageError, match="not a private key that can be used"):
            sign_release(registry, "run", 1, bad)
    private, public = write_keys(tmp_path, "locked", password=b"secret")
    with pytest.raises(UsageError, match="not a private key that can be used"):
        sign_release(registry, "run", 1, private)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    sign_release(registry, "run", 1, private)
    assert problem(registry, public, version=1) == ""


def test_the_commands(signed: tuple[Path, Path], tmp_path: Path) -> None:
    registry, public = signed
    at = ["--registry", str(registry)]

    def invoke(*words: str):
        return CliRunner().invoke(build(), ["models", *words, *at])

    assert invoke("sign", "run@1", "--key", str(tmp_path / "key.pem")).stdout.startswith("signed run v1: ")
    assert invoke("verify", "run@1", "--key", str(public)).stdout == "verified\n"
    assert invoke("verify", "--key", str(public)).stdout == "run v1: verified\nrun v2: verified\n"
    os.unlink(registry / "run" / "signatures" / "v1.sig")
    answer = invoke("verify", "run@1", "--key", str(public), "--json")
    assert (answer.exit_code, json.loads(answer.stdout)["broken"]) == (1, ["this version was not signed"])


def test_without_the_package_one_sentence_says_what_to_install(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match="signing needs a package that is not installed") as caught:
        check_signature(signed[0], "run", 2, signed[1])
    assert caught.value.fix == "pip install 'halo-forge[sign]'"
