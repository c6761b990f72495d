"""Equal bytes are stored once, and what is needed is never collected."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.errors import DataError, HaloForgeError
from halo_forge.publish import collect, publish, verified_version, verify_release
from halo_forge.publish.history import read_log
from halo_forge.publish.manifest import file_entries
from halo_forge.publish.store import BLOBS, share_files, staging_directory
from halo_forge.runs import sha256_file

WEIGHTS = "adapter_model.safetensors"


def published(builder: ModuleType, tmp_path: Path, seed: int, name: str = "run", **fields: object) -> Path:
    built = builder.build_run(tmp_path / f"{name}{seed}" / name, registry=tmp_path / "registry", seed=seed)
    return Path(publish(*built.records).path)


def same_weights_other_template(builder: ModuleType, tmp_path: Path) -> Path:
    built = builder.build_run(tmp_path / "again" / "run", registry=tmp_path / "registry", seed=1)
    (built.run.file("final_model") / "chat_template.jinja").write_text("another")
    return Path(publish(*built.records).path)


def blobs(registry: Path) -> dict[str, Path]:
    return {path.name: path for path in (registry / BLOBS).rglob("*") if path.is_file()}


def test_equal_weights_of_two_versions_are_one_file(builder: ModuleType, tmp_path: Path) -> None:
    first, second = published(builder, tmp_path, 1), same_weights_other_template(builder, tmp_path)
    other = published(builder, tmp_path, 1, name="other")
    assert second.name == "v2"
    inodes = {(version / WEIGHTS).stat().st_ino for version in (first, second, other)}
    assert len(inodes) == 1
    found = blobs(tmp_path / "registry")
    assert all(sha256_file(path) == name for name, path in found.items())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in found.values())
    assert found[sha256_file(first / WEIGHTS)].stat().st_nlink == 4


def test_a_damaged_blob_is_not_bound_into_a_new_version(builder: ModuleType, tmp_path: Path) -> None:
    first = published(builder, tmp_path, 1)
    os.chmod(first / WEIGHTS, 0o644)
    damaged = bytearray((first / WEIGHTS).read_bytes())
    damaged[-1] ^= 1
    with open(first / WEIGHTS, "r+b") as file:  # through the link: the blob is damaged with it
        file.write(damaged)
    second = same_weights_other_template(builder, tmp_path)
    assert verify_release(tmp_path / "registry", "run", 2).ok
    assert verify_release(tmp_path / "registry", "run", 1).changed == (WEIGHTS,)
    with pytest.raises(DataError, match=f"changed: {WEIGHTS}"):
        verified_version(tmp_path / "registry", "run", 1)
    good = blobs(tmp_path / "registry")[sha256_file(second / WEIGHTS)]
    assert good.stat().st_ino == (second / WEIGHTS).stat().st_ino


def test_without_hard_links_a_version_keeps_its_own_copy(
    builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    published(builder, tmp_path, 1)
    same_weights_other_template(builder, tmp_path)
    assert all(verify_release(tmp_path / "registry", "run", number).ok for number in (1, 2))
    assert blobs(tmp_path / "registry") == {}


# ---------------------------------------------------------------------------------------------- collecting


def test_collecting_removes_what_a_deleted_version_alone_used(builder: ModuleType, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    published(builder, tmp_path, 1)
    second = published(builder, tmp_path, 2)
    unneeded = sha256_file(second / WEIGHTS)
    assert collect(registry, remove=True, grace_s=0).blobs == ()
    shutil.rmtree(second)
    assert collect(registry, remove=True).blobs == (), "what was just let go stays for the grace time"
    dry = collect(registry, remove=False, grace_s=0)
    assert [Path(name).name for name in dry.blobs if name.endswith(unneeded)] == [unneeded]
    assert unneeded in blobs(registry)
    done = collect(registry, remove=True, grace_s=0)
    assert (done.blobs, done.removed) == (dry.blobs, True)
    assert unneeded not in blobs(registry)
    assert verify_release(registry, "run", 1).changed == ()
    assert [line.action for line in read_log(registry).lines] == ["gc"]


def test_what_a_running_publisher_needs_is_not_collected(builder: ModuleType, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    with staging_directory(registry / "run") as staging:
        (staging / "file").write_text("new")
        share_files(registry, staging, file_entries(staging))
        found = collect(registry, remove=True, grace_s=0)
        assert (found.blobs, found.stagings) == ((), ())
        assert (staging / "file").read_text() == "new"
    assert len(collect(registry, remove=True, grace_s=0).blobs) == 1


def test_a_blob_that_went_away_while_it_was_shared_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector unlinks between the publisher's two looks."""
    registry, link, calls = tmp_path / "registry", os.link, []

    def link_and_collect(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            Path(source).unlink()
        link(source, target)

    for name in ("first", "second"):
        with staging_directory(registry / name) as staging:
            (staging / "file").write_text("same")
            if name == "second":
                calls.clear()
                monkeypatch.setattr(os, "link", link_and_collect)
            share_files(registry, staging, file_entries(staging))
            (blob,) = blobs(registry).values()
            assert (staging / "file").stat().st_ino == blob.stat().st_ino
    assert len(calls) == 3


def test_what_a_killed_publisher_left_is_collected_with_its_blobs(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    dead = registry / "run" / ".staging-dead"
    dead.mkdir(parents=True)
    (dead / "file").write_text("half")
    share_files(registry, dead, file_entries(dead))
    time.sleep(0.01)
    found = collect(registry, remove=True, grace_s=0)
    assert found.stagings == ("run/.staging-dead",)
    assert len(found.blobs) == 1
    assert not dead.exists()
    assert blobs(registry) == {}


def test_one_collector_at_a_time(builder: ModuleType, tmp_path: Path) -> None:
    import fcntl

    registry = tmp_path / "registry"
    published(builder, tmp_path, 1)
    with open(registry / ".lock-gc", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HaloForgeError, match="another process is collecting"):
            collect(registry, remove=True)
    assert collect(tmp_path / "nowhere", remove=True).blobs == ()
