"""The machine: Python, torch, cores, memory, precision, disk, platform. `judge_*` are pure, `*_findings` look."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from halo_forge.doctor.finding import Finding
from halo_forge.models.machine import memory_bytes, read_words

# The embedded model trains within 2 GB of memory and 2 GB of disk; a 7B model wants about ten times that.
MIN_MEMORY_BYTES, GOOD_MEMORY_BYTES = 2 * 2**30, 4 * 2**30
MIN_DISK_BYTES, GOOD_DISK_BYTES = 1 * 2**30, 10 * 2**30
TORCH_CUDA = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
TORCH_ROCM = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/rocm7.0"


def python_findings() -> Iterable[Finding]:
    yield judge_python(sys.version_info[:3])


def judge_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(
            name="python", status="problem", detail=f"Python {text}; 3.11 or newer is needed",
            fix="python3.11 -m venv .venv",
        )  # fmt: skip
    return Finding(name="python", status="ok", detail=f"Python {text} ({platform.machine()})")


def torch_findings() -> Iterable[Finding]:
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    if not torch.version.hip and not torch.version.cuda:
        build = "CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield judge_torch(torch.__version__, build, visible_gpus(), names)


def visible_gpus(root: Path = Path("/")) -> list[str]:
    """GPUs as the kernel shows them, whatever torch thinks: a subset of NVIDIA, AMD."""
    vendors = []
    if (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists():
        vendors.append("NVIDIA")
    if (root / "dev/kfd").exists():
        vendors.append("AMD")
    return vendors


def judge_torch(version: str, build: str, visible: list[str], usable: list[str]) -> Finding:
    """build: `CPU`, `CUDA 13.0` or `ROCm 7.0`; visible: vendors of GPUs in the machine; usable: GPUs torch can use"""
    detail = f"torch {version}, {build} build"
    if usable:
        return Finding(name="torch", status="ok", detail=f"{detail}, {len(usable)} GPU: {', '.join(usable)}")
    if not visible:
        note = "" if build == "CPU" else "; no GPU in sight, training runs on the CPU"
        return Finding(name="torch", status="ok", detail=detail + note)
    vendor = visible[0]
    wanted = "CUDA" if vendor == "NVIDIA" else "ROCm"
    if not build.startswith(wanted):
        return Finding(
            name="torch", status="problem", detail=f"{detail}, but the GPU here is {vendor}'s: it will stand idle",
            fix=TORCH_CUDA if vendor == "NVIDIA" else TORCH_ROCM,
        )  # fmt: skip
    return Finding(
        name="torch", status="problem", detail=f"{detail}, and it cannot use the {vendor} GPU that is here",
        fix="nvidia-smi (is the driver older than this build? is CUDA_VISIBLE_DEVICES empty?)"
        if vendor == "NVIDIA" else "rocminfo (are you in the groups `render` and `video`?)",
    )  # fmt: skip


def cpu_findings() -> Iterable[Finding]:
    import torch

    yield judge_cpu(usable_cores(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"))


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores this process may use: its affinity, cut by the container's quota (cgroup v2 or v1)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = read_words(cgroup / "cpu.max")
    if not quota:
        quota = read_words(cgroup / "cpu/cpu.cfs_quota_us") + read_words(cgroup / "cpu/cpu.cfs_period_us")
    if len(quota) == 2 and quota[0] not in ("max", "-1"):
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def judge_cpu(num_cores: float, num_threads: int, omp_num_threads: str | None) -> Finding:
    detail = f"{num_cores:g} cores, torch computes with {num_threads} threads"
    if num_cores >= 2 and num_threads == 1:
        by = f" (OMP_NUM_THREADS={omp_num_threads})" if omp_num_threads else ""
        return Finding(
            name="cpu", status="warning", detail=f"{detail}{by}: training on the CPU leaves the others idle",
            fix="unset OMP_NUM_THREADS" if omp_num_threads else f"export OMP_NUM_THREADS={int(num_cores)}",
        )  # fmt: skip
    if num_threads > num_cores + 0.5:
        return Finding(
            name="cpu", status="warning", detail=f"{detail}: they will wait for each other",
            fix=f"export OMP_NUM_THREADS={max(1, int(num_cores))}",
        )  # fmt: skip
    return Finding(name="cpu", status="ok", detail=detail)


def memory_findings() -> Iterable[Finding]:
    yield judge_memory(*memory_bytes())


def judge_memory(total: int, available: int) -> Finding:
    detail = f"{available / 2**30:.1f} of {total / 2**30:.1f} GB free"
    if available < MIN_MEMORY_BYTES:
        return Finding(
            name="memory", status="problem", detail=f"{detail}; the embedded 135M model needs about 2 GB",
            fix="close other programs, or raise the container's memory limit",
        )  # fmt: skip
    if available < GOOD_MEMORY_BYTES:
        return Finding(
            name="memory", status="warning", detail=f"{detail}: enough for the embedded model, not for larger ones",
            fix="--set training.gradient_checkpointing=true and a smaller training.micro_batch_tokens",
        )  # fmt: skip
    return Finding(name="memory", status="ok", detail=detail)


def gpu_memory_findings() -> Iterable[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        detail = f"{torch.cuda.get_device_name(index)}: {free / 2**30:.1f} of {total / 2**30:.1f} GB free"
        busy = free < total / 2
        yield Finding(
            name="gpu memory",
            status="warning" if busy else "ok",
            detail=detail + (": another process holds the rest" if busy else ""),
            fix="nvidia-smi (or rocm-smi) names the process" if busy else None,
        )


def bf16_findings() -> Iterable[Finding]:
    from halo_forge.models.precision import choose_device, choose_precision

    device = choose_device()
    precision = choose_precision("auto", device)
    rates = (
        f" (float32 {precision.float32_gflops:.0f}, bfloat16 {precision.bfloat16_gflops:.0f} GFLOP/s)"
        if precision.float32_gflops and precision.bfloat16_gflops
        else ""
    )
    yield Finding(
        name="bf16",
        status="ok",
        detail=f"{precision.reason}{rates}: bf16: auto computes in {precision.name} on {device}",
    )


def disks_findings() -> Iterable[Finding]:
    from huggingface_hub import constants

    places = {"current directory": Path.cwd(), "Hugging Face cache": Path(constants.HF_HUB_CACHE)}
    for name, path in places.items():
        yield judge_disk(name, existing_parent(path), shutil.disk_usage(existing_parent(path)).free)


def existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def judge_disk(name: str, path: Path, free: int) -> Finding:
    detail = f"{free / 2**30:.1f} GB free for the {name} ({path})"
    if free >= GOOD_DISK_BYTES:
        return Finding(name="disk", status="ok", detail=detail)
    fix = "export HF_HOME=/a/larger/disk, or `hf cache delete`" if "cache" in name else "--output on a larger disk"
    return Finding(name="disk", status="problem" if free < MIN_DISK_BYTES else "warning", detail=detail, fix=fix)


def platform_findings() -> Iterable[Finding]:
    from halo_forge.models.precision import detect_platform, required_settings

    detected = detect_platform()
    if detected.hip is None:
        return
    settings = required_settings(detected)
    if settings:
        values = ", ".join(f"{key}: {str(value).lower()}" for key, value in settings.items())
        yield Finding(name="platform", status="ok", detail=f"Strix Halo: every run here is set to {values}")
    else:
        yield Finding(name="platform", status="ok", detail=f"ROCm on {detected.architecture or 'no visible GPU'}")
