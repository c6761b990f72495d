"""Where to compute and in which type: measured, not assumed. And what a platform demands, applied and told."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from halo_forge.config.schema import Config
from halo_forge.errors import UsageError

# bfloat16 training also casts; on a machine whose bf16 GEMM is 2.1x the fp32 one, a whole layer gains 1.7x (measured).
# Below this ratio the casts eat the gain and the lost digits buy nothing.
MIN_BF16_SPEEDUP = 1.3
# One transformer projection: [tokens, width] x [width, width].
PROBE_TOKENS, PROBE_WIDTH = 256, 1024
PROBE_BUDGET_S = 0.2
STRIX_HALO_ARCH = "gfx1151"
STRIX_HALO_HSA_VERSION = "11.5.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The compute type, why, and the measured matrix-multiply rates (None = not measured)."""

    name: Literal["float32", "bfloat16"]
    reason: str
    float32_gflops: float | None
    bfloat16_gflops: float | None

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32


def choose_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK under a launcher) where torch sees one, NVIDIA or ROCm; else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def choose_precision(bf16: bool | Literal["auto"], device: torch.device) -> Precision:
    """What training.bf16 means on this device. Takes at most about PROBE_BUDGET_S; the random state is untouched.

    On a shared CPU the measurement varies: a run that is to be resumed bit for bit keeps the answer it started with.
    Raises UsageError for bf16: true on a GPU that has none.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if bf16 is True:
            raise UsageError(
                f"{torch.cuda.get_device_name(device)} has no bfloat16", where="training.bf16",
                expected="false or auto on this GPU", fix="--set training.bf16=auto",
            )  # fmt: skip
        return Precision(
            name="float32", reason="this GPU has no bfloat16", float32_gflops=None, bfloat16_gflops=None
        )  # fmt: skip
    float32_gflops, bfloat16_gflops = measure_gemm(device)
    return decide_precision(bf16, float32_gflops, bfloat16_gflops)


def decide_precision(bf16: bool | Literal["auto"], float32_gflops: float, bfloat16_gflops: float) -> Precision:
    """The decision alone, from the configuration and two measured rates."""
    speedup = bfloat16_gflops / float32_gflops
    measured = f"bfloat16 runs at {speedup:.1f}x the speed of float32 here"
    faster: Literal["float32", "bfloat16"] = "bfloat16" if speedup >= MIN_BF16_SPEEDUP else "float32"
    if bf16 == "auto":
        name, reason = faster, measured
    else:
        name = "bfloat16" if bf16 else "float32"
        reason = "as configured" if name == faster else f"as configured, although {measured}: auto would take {faster}"
    return Precision(name=name, reason=reason, float32_gflops=float32_gflops, bfloat16_gflops=bfloat16_gflops)


def measure_gemm(device: torch.device) -> tuple[float, float]:
    """Best rates, in GFLOP/s, of a projection in float32 and bfloat16. The two take turns, so that another process on
    the machine slows both."""
    dtypes = (torch.float32, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    num_tokens = PROBE_TOKENS if device.type == "cpu" else 16 * PROBE_TOKENS
    inputs = torch.rand(num_tokens, PROBE_WIDTH, generator=generator)
    weight = torch.rand(PROBE_WIDTH, PROBE_WIDTH, generator=generator)
    operands = [(inputs.to(device, dtype), weight.to(device, dtype)) for dtype in dtypes]
    for a, b in operands:  # the first call of a type builds its kernels
        a[:16] @ b
    best_s = [float("inf")] * 2
    start = time.perf_counter()
    while time.perf_counter() - start < PROBE_BUDGET_S:
        for index, (a, b) in enumerate(operands):
            best_s[index] = min(best_s[index], _time_product(a, b, device))
    flops = 2 * num_tokens * PROBE_WIDTH * PROBE_WIDTH
    return flops / best_s[0] / 1e9, flops / best_s[1] / 1e9


def _time_product(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    a @ b
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What was detected of the GPU stack. `hip` is the ROCm version torch was built for."""

    hip: str | None = None
    architecture: str | None = None  # gcnArchName of the first GPU, such as gfx1151:sramecc-:xnack-
    device_name: str | None = None
    hsa_override: str | None = None  # HSA_OVERRIDE_GFX_VERSION

    @property
    def is_strix_halo(self) -> bool:
        if self.hip is None:
            return False
        name = (self.device_name or "").lower()
        return (
            (self.architecture or "").startswith(STRIX_HALO_ARCH)
            or self.hsa_override == STRIX_HALO_HSA_VERSION
            or any(mark in name for mark in ("strix halo", "8060s", "8050s", "8040s"))
        )


def detect_platform() -> Platform:
    hip = getattr(torch.version, "hip", None)
    if hip is None:
        return Platform()
    architecture = device_name = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        architecture, device_name = getattr(properties, "gcnArchName", None), properties.name
    return Platform(
        hip=hip,
        architecture=architecture,
        device_name=device_name,
        hsa_override=os.environ.get("HSA_OVERRIDE_GFX_VERSION"),
    )


def required_settings(platform: Platform) -> dict[str, Any]:
    """Configuration values that a platform demands: dotted key -> value.

    Strix Halo shares its memory between CPU and GPU: page-locked buffers and loader workers hang it (seed 000).
    """
    if not platform.is_strix_halo:
        return {}
    return {"training.dataloader_num_workers": 0, "training.dataloader_pin_memory": False}


def apply_platform_settings(config: Config, platform: Platform | None = None) -> tuple[Config, list[str]]:
    """`config` with what the platform demands, and one sentence for every value that was changed."""
    changes, told = {}, []
    for key, value in required_settings(platform or detect_platform()).items():
        name = key.removeprefix("training.")
        if getattr(config.training, name) != value:
            changes[name] = value
            told.append(f"{key} is {str(value).lower()} on Strix Halo, whatever the configuration says")
    if not changes:
        return config, []
    return config.model_copy(update={"training": config.training.model_copy(update=changes)}), told
