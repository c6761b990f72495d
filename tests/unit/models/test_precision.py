"""Device, precision and platform: decided by pure functions from what was measured or detected."""

from __future__ import annotations

import time

import pytest
import torch

from halo_forge.config.schema import Config
from halo_forge.errors import UsageError
from halo_forge.models import precision
from halo_forge.models.precision import (
    Platform,
    apply_platform_settings,
    choose_device,
    choose_precision,
    decide_precision,
    detect_platform,
    required_settings,
)


@pytest.mark.parametrize(
    ("bf16", "speedup", "name", "words"),
    [
        ("auto", 2.1, "bfloat16", "2.1x"),
        ("auto", precision.MIN_BF16_SPEEDUP, "bfloat16", "1.3x"),
        ("auto", 1.2, "float32", "1.2x"),
        ("auto", 0.1, "float32", "0.1x"),  # emulated: no AVX512-bf16 or AMX
        (True, 2.1, "bfloat16", "as configured"),
        (True, 0.2, "bfloat16", "auto would take float32"),
        (False, 0.2, "float32", "as configured"),
        (False, 2.1, "float32", "auto would take bfloat16"),
    ],
)
def test_the_decision_follows_the_configuration_then_the_measurement(
    bf16: bool | str, speedup: float, name: str, words: str
) -> None:
    decision = decide_precision(bf16, 100.0, 100.0 * speedup)
    assert decision.name == name
    assert words in decision.reason
    assert (decision.float32_gflops, decision.bfloat16_gflops) == (100.0, 100.0 * speedup)
    assert decision.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def test_measuring_is_short_and_leaves_no_trace() -> None:
    choose_precision("auto", torch.device("cpu"))  # the first call builds kernels
    state = torch.get_rng_state()
    start = time.process_time()
    decision = choose_precision("auto", torch.device("cpu"))
    assert time.process_time() - start < 2 * max(1, torch.get_num_threads())
    assert torch.equal(torch.get_rng_state(), state)
    assert decision.float32_gflops is not None
    assert decision.bfloat16_gflops is not None
    assert decision.float32_gflops > 0.1
    assert decision.name == ("bfloat16" if "bfloat16 runs at" in decision.reason and faster(decision) else "float32")


def faster(decision: precision.Precision) -> bool:
    assert decision.float32_gflops is not None
    assert decision.bfloat16_gflops is not None
    return decision.bfloat16_gflops / decision.float32_gflops >= precision.MIN_BF16_SPEEDUP


def test_a_gpu_without_bfloat16_refuses_to_pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda", 0)
    assert choose_precision("auto", gpu).name == "float32"
    with pytest.raises(UsageError, match="Tesla T4 has no bfloat16"):
        choose_precision(True, gpu)


def test_every_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")


STRIX_HALO = Platform(hip="7.0", architecture="gfx1151", device_name="AMD Radeon Graphics")


@pytest.mark.parametrize(
    ("platform", "is_strix_halo"),
    [
        (STRIX_HALO, True),
        (Platform(hip="7.0", architecture="gfx1151:sramecc-:xnack-"), True),
        (Platform(hip="6.4", architecture="gfx1100", hsa_override="11.5.1"), True),
        (Platform(hip="7.0", device_name="Radeon 8060S Graphics"), True),
        (Platform(hip="7.0", architecture="gfx942", device_name="AMD Instinct MI300X"), False),
        (Platform(hip="7.0", architecture="gfx1100", hsa_override="11.0.0"), False),
        (Platform(device_name="Radeon 8060S Graphics", hsa_override="11.5.1"), False),  # torch without ROCm: the CPU
        (Platform(), False),
    ],
)
def test_strix_halo_is_recognised(platform: Platform, is_strix_halo: bool) -> None:
    assert platform.is_strix_halo is is_strix_halo
    assert bool(required_settings(platform)) is is_strix_halo


def test_strix_halo_gets_what_it_needs_and_is_told() -> None:
    training = {"dataloader_num_workers": 4, "dataloader_pin_memory": True, "seed": 7}
    config = Config.model_validate({"training": training, "model": {"name": "x"}})
    fixed, told = apply_platform_settings(config, STRIX_HALO)
    assert (fixed.training.dataloader_num_workers, fixed.training.dataloader_pin_memory) == (0, False)
    assert len(told) == 2
    assert "training.dataloader_num_workers is 0 on Strix Halo" in told[0]
    assert "training.dataloader_pin_memory is false on Strix Halo" in told[1]
    assert (fixed.training.seed, fixed.model.name) == (7, "x")
    assert config.training.dataloader_num_workers == 4  # the one given is not touched
    assert apply_platform_settings(fixed, STRIX_HALO) == (fixed, [])
    assert apply_platform_settings(config, Platform()) == (config, [])


def test_detection_reads_the_installed_torch() -> None:
    detected = detect_platform()
    assert (detected.hip is None) == (torch.version.hip is None)
