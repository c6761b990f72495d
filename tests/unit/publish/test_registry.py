"""The registry as readers and several publishers at once see it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.errors import DataError, ModelNotFound, UsageError
from halo_forge.publish import list_releases, publish, show_release, verify_release
from halo_forge.publish.history import complete_versions
from halo_forge.publish.manifest import read_manifest
from halo_forge.publish.store import claim, staging_directory
from halo_forge.runs import sha256_file


def publish_versions(builder: ModuleType, tmp_path: Path, count: int, name: str = "run") -> Path:
    registry = tmp_path / "registry"
    for seed in range(count):
        publish(*builder.build_run(tmp_path / f"s{seed}" / name, registry=registry, seed=seed).records)
    return registry


# ---------------------------------------------------------------------------------------------- reading


def test_listing_is_by_name_and_number(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 11, "beta")
    publish_versions(builder, tmp_path, 1, "alpha")
    found = [(release.name, release.version) for release in list_releases(registry)]
    assert found == [("alpha", 1), *[("beta", number) for number in range(1, 12)]]
    assert list_releases(tmp_path / "nowhere") == []


def test_what_is_not_there_is_named_with_what_is(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 2, "stub-writer")
    with pytest.raises(ModelNotFound, match="one of: stub-writer") as caught:
        show_release(registry, "stub-writr")
    assert caught.value.fix == "halo-forge models show stub-writer"
    with pytest.raises(ModelNotFound, match="one of: v1, v2"):
        show_release(registry, "stub-writer", 7)
    with pytest.raises(ModelNotFound, match="registry is empty"):
        show_release(tmp_path / "nowhere", "stub-writer")
    with pytest.raises(UsageError):
        show_release(registry, "../registry/stub-writer", 1)


def test_an_unreadable_version_does_not_hide_the_others(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 3)
    replace_file(registry / "run" / "v2" / "manifest.json", "{")
    notes: list[str] = []
    releases = list_releases(registry, notify=lambda _, fields: notes.append(fields["text"]))
    assert [release.version for release in releases] == [1, 3]
    assert len(notes) == 1
    assert "run v2" in notes[0]
    with pytest.raises(DataError, match="not the manifest"):
        show_release(registry, "run", 2)


def test_a_directory_without_manifest_is_no_version(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    (registry / "run" / "v2").mkdir()
    (registry / "run" / "v2" / "half").write_text("")
    assert show_release(registry, "run").version == 1
    built = builder.build_run(tmp_path / "next" / "run", registry=registry, seed=5)
    assert publish(*built.records).version == 3


def test_a_deleted_newest_version_is_not_reissued(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 2)
    shutil.rmtree(registry / "run" / "v2")
    assert show_release(registry, "run").version == 1
    built = builder.build_run(tmp_path / "next" / "run", registry=registry, seed=5)
    assert publish(*built.records).version == 3


# ---------------------------------------------------------------------------------------------- verify


def replace_file(path: Path, content: str | bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_verify_lists_what_is_missing_changed_and_extra(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    directory = registry / "run" / "v1"
    assert verify_release(registry, "run", 1).ok
    (directory / "adapter_config.json").unlink()
    weights = bytearray((directory / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    replace_file(directory / "adapter_model.safetensors", bytes(weights))
    (directory / "eval" / "more.txt").write_text("")
    result = verify_release(registry, "run", 1)
    assert not result.ok
    assert result.missing == ("adapter_config.json",)
    assert result.changed == ("adapter_model.safetensors",)
    assert result.extra == ("eval/more.txt",)
    assert result.problems == (
        "missing: adapter_config.json",
        "changed: adapter_model.safetensors",
        "not in the manifest: eval/more.txt",
    )


def test_a_link_is_not_the_file_it_points_to(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    directory = registry / "run" / "v1"
    shutil.move(directory / "gate.json", tmp_path / "gate.json")
    (directory / "gate.json").symlink_to(tmp_path / "gate.json")
    shutil.move(directory / "tokenizer", tmp_path / "tokenizer")
    (directory / "tokenizer").symlink_to(tmp_path / "tokenizer")
    result = verify_release(registry, "run", 1)
    assert result.changed == ("gate.json", "tokenizer/tokenizer_config.json")
    assert "tokenizer" in result.extra


def test_a_manifest_rewritten_to_match_is_found_by_its_successor(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 3)
    directory = registry / "run" / "v1"
    replace_file(directory / "trained.json", "{}")
    manifest = json.loads((directory / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "trained.json":
            entry.update(sha256=sha256_file(directory / "trained.json"), size_bytes=2)
    replace_file(directory / "manifest.json", json.dumps(manifest))
    result = verify_release(registry, "run", 1)
    assert (result.missing, result.changed, result.extra) == ((), (), ())
    assert result.problems == (
        "chain: the manifest of v1 is not the one that v2 was published after",
        "log: the manifest of v1 is not the one that was published",
    )
    assert not verify_release(registry, "run", 3).ok


def test_a_lost_parent_breaks_the_chain(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 2)
    shutil.rmtree(registry / "run" / "v1")
    assert verify_release(registry, "run", 2).problems == (
        "chain: v2 names v1 as its parent, which is not here",
        "log: v1 was published and is not here",
    )


@pytest.mark.parametrize("field", ["weights_sha256", "gate_sha256", "eval_report_sha256", "config_sha256", "verdict"])
def test_a_manifest_that_contradicts_its_files_is_found(builder: ModuleType, tmp_path: Path, field: str) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    path = registry / "run" / "v1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[field] = "FAIL" if field == "verdict" else "0" * 64
    replace_file(path, json.dumps(manifest))
    problems = verify_release(registry, "run", 1).broken
    assert any(problem.startswith(field) for problem in problems), problems


@pytest.mark.parametrize("path", ["../../../../etc/hostname", "/etc/hostname", "a\\..\\b", ""])
def test_a_manifest_cannot_point_outside_its_version(builder: ModuleType, tmp_path: Path, path: str) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    file = registry / "run" / "v1" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"].append({"path": path, "sha256": "0" * 64, "size_bytes": 1})
    replace_file(file, json.dumps(manifest))
    result = verify_release(registry, "run", 1)
    assert any("outside the version" in problem for problem in result.problems)


def test_a_version_moved_to_another_number_is_found(builder: ModuleType, tmp_path: Path) -> None:
    registry = publish_versions(builder, tmp_path, 1)
    (registry / "run" / "v1").rename(registry / "run" / "v4")
    assert "the manifest belongs to run v1" in verify_release(registry, "run", 4).problems


# ---------------------------------------------------------------------------------------------- several at once

PUBLISHER = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from halo_forge.artifacts import EvalReport, GateDecision, PreparedData, TrainedModel
    from halo_forge.config.schema import Config
    from halo_forge.publish import publish
    from halo_forge.runs import RunDirectory, read_artifact
    loaded = []
    for path in sys.argv[1:]:
        run = RunDirectory(Path(path))
        config = Config.model_validate(json.loads(run.file("run.json").read_text())["config"])
        loaded.append((config, run, read_artifact(run.file("trained.json"), TrainedModel),
                       read_artifact(run.file("eval/report.json"), EvalReport),
                       read_artifact(run.file("gate.json"), GateDecision),
                       read_artifact(run.file("data/manifest.json"), PreparedData)))
    print("ready", flush=True)
    sys.stdin.readline()
    for records in loaded:
        release = publish(*records)
        print(release.version, release.manifest_sha256, flush=True)
""")


def start_publishers(runs_of_each: list[list[Path]]) -> list[subprocess.Popen[str]]:
    """Publishers that have imported and loaded everything and wait for one line to go."""
    publishers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, *map(str, runs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for runs in runs_of_each
    ]
    for publisher in publishers:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "ready\n"
    return publishers


def finish(publishers: list[subprocess.Popen[str]]) -> list[list[str]]:
    """Let all of them go at once; the lines that each printed."""
    answers = []
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
    for publisher in publishers:
        answers.append(publisher.communicate(timeout=120)[0].splitlines())
        assert publisher.returncode == 0
    return answers


def test_six_processes_publish_at_once_and_no_version_is_lost_or_doubled(builder: ModuleType, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    runs = [
        [
            builder.build_run(
                tmp_path / f"p{process}-{turn}" / "run", registry=registry, seed=10 * process + turn
            ).run.path
            for turn in range(4)
        ]
        for process in range(6)
    ]
    publishers = start_publishers(runs)
    answers = finish(publishers)
    versions = sorted(int(line.split()[0]) for lines in answers for line in lines)
    assert versions == list(range(1, 25))
    home = registry / "run"
    assert complete_versions(home) == versions
    for line in (line for lines in answers for line in lines):
        version, manifest_sha256 = line.split()
        assert sha256_file(home / f"v{version}" / "manifest.json") == manifest_sha256
    assert [read_manifest(home / f"v{version}").parent_version for version in versions] == [None, *versions[:-1]]
    assert verify_release(registry, "run", 24).ok
    assert (home / "latest").read_text() == "v24\n"
    assert not list(home.glob(".staging-*"))


def test_processes_that_publish_the_same_content_share_one_version(builder: ModuleType, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    runs = [[builder.build_run(tmp_path / str(n) / "run", registry=registry, seed=3).run.path] for n in range(5)]
    answers = finish(start_publishers(runs))
    assert {lines[0].split()[0] for lines in answers} == {"1"}
    assert complete_versions(registry / "run") == [1]


def test_readers_see_whole_versions_only(builder: ModuleType, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    runs = [
        [
            builder.build_run(tmp_path / f"p{p}-{t}" / "run", registry=registry, seed=7 * p + t).run.path
            for t in range(5)
        ]
        for p in range(2)
    ]
    publishers = start_publishers(runs)
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write("go\n")
        publisher.stdin.flush()
    num_seen = 0
    while any(publisher.poll() is None for publisher in publishers):
        for version in complete_versions(registry / "run"):
            result = verify_release(registry, "run", version)
            assert result.ok, result
            num_seen += 1
    assert num_seen > 0
    for publisher in publishers:
        publisher.communicate(timeout=60)
        assert publisher.returncode == 0
    assert complete_versions(registry / "run") == list(range(1, 11))


def test_a_number_that_is_taken_is_not_taken_again(tmp_path: Path) -> None:
    home = tmp_path / "name"
    for content in ("first", "second"):
        with staging_directory(home) as staging:
            (staging / "manifest.json").write_text(content)
            claimed = claim(staging, home, 1)
            assert claimed == (content == "first")
    assert (home / "v1" / "manifest.json").read_text() == "first"
    assert [entry.name for entry in home.iterdir()] == ["v1"]


def test_what_a_killed_publisher_left_is_cleared_but_a_living_one_is_not(tmp_path: Path) -> None:
    home = tmp_path / "name"
    old = time.time() - 7200
    with staging_directory(home) as living:
        (living / "file").write_text("")
        dead = home / ".staging-dead"
        dead.mkdir()
        young = home / ".staging-young"
        young.mkdir()
        os.utime(living, (old, old))
        os.utime(dead, (old, old))
        with staging_directory(home):
            assert living.is_dir()
            assert young.is_dir()
            assert not dead.exists()
