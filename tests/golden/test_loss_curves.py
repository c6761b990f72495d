"""Frozen loss curves: a change that moves them was meant to, and says so in its commit, or is a fault.

`make golden` makes them anew, with the picture of them in the docs; the reason goes into the commit. Equality is asked
for where loss_curves.json was made: same processor, same library versions. Elsewhere, where float32 products are
blocked differently and sums come out in another order, RELATIVE holds: without vector instructions the same versions
differ by 3e-5 at most where moments are rounded to 8 bits, by 4e-6 under L2 to the start, by 6e-7 in the other curves.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from halo_forge.config.schema import ModelSection
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.train import loop
from training_runs import losses, prepared_run, train_now

CURVES = Path(__file__).with_name("loss_curves.json")
REMAKE = os.environ.get("HALO_FORGE_REMAKE_GOLDEN") == "1"
RELATIVE = 1e-4
NUM_STEPS = 50
COMMON: dict[str, Any] = {"num_train_epochs": 9, "max_steps": NUM_STEPS, "eval_steps": 1000, "lora.dropout": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, rslora and dropout": {"lora.use_rslora": True, "lora.dropout": 0.1},
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora"},
    "adapter": {"method": "adapter", "adapter.bottleneck_size": 8, "learning_rate": 5e-3},
    "full": {"method": "full"},
    "full, layers.last_1 and norm": {"method": "full", "trainable": ["layers.last_1", "norm"]},
    "new tokens": {"model.add_tokens": ["river", "lamp"], "model.add_special_tokens": ["<|call|>"]},
    "neftune": {"neftune_alpha": 5.0},
    "label smoothing": {"label_smoothing": 0.5},
    "kl to base": {"kl_to_base": 0.5},
    "l2 to start": {"method": "full", "l2_to_start": 1.0, "learning_rate": 3e-3},
    "adafactor": {"method": "full", "optimizer": "adafactor", "learning_rate": 1e-2},
    "adamw_8bit": {"method": "full", "optimizer": "adamw_8bit"},  # bitsandbytes keeps small adapters in 32 bits
}
NEEDS_BITSANDBYTES = ("qlora", "adamw_8bit")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "bitsandbytes")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_with() -> dict[str, str]:
    """What the last digit of a float32 loss depends on."""
    found = {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor() -> str:
    """Maker, family and model number where the system tells them: they decide which products MKL and oneDNN take."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    return " ".join(told.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping"))


def frozen() -> dict[str, Any]:
    return json.loads(CURVES.read_text())  # type: ignore[no-any-return]


def keep(variant: str, curve: list[float]) -> None:
    """Curves of one file come from one place: those of another are dropped."""
    known = frozen() if CURVES.exists() else {}
    curves = known["curves"] if known.get("made_with") == made_with() else {}
    curves |= {variant: curve}
    ordered = {name: curves[name] for name in VARIANTS if name in curves}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(curve)}" for name, curve in ordered.items())
    CURVES.write_text(f'{{"made_with": {json.dumps(made_with(), indent=2)},\n"curves": {{\n{lines}\n}}}}\n')


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_curve_is_the_frozen_one(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    if variant in NEEDS_BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (the extra `quantised`)")
    options = COMMON | VARIANTS[variant]
    added = {key: options.get(f"model.{key}", []) for key in ("add_tokens", "add_special_tokens")}
    tokenizer = tokenizer_of(ModelSection(name=str(tiny_model_dir), **added))
    monkeypatch.setattr(loop, "STEPS_PER_RELEASE", 1000)  # gives memory back and takes two thirds of the time here
    output = tmp_path / "run"
    train_now(prepared_run(tokenizer, tiny_model_dir, output, **options))
    found = losses(output)
    assert len(found) == NUM_STEPS
    if REMAKE:
        keep(variant, found)
        return
    known = frozen()
    tolerance = 0.0 if made_with() == known["made_with"] else RELATIVE
    assert found == pytest.approx(known["curves"][variant], rel=tolerance, abs=0.0)


def test_every_variant_is_another_training() -> None:
    """A switch that changes nothing freezes the curve of the others: that would be no test of it."""
    curves = frozen()["curves"]
    assert list(curves) == list(VARIANTS)
    for (one, a), (other, b) in combinations(curves.items(), 2):
        difference = max(abs(x - y) / y for x, y in zip(a, b, strict=True))
        assert difference > 10 * RELATIVE, f"{one} and {other} are the same curve"
    for name, curve in curves.items():
        assert sum(curve[-6:]) < 0.95 * sum(curve[:6]), f"{name} learns nothing"
