"""LoRA options that would do nothing are refused: peft passes most of them over in silence."""

from __future__ import annotations

from typing import Any

import pytest

from halo_forge.errors import UsageError
from halo_forge.models.adapters import add_lora, trainable_state
from halo_forge.models.lora_options import LoraOptions


def lora(model, targets: Any = "all-linear", **options: Any):
    return add_lora(model, r=4, alpha=8, dropout=0.0, target_modules=targets, seed=1, options=LoraOptions(**options))


@pytest.mark.parametrize(
    ("options", "words", "where", "fix"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "q_prj", "rank_pattern", "q_proj"),
        ({"rank_pattern": {"proj": 2}}, "proj", "rank_pattern", None),
        ({"alpha_pattern": {"layers.7.q_proj": 2}}, "layers.7.q_proj", "alpha_pattern", None),
        ({"rank_pattern": {"q_proj": 2}, "exclude_modules": ["q_proj"]}, "q_proj", "rank_pattern", None),
        ({"modules_to_save": ["lm_hed"]}, "lm_hed", "modules_to_save", "lm_head"),
        ({"exclude_modules": ["lm_head"]}, "lm_head", "exclude_modules", None),
        ({"layers_to_transform": [0, 2]}, "no layer 2", "layers_to_transform", None),
        ({"exclude_modules": ["self_attn.q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
         "no layer is left", "exclude_modules", None),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_refused(tiny_llama, options: dict[str, Any], words: str, where: str, fix) -> None:
    with pytest.raises(UsageError) as caught:
        lora(tiny_llama(seed=0), **options)
    assert words in caught.value.what
    assert caught.value.where == f"lora.{where}"
    assert fix is None or fix in str(caught.value.fix)


def test_ranks_and_layers_are_as_asked(tiny_llama) -> None:
    model = lora(
        tiny_llama(seed=0), targets=["q_proj", "mlp.down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 9}, layers_to_transform=[1],
    )  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in trainable_state(model).items() if "lora_A" in name}
    place = "base_model.model.model.layers.1"
    assert shapes == {
        f"{place}.self_attn.q_proj.lora_A.default.weight": (9, 64),
        f"{place}.mlp.down_proj.lora_A.default.weight": (4, 160),
    }


def test_a_name_is_never_the_end_of_another(tiny_llama) -> None:
    """peft alone would train every input_layernorm for `norm`."""
    state = trainable_state(lora(tiny_llama(seed=0), modules_to_save=["norm"]))
    assert [name for name in state if "lora" not in name] == [
        "base_model.model.model.norm.modules_to_save.default.weight"
    ]


def test_new_rows_of_whole_embeddings_are_trained_with_them(tiny_llama) -> None:
    model = lora(tiny_llama(seed=0), modules_to_save=["embed_tokens"], token_ids=[511])
    state = trainable_state(model)
    assert any("embed_tokens.modules_to_save" in name for name in state)
    assert not any("trainable_tokens" in name for name in state)
