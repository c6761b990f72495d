"""A run of three epochs that is stopped after every single step: each epoch takes every row once, in the same order."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import Example
from halo_forge.errors import Interrupted
from halo_forge.train import session as session_module
from training_runs import Prepared, final_weights, losses, prepared_run, train_now

NUM_EPOCHS, NUM_ROWS = 3, 43
STEPS_PER_EPOCH = 5  # four of ten rows and one of three


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_in_parts(prepared: Prepared, every: int | None, seen: list[list[str]]) -> int:
    """Stop after each `every` steps (None: never) and start again; returns the number of starts. Ids of the rows of
    each finished step go to `seen`."""
    made: list[list[str]] = []
    steps_left = [0]

    def notify(event: str, _: Any) -> None:
        if event == "train.step":
            seen.append(made[-1])
            steps_left[0] -= 1

    def check() -> None:
        if every is not None and steps_left[0] == 0:
            raise Interrupted("stopped by a test")

    real = session_module.step_batches

    def recording(examples: Sequence[Example], **options: Any) -> Any:
        made.append([example.conversation_id for example in examples])
        return real(examples, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "step_batches", recording)
        for starts in range(1, 40):
            steps_left[0] = every or 0
            with contextlib.suppress(Interrupted):
                train_now(prepared, notify=notify, check=check)
                return starts
    raise AssertionError("the run did not end")


@pytest.mark.parametrize(
    ("packing", "stops"), [(True, (None, 1)), pytest.param(False, (None, 1, 2, 5, 7), marks=pytest.mark.soak)]
)
def test_stopped_after_every_step(
    packing: bool,
    stops: tuple[int | None, ...],
    tiny_tokenizer: PreTrainedTokenizerBase,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {
        "num_train_epochs": NUM_EPOCHS, "gradient_accumulation_steps": 5, "per_device_train_batch_size": 2,
        "packing": packing, "eval_steps": 4, "output.save_steps": 7,
    }  # fmt: skip
    order: dict[int | None, list[list[str]]] = {}
    for every in stops:
        prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / str(every) / "run", **options)
        order[every] = []
        starts = train_in_parts(prepared, every, order[every])
        assert starts >= (1 if every is None else NUM_EPOCHS * STEPS_PER_EPOCH // every)
        assert order[every] == order[None]
        assert losses(prepared.run.path) == losses(tmp_path / "None" / "run")
        assert final_weights(prepared.run.path) == final_weights(tmp_path / "None" / "run")
    steps = order[None]
    assert [len(step) for step in steps] == [10, 10, 10, 10, 3] * NUM_EPOCHS
    for epoch in range(NUM_EPOCHS):
        of_epoch = steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
        assert set(Counter(row for step in of_epoch for row in step).values()) == {1}
        assert sum(map(len, of_epoch)) == NUM_ROWS
