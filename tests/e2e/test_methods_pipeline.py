"""Each method through the whole pipeline: trained, compared with its base, published, loaded by the card's own code."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from halo_forge.config import load_config
from halo_forge.errors import UsageError
from halo_forge.models.quiet import quiet_transformers
from halo_forge.pipeline import RunResult, plan, run
from training_runs import settings, write_rows

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (the extra `quantised`)"
)
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({}, "LoRA adapter for"),
    "dora": ({"method": "dora"}, "DoRA adapter for"),
    "qlora": ({"method": "qlora"}, "QLoRA adapter for"),
    "adapter": ({"method": "adapter", "adapter.bottleneck_size": 8}, "Bottleneck adapters for"),
    "full": ({"method": "full", "trainable": ["layers.last_1"]}, "trained: layers.last_1"),
    "new tokens": ({"model.add_tokens": ["river", "lamp"]}, "LoRA adapter for"),
    "new tokens, full": ({"method": "full", "model.add_tokens": ["river", "lamp"]}, "Full fine-tune of"),
}


def finished(root: Path, model: Path, name: str) -> RunResult:
    root.mkdir(parents=True, exist_ok=True)
    rows = write_rows(root / "rows.jsonl", 60)
    options = {
        "num_train_epochs": 1, "learning_rate": 5e-3, "data.holdout_split": 0.2, "evaluation.max_new_tokens": 8,
        "evaluation.max_prompts": 3, "evaluation.bootstrap_samples": 100, "gate.min_items": 3, "publish.force": True,
        "publish.name": "tiny", "publish.registry": str(root / "registry"), **METHODS[name][0],
    }  # fmt: skip
    return run(load_config(flags=settings(model, rows, root / "out", **options)))


def base_perplexity(result: RunResult) -> tuple[float, float]:
    """(of the base model, of the tuned one)"""
    assert result.report is not None
    (row,) = [row for row in result.report.comparisons if row.metric == "perplexity"]
    assert row.base.value is not None
    assert row.tuned.value is not None
    return row.base.value, row.tuned.value


@pytest.fixture(scope="module")
def wider_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_llama, tiny_tokenizer) -> Path:
    """Every width a multiple of 64: plain bitsandbytes on some CPUs needs that (we do not, see models/quantised.py)."""
    directory = tmp_path_factory.mktemp("wider")
    config = tiny_llama(seed=0).config
    config.intermediate_size = 192
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
        tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, wider_model_dir: Path
) -> dict[str, RunResult]:
    root = tmp_path_factory.mktemp("methods")
    names = [name for name in METHODS if name != "qlora" or importlib.util.find_spec("bitsandbytes")]
    models = {"qlora": wider_model_dir}
    return {name: finished(root / name.replace(" ", "-"), models.get(name, tiny_model_dir), name) for name in names}


def test_every_method_ends_in_a_release_and_learns(results: dict[str, RunResult]) -> None:
    for name, result in results.items():
        base, tuned = base_perplexity(result)
        assert tuned < base, name
        assert result.release is not None, name
        card = (Path(result.release.path) / "README.md").read_text()
        assert METHODS[name][1] in card
        assert (result.directory / "report.html").stat().st_size > 10_000


def test_all_methods_are_compared_with_the_same_base(results: dict[str, RunResult]) -> None:
    """The base is shown with the adapter off, or loaded by itself: it must be one and the same model."""
    expected, _ = base_perplexity(results["lora"])
    for name in ("dora", "adapter", "full"):
        assert base_perplexity(results[name])[0] == pytest.approx(expected, rel=1e-6), name
    grown, _ = base_perplexity(results["new tokens"])
    assert base_perplexity(results["new tokens, full"])[0] == pytest.approx(grown, rel=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_bitsandbytes if n == "qlora" else ()) for n in METHODS])
def test_the_cards_code_loads_the_release(results: dict[str, RunResult], name: str) -> None:
    release = results[name].release
    assert release is not None
    card = (Path(release.path) / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    child = subprocess.run(
        [sys.executable, "-c", code[1].replace("max_new_tokens=256", "max_new_tokens=4") + "\nprint('LOADED')"],
        cwd=release.path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.rstrip().endswith("LOADED")


def test_a_missing_package_is_told_before_anything_is_read(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    config = load_config(flags=settings(tiny_model_dir, rows, tmp_path / "out", method="qlora"))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name)
    )
    for act in (run, plan):
        with pytest.raises(UsageError, match="bitsandbytes") as caught:
            act(config)
        assert "quantised" in str(caught.value.fix)
    assert not (tmp_path / "out").exists()


def test_prepared_rows_belong_to_the_extended_tokenizer(
    results: dict[str, RunResult], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    plain, grown = results["lora"].prepared, results["new tokens"].prepared
    assert plain is not None
    assert grown is not None
    assert plain.tokenizer_sha256 != grown.tokenizer_sha256
    assert grown.splits["train"].tokens < plain.splits["train"].tokens
    saved = (results["new tokens"].directory / "final_model" / "tokenizer.json").read_text()
    assert '"river"' in saved
    assert "river" not in tiny_tokenizer.get_vocab()
