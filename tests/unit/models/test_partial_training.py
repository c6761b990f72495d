"""training.trainable: which weights a pattern names, and that the gradient of the chosen ones is the full one's."""

from __future__ import annotations

import pytest
import torch

from halo_forge.errors import UsageError
from halo_forge.models.adapters import trainable_state
from halo_forge.models.partial import train_only

IDS = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(0))
EMBEDDING = "model.embed_tokens.weight"


def chosen(model, *patterns: str, notes: list[str] | None = None) -> set[str]:
    def notify(event: str, fields: dict[str, str]) -> None:
        if notes is not None:
            notes.append(fields["text"])

    train_only(model, patterns, notify)
    return set(trainable_state(model))


def layer(number: int, names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(f"model.layers.{number}.")}


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("layers.3", {3}), ("layers.1-2", {1, 2}), ("layers.last_1", {11}), ("layers.last_3", {9, 10, 11}),
        ("model.layers.10-11", {10, 11}), ("layers.*", set(range(12))), ("layers", set(range(12))),
        (r"re:model\.layers\.1[01]?\.", {1, 10, 11}), ("layers.5-99", {5, 6, 7, 8, 9, 10, 11}),
    ],
)  # fmt: skip
def test_layers_by_number(tiny_llama, pattern: str, numbers: set[int]) -> None:
    model = tiny_llama(seed=0, num_layers=12)
    names = {name for name, _ in model.named_parameters()}
    assert chosen(model, pattern) == set().union(*(layer(number, names) for number in numbers))


def test_modules_by_name(tiny_llama) -> None:
    model = tiny_llama(seed=0)
    assert chosen(model, "norm") == {"model.norm.weight"}
    assert len(chosen(model, "*norm")) == 5
    assert chosen(model, "layers.1.mlp", "layers.0.self_attn.q_proj") == {
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
        "model.layers.0.self_attn.q_proj.weight",
    }
    assert len(chosen(model, "mlp.*_proj")) == 6
    assert len(chosen(model, "re:.*q_proj")) == 2


def test_tied_embeddings_are_one_weight_and_that_is_told(tiny_llama) -> None:
    notes: list[str] = []
    assert chosen(tiny_llama(seed=0), "lm_head", notes=notes) == {EMBEDDING}
    assert notes == [f"lm_head.weight is the same weight as {EMBEDDING} (tied embeddings): both ends are trained"]


@pytest.mark.parametrize(
    ("pattern", "near"), [("lm_heat", "lm_head"), ("layers.2", None), ("q_prj", "q_proj"), ("re:lm_head", None)]
)
def test_a_pattern_that_names_nothing_is_refused(tiny_llama, pattern: str, near: str | None) -> None:
    model = tiny_llama(seed=0)
    if pattern == "re:lm_head":
        pattern = "re:head"  # a regular expression counts from the start of the name
    with pytest.raises(UsageError) as caught:
        train_only(model, ["norm", pattern])
    assert pattern in caught.value.what
    assert caught.value.where == "training.trainable"
    assert near is None or near in str(caught.value.fix)


@pytest.mark.parametrize("patterns", [["layers.last_2"], ["layers.2.mlp", "norm"], ["lm_head", "layers.3"]])
def test_gradients_are_those_of_full_training(tiny_llama, patterns: list[str]) -> None:
    full, partial = tiny_llama(seed=0, num_layers=4), tiny_llama(seed=0, num_layers=4)
    names = chosen(partial, *patterns)
    found = []
    for model in (full, partial):
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(found[1]) == names
    assert all(torch.equal(found[0][name], found[1][name]) for name in names)


def test_the_backward_pass_stops_at_the_lowest_trained_layer(tiny_llama) -> None:
    model = tiny_llama(seed=0, num_layers=4)
    train_only(model, ["layers.last_1"])
    needs_gradient = []
    for part in model.model.layers:
        part.register_forward_hook(lambda _m, _i, output: needs_gradient.append(output.requires_grad))
    model(IDS)
    assert needs_gradient == [False, False, False, True]
