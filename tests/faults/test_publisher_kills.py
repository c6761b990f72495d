"""Sixteen processes publish into one registry and are killed at random: none lost, none torn, no number twice."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from halo_forge.publish import collect, verify_release
from halo_forge.publish.history import complete_versions, read_aliases, read_log
from halo_forge.runs import sha256_file

BUILDER = Path(__file__).parents[1] / "unit" / "report" / "run_builder.py"

# One process imports everything, then forks publishers and kills them. A publisher takes runs at random and reports
# each version with one appended line; the parent stops when every run was reported, and no publisher lives.
DRIVER = textwrap.dedent("""
    import json, os, random, signal, sys, time
    from pathlib import Path
    from halo_forge.artifacts import EvalReport, GateDecision, PreparedData, TrainedModel
    from halo_forge.config.schema import Config
    from halo_forge.publish import collect, publish, roll_back, verify_release
    from halo_forge.publish.history import complete_versions
    from halo_forge.runs import RunDirectory, read_artifact

    num_publishers, num_kills, seed, reported, *paths = sys.argv[1:]
    num_publishers, num_kills = int(num_publishers), int(num_kills)
    runs = []
    for path in paths:
        run = RunDirectory(Path(path))
        config = Config.model_validate(json.loads(run.file("run.json").read_text())["config"])
        runs.append((config, run, read_artifact(run.file("trained.json"), TrainedModel),
                     read_artifact(run.file("eval/report.json"), EvalReport),
                     read_artifact(run.file("gate.json"), GateDecision),
                     read_artifact(run.file("data/manifest.json"), PreparedData)))
    registry = Path(runs[0][0].publish.registry)

    def done():
        return {json.loads(line)["run"] for line in open(reported)} if os.path.exists(reported) else set()

    def publisher(number):
        random.seed(number)
        log = os.open(reported, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        while True:
            left = [index for index in range(len(runs)) if index not in done()]
            if not left:
                os._exit(0)
            index = random.choice(left)
            release = publish(*runs[index])
            line = {"run": index, "version": release.version, "manifest": release.manifest_sha256}
            os.write(log, (json.dumps(line) + chr(10)).encode())

    def reader():
        while True:
            for version in complete_versions(registry / "run")[-3:]:
                result = verify_release(registry, "run", version)
                if not result.ok:
                    os.write(2, repr(result).encode())
                    os._exit(9)

    def collector():
        while True:
            collect(registry, remove=True, grace_s=0.2)
            time.sleep(0.05)

    def start(task, *arguments):
        pid = os.fork()
        if pid:
            return pid
        try:
            task(*arguments)
        except BaseException as error:
            os.write(2, repr(error).encode())
        os._exit(8)

    def stop(why):
        for pid in (*living, *others):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        sys.exit(why)

    random.seed(int(seed))
    others = [start(reader), start(collector)]
    started, killed = num_publishers, 0
    living = {start(publisher, number) for number in range(num_publishers)}
    while living:
        time.sleep(random.uniform(0.001, 0.03))
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in others or (os.WIFEXITED(status) and os.WEXITSTATUS(status)):
                living.discard(pid)
                stop(f"process {pid} ended with {status}")
            living.discard(pid)
        if killed < num_kills and living:
            victim = random.choice(sorted(living))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            living.discard(victim)
            killed, started = killed + 1, started + 1
            living.add(start(publisher, started))
    print(json.dumps({"killed": killed}))
    stop(0)
""")


def run_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("halo_forge_test_run_builder", BUILDER)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "build_run"):
        spec.loader.exec_module(module)
    return module


def publish_under_fire(tmp_path: Path, num_runs: int, num_publishers: int, num_kills: int) -> dict[str, Any]:
    registry, reported = tmp_path / "registry", tmp_path / "reported.jsonl"
    built = [
        run_builder().build_run(tmp_path / f"r{seed}" / "run", registry=registry, seed=seed) for seed in range(num_runs)
    ]
    paths = [str(one.run.path) for one in built]
    command = [sys.executable, "-c", DRIVER, str(num_publishers), str(num_kills), "1", str(reported), *paths]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["killed"] == num_kills
    return {"registry": registry, "reports": [json.loads(line) for line in reported.read_text().splitlines()]}


def check(registry: Path, reports: list[dict[str, Any]], num_runs: int) -> None:
    home = registry / "run"
    versions = complete_versions(home)
    assert versions == list(range(1, num_runs + 1)), "one version for each content, no number lost or twice"
    version_of = {report["run"]: report["version"] for report in reports}
    assert sorted(version_of.values()) == versions
    for report in reports:
        assert report["version"] == version_of[report["run"]]
        assert report["manifest"] == sha256_file(home / f"v{report['version']}" / "manifest.json")
    for version in versions[:: max(1, num_runs // 40)]:
        result = verify_release(registry, "run", version)
        assert result.ok, result
    log = read_log(home)
    assert log.problems == ()
    told = [line.version for line in log.lines if line.action == "publish"]
    assert sorted(told) == versions
    assert read_aliases(home) == {"candidate": num_runs, "released": num_runs}
    collect(registry, remove=True, grace_s=0)
    assert not list(home.glob(".staging-*"))
    assert collect(registry, remove=False, grace_s=0).blobs == ()
    assert verify_release(registry, "run").ok


def test_sixteen_publishers_and_random_kills(tmp_path: Path) -> None:
    found = publish_under_fire(tmp_path, num_runs=24, num_publishers=16, num_kills=40)
    check(found["registry"], found["reports"], 24)


@pytest.mark.soak
@pytest.mark.timeout(1600)
def test_sixteen_publishers_and_random_kills_for_long(tmp_path: Path) -> None:
    found = publish_under_fire(tmp_path, num_runs=400, num_publishers=16, num_kills=1000)
    check(found["registry"], found["reports"], 400)
