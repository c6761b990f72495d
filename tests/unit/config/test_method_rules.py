"""Methods, their options and new tokens: what contradicts itself is refused, what is idle is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from halo_forge.config import load_config
from halo_forge.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.trainable=[lm_head]"], "training.method is lora"),
        (["training.method=full", "training.trainable=[]"], "nothing would be trained"),
        (["training.method=full", "training.trainable=['re:(']"], "not a regular expression"),
        (["training.method=full", "training.trainable=[layers.5-2]"], "runs backwards"),
        (["training.method=full", "training.trainable=[' ']"], "empty text"),
        (["lora.layers_to_transform=[]"], "no layer would get an adapter"),
        (["lora.layers_to_transform=[-1]"], "lora.layers_to_transform must be a list of whole numbers"),
        (["lora.rank_pattern={'(': 3}"], "neither a name nor a regular expression"),
        (["lora.rank_pattern={q_proj: 0}"], "lora.rank_pattern.q_proj must be a whole number of at least 1"),
        (["lora.alpha_pattern={q_proj: x}"], "lora.alpha_pattern.q_proj must be a number above 0"),
        (["adapter.reduction_factor=0.5"], "adapter.reduction_factor must be a number of at least 1"),
        (["adapter.activation=swiglu"], "adapter.activation must be one of relu, gelu, silu, tanh"),
        (["training.method=adapter", "model.add_tokens=[<a>]"], "bottleneck adapters train none"),
        (["model.add_tokens=[<a>]", "model.add_special_tokens=[<a>]"], "given twice"),
        (["model.add_special_tokens=['<a> ']"], "white space at an end"),
        (["training.method=adalora"], "training.method must be one of lora, dora, qlora, adapter, full"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides, environment={})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (["training.method=adapter", "lora.r=8"], "lora.r (--set): not used, because training.method is adapter"),
        (["adapter.bottleneck_size=8"], "adapter.bottleneck_size (--set): not used, because training.method is lora"),
        (["training.method=full", "adapter.activation=gelu", "lora.use_rslora=true"], "not used"),
    ],
)
def test_options_of_another_method_are_told(overrides: list[str], idle: str) -> None:
    assert any(idle in notice for notice in load_config(overrides=overrides, environment={}).notices)


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_options_of_lora_hold_for_its_kinds(method: str) -> None:
    resolved = load_config(overrides=[f"training.method={method}", "lora.r=8"], environment={})
    assert resolved.config.lora.r == 8
    assert resolved.notices == ()


@pytest.mark.parametrize("order", [1, -1])
def test_two_kinds_of_lora_at_once_are_refused(tmp_path: Path, order: int) -> None:
    lines = ["adapter: lora", "use_dora: true", "load_in_4bit: true"][::order]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml", environment={})
    assert "both set training.method" in str(caught.value)
