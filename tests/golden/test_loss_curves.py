"""Frozen loss curves: a change that moves them was meant to, and says so in its commit, or is a fault.

To freeze one anew, delete it from loss_curves.json, run the test, take the curve it prints, and give the reason in the
commit. The tolerance is for other processors, which block float32 products differently.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from training_runs import losses, prepared_run, train_now

CURVES = Path(__file__).with_name("loss_curves.json")
RELATIVE = 1e-4


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_curve_is_the_frozen_one(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    output = tmp_path / "run"
    options = {"method": method, "num_train_epochs": 8, "lora.dropout": 0.0}
    train_now(prepared_run(tiny_tokenizer, tiny_model_dir, output, **options))
    found = losses(output)
    frozen = json.loads(CURVES.read_text())
    if frozen.get(method) is None:
        pytest.fail(f"no frozen curve for {method}; the one found: {json.dumps(found)}")
    assert len(found) == len(frozen[method]) == 48
    assert found == pytest.approx(frozen[method], rel=RELATIVE)
