"""The log of a model and its aliases: moved whole, mended after a kill, found out when changed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest

from halo_forge.errors import HaloForgeError, ModelNotFound, UsageError
from halo_forge.publish import name_and_version, publish, roll_back, set_alias, show_release, verify_release
from halo_forge.publish.history import LOG, Writer, read_alias, read_aliases, read_log, writing

RUN = "run"


def versions(builder: ModuleType, tmp_path: Path, count: int, first: int = 0) -> Path:
    registry = tmp_path / "registry"
    for seed in range(first, first + count):
        publish(*builder.build_run(tmp_path / f"s{seed}" / RUN, registry=registry, seed=seed).records)
    return registry


@pytest.fixture
def three(builder: ModuleType, tmp_path: Path) -> Path:
    return versions(builder, tmp_path, 3)


def released(registry: Path) -> int:
    return show_release(registry, RUN).version


def test_publishing_moves_the_aliases_and_tells_so(three: Path) -> None:
    assert read_aliases(three / RUN) == {"candidate": 3, "released": 3}
    log = read_log(three / RUN)
    assert [(line.number, line.action, line.version) for line in log.lines] == [
        (0, "publish", 1), (1, "publish", 2), (2, "publish", 3),
    ]  # fmt: skip
    assert log.lines[2].aliases == {"candidate": (2, 3), "released": (2, 3)}
    assert log.lines[2].manifest_sha256 == show_release(three, RUN, 3).manifest_sha256
    assert "@" in log.lines[0].who
    assert log.problems == ()


def test_a_forced_version_is_a_candidate_and_not_released(builder: ModuleType, tmp_path: Path) -> None:
    registry = versions(builder, tmp_path, 1)
    built = builder.build_run(tmp_path / "worse" / RUN, registry=registry, seed=9, verdict="FAIL")
    config = built.config.model_copy(update={"publish": built.config.publish.model_copy(update={"force": True})})
    assert publish(config, *built.records[1:]).version == 2
    assert read_aliases(registry / RUN) == {"candidate": 2, "released": 1}
    assert released(registry) == 1


def test_rolling_back_goes_one_further_each_time_and_is_quick(three: Path) -> None:
    start = time.perf_counter()
    line = roll_back(three, RUN)
    assert time.perf_counter() - start < 1
    assert (line.action, line.version, line.aliases) == ("rollback", 2, {"released": (3, 2)})
    assert released(three) == 2
    assert show_release(three, RUN, "candidate").version == 3
    assert roll_back(three, RUN).version == 1
    with pytest.raises(UsageError, match="named no version before v1"):
        roll_back(three, RUN)
    assert roll_back(three, RUN, to=3).version == 3
    assert roll_back(three, RUN).version == 1
    assert verify_release(three, RUN, 1).ok


def test_a_new_version_is_released_after_a_rollback_and_the_old_one_is_not_again(
    builder: ModuleType, tmp_path: Path, three: Path
) -> None:
    roll_back(three, RUN)
    again = builder.build_run(tmp_path / "again" / RUN, registry=three, seed=2)
    assert publish(*again.records).version == 3
    assert released(three) == 2, "publishing what was rolled back does not undo the rollback"
    versions(builder, tmp_path, 1, first=7)
    assert released(three) == 4
    assert read_log(three / RUN).stack("released") == [1, 2, 4]


def test_a_version_that_is_not_whole_is_no_place_to_go_back_to(three: Path) -> None:
    (three / RUN / "v2" / "adapter_config.json").unlink()
    with pytest.raises(HaloForgeError, match=r"v2 is not whole: adapter_config\.json"):
        roll_back(three, RUN)
    assert released(three) == 3


def test_aliases_of_the_user(three: Path) -> None:
    set_alias(three, RUN, 1, "stable")
    set_alias(three, RUN, "stable", "canary-eu")
    assert show_release(three, *name_and_version("run@canary-eu")).version == 1
    assert show_release(three, *name_and_version("run:stable")).version == 1
    assert show_release(three, *name_and_version("run:v2")).version == 2
    assert show_release(three, *name_and_version("run@latest")).version == 3
    with pytest.raises(ModelNotFound, match="no alias 'stble'"):
        show_release(three, RUN, "stble")
    for bad in ("v3", "latest", "../x", "A", "", "a" * 33):
        with pytest.raises(UsageError):
            set_alias(three, RUN, 1, bad)


# ---------------------------------------------------------------------------------------------- kills


def test_a_torn_line_is_removed_and_told(three: Path) -> None:
    path = three / RUN / LOG
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"number":3,"at":"2026')
    assert read_log(three / RUN).torn_bytes == 22
    assert verify_release(three, RUN, 3).ok, "what was never in effect is no damage"
    line = set_alias(three, RUN, 1, "stable")
    assert line.note == "a torn line of 22 bytes before this one was removed"
    assert path.read_bytes().startswith(whole)
    assert read_log(three / RUN).problems == ()


def test_a_line_without_its_effect_is_brought_about(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer dies between the log and the alias."""
    monkeypatch.setattr(Writer, "bring_about", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), writing_without_redo(three / RUN) as writer:
        writer.append("rollback", version=1, moves={"released": 1})
    monkeypatch.undo()
    assert released(three) == 3
    assert verify_release(three, RUN, 3).ok
    with writing(three / RUN):
        pass
    assert released(three) == 1


def writing_without_redo(home: Path):
    class Held:
        def __enter__(self) -> Writer:
            log = read_log(home)
            return Writer(home, log, _aliases=log.aliases())

        def __exit__(self, *_: object) -> None:
            pass

    return Held()


def test_a_publisher_that_died_before_the_log_is_found_and_finishes_when_run_again(
    builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = versions(builder, tmp_path, 1)
    built = builder.build_run(tmp_path / "dies" / RUN, registry=registry, seed=5)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("halo_forge.publish.release.record_publication", die)
    with pytest.raises(KeyboardInterrupt):
        publish(*built.records)
    monkeypatch.undo()
    assert released(registry) == 1
    set_alias(registry, RUN, 2, "stable")
    assert [line.action for line in read_log(registry / RUN).lines] == ["publish", "found", "alias"]
    assert publish(*built.records).version == 2
    assert released(registry) == 2


def test_a_publisher_that_comes_late_does_not_take_the_alias_back(
    builder: ModuleType, tmp_path: Path, three: Path
) -> None:
    """The publisher of v2 is overtaken by that of v3 between its claim and its line."""
    log = three / RUN / LOG
    first = log.read_bytes().splitlines(keepends=True)[0]
    log.write_bytes(first)
    for name in ("candidate", "released"):
        (three / RUN / "aliases" / name).write_text("v1\n")
    for seed in (2, 1):
        publish(*builder.build_run(tmp_path / f"late{seed}" / RUN, registry=three, seed=seed).records)
    assert read_aliases(three / RUN) == {"candidate": 3, "released": 3}
    assert read_log(three / RUN).stack("released") == [1, 3]


def test_a_registry_without_a_log_is_read_and_gets_one(builder: ModuleType, tmp_path: Path, three: Path) -> None:
    """What an older halo-forge left: versions and `latest`, nothing else."""
    home = three / RUN
    shutil.rmtree(home / "aliases")
    shutil.rmtree(three / ".blobs")
    (home / LOG).unlink()
    (home / ".lock").unlink()
    assert released(three) == 3
    assert verify_release(three, RUN, 2).ok
    versions(builder, tmp_path, 1, first=8)
    assert [(line.action, line.version) for line in read_log(home).lines] == [
        ("found", 1), ("found", 2), ("found", 3), ("publish", 4),
    ]  # fmt: skip
    assert verify_release(three, RUN).ok


# ---------------------------------------------------------------------------------------------- changed by somebody


def changed_line(path: Path, number: int, **fields: object) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | fields)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: changed_line(path, 0, who="somebody@else"),
        lambda path: changed_line(path, 1, version=1),
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[1:])),
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[::2])),
        lambda path: path.write_text("{}\n" + path.read_text()),
    ],
    ids=["who", "version", "first line gone", "middle line gone", "line put in"],
)
def test_a_changed_log_is_found_and_nothing_is_added_to_it(three: Path, change) -> None:
    change(three / RUN / LOG)
    before = (three / RUN / LOG).read_bytes()
    assert any(problem.startswith("log: line") for problem in verify_release(three, RUN, 3).problems)
    with pytest.raises(HaloForgeError, match="the log of this model was changed"):
        set_alias(three, RUN, 1, "stable")
    assert (three / RUN / LOG).read_bytes() == before
    assert read_alias(three / RUN, "stable") is None


def test_an_alias_moved_by_hand_is_found(three: Path) -> None:
    (three / RUN / "aliases" / "released").write_text("v1\n")
    assert "alias released names v1, the log says v3" in verify_release(three, RUN, 3).problems
    (three / RUN / "aliases" / "sly").write_text("v2\n")
    assert "alias sly names v2, the log says nothing" in verify_release(three, RUN, 3).problems


def test_a_manifest_of_the_last_version_rewritten_to_match_is_found_by_the_log(three: Path) -> None:
    path = three / RUN / "v3" / "manifest.json"
    os.chmod(path, 0o644)
    path.write_text(path.read_text().replace('"forced": false', '"forced":  false'))
    assert verify_release(three, RUN, 3).problems == ("log: the manifest of v3 is not the one that was published",)
