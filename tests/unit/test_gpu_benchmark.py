"""benchmarks/gpu.py: it runs from end to end (on tiny shapes), refuses to time what is not equal, and fits its time."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_plan_fits_half_an_hour_and_each_part_ten_minutes() -> None:
    answer = subprocess.run([sys.executable, SCRIPT, "--dry-run"], capture_output=True, text=True, check=True)
    minutes = {line.split()[0]: float(re.findall(r"([\d.]+) minutes", line)[0]) for line in answer.stdout.splitlines()}
    total = minutes.pop("all")
    assert total <= 30
    assert total == pytest.approx(sum(minutes.values()), abs=0.3)
    assert max(minutes.values()) <= 10


def test_unequal_gradients_are_not_timed(script: ModuleType) -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad((x * x).sum(), [x])
    ways = {"usual": lambda: (x * x).sum(), "ours": lambda: 1.02 * (x * x).sum()}
    with pytest.raises(SystemExit, match=r"no parity: squares by ours is 0\.02"):
        script.timed_ways(ways, [x], exact, "squares", 1)
    ways["ours"] = lambda: 1.005 * (x * x).sum()
    assert script.timed_ways(ways, [x], exact, "squares", 1)["ours"]["ms"] > 0


def test_a_workload_without_parity_is_not_timed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(arguments: list[str], tiny: bool) -> dict[str, Any]:
        asked.append(arguments[-1])
        return {"passed": False}

    monkeypatch.setattr(script, "in_a_process", answer)
    known: dict[str, Any] = {}
    script.run_training("qwen-0.5b-full", known, lambda: None, True)
    assert asked == ["parity"]
    assert "runs" not in known


def test_what_ran_is_kept_and_a_missing_trl_is_told(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(arguments: list[str], tiny: bool) -> dict[str, Any]:
        asked.append(arguments[-1])
        return {"passed": True, "tokens_per_s": 10.0, "tflops": 1.0, "peak_gb": 1.0, "losses": [2.0]}

    monkeypatch.setattr(script, "in_a_process", answer)
    monkeypatch.setattr(script, "installed", lambda name: None)
    known: dict[str, Any] = {}
    for _ in range(2):
        script.run_training("qwen-0.5b-full", known, lambda: None, True)
    assert asked == ["parity", "ours"]
    assert "trl is not installed" in known["summary"]["trl_default"]["error"]


def test_the_operations_of_a_shape_are_those_of_its_weights(script: ModuleType) -> None:
    """Llama-3 8B: 6.98 billion weights in the layers' matrices; trained whole, each costs six operations a token."""
    assert pytest.approx(6.98e9, rel=1e-3) == script.LLAMA.body
    assert pytest.approx(357.8e6, rel=1e-3) == script.QWEN.body


@pytest.mark.soak
def test_the_whole_script_runs_on_tiny_shapes(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    command = [sys.executable, SCRIPT, "--tiny", "--results", tmp_path / "gpu.json"]
    subprocess.run(command, capture_output=True, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "head", "attention", "qwen-0.5b-full", "llama-8b-lora"} <= set(found)
    for name, peer in (("qwen-0.5b-full", "trl_default"), ("llama-8b-lora", "trl_tuned")):
        assert found[name]["parity"]["passed"]
        summary = found[name]["summary"]
        assert summary["ours"]["tokens_per_s"] > 0
        assert summary[peer]["ours_over_it"] > 0
        assert summary[peer]["largest_loss_difference"] < 1e-3
        assert "mfu" in summary["ours"]


@pytest.mark.parametrize("name", ["qwen-0.5b-full", "llama-8b-lora"])
def test_the_gate_sees_a_gradient_of_keys_that_is_three_percent_off(
    name: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halo_forge.models.fast import attention

    assert script.parity(script.TINY_TRAINING[name])["passed"]
    real = attention._attend_backward

    def wrong(*arguments: Any) -> tuple[torch.Tensor, ...]:
        d_query, d_key, d_value = real(*arguments)
        return d_query, d_key * 1.03, d_value

    monkeypatch.setattr(attention, "_attend_backward", wrong)
    found = script.parity(script.TINY_TRAINING[name])
    assert not found["passed"]
    assert "k_proj" in found["worst"]
