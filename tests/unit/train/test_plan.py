"""The plan of a run: parameters without weights, the largest micro-batch, memory, disk, time, what would help."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, Qwen3MoeConfig, Qwen3MoeForCausalLM
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.config import Config
from halo_forge.errors import ModelNotFound, UsageError
from halo_forge.models import add_lora, load_model
from halo_forge.models.compute import Compute
from halo_forge.models.fast.head import MAX_LOGITS_BYTES
from halo_forge.models.partial import train_only
from halo_forge.models.shape import read_shape, shape_of
from halo_forge.train.batches import pack_by_tokens
from halo_forge.train.planning import forecast as forecast_module
from halo_forge.train.planning.forecast import earlier_speed, forecast
from halo_forge.train.planning.memory import predict_memory
from halo_forge.train.planning.planner import Machine, RunPlan, memory_inputs, plan_run
from halo_forge.train.planning.remedies import changes_that_help, with_settings
from halo_forge.train.planning.workload import Packing, RowSizes, largest_rows, most_supervised, workload_of
from training_runs import prepared_run, train_now

CPU = torch.device("cpu")
BF16 = Compute(device=CPU, precision="bfloat16")
GB = 10**9


def rows_of(lengths: list[int]) -> RowSizes:
    sizes = np.array(lengths, dtype=np.int64)
    return RowSizes(
        lengths=sizes, num_supervised=sizes // 2, validation_tokens=100, longest_tokens=max(lengths), data_bytes=1000
    )


def config_of(**values: Any) -> Config:
    return with_settings(Config(), {key.replace("__", "."): value for key, value in values.items()})


# ------------------------------------------------------------------------------------------------ shape


def test_parameters_are_counted_as_the_loaded_model_has_them(tiny_model_dir: Path) -> None:
    state = torch.get_rng_state()
    shape = read_shape(str(tiny_model_dir), target_modules="all-linear")
    assert torch.equal(state, torch.get_rng_state())
    model = load_model(str(tiny_model_dir), dtype=torch.float32)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.parameters["head"] == 0  # tied
    assert (shape.hidden, shape.intermediate, shape.query, shape.key, shape.num_layers) == (64, 160, 64, 32, 2)
    adapted = add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0)
    assert 4 * shape.adapted == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_what_training_some_weights_freezes_is_not_counted_as_trained(tiny_model_dir: Path) -> None:
    values = {"model__name": str(tiny_model_dir), "training__method": "full"}
    some = config_of(**values, training__trainable=["layers.last_1"])
    model = load_model(str(tiny_model_dir), dtype=torch.float32)
    train_only(model, ["layers.last_1"])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    of_some, of_all = (forecast(config, None, BF16).plan for config in (some, config_of(**values)))
    assert of_some.num_trainable == trained < of_all.num_trainable == of_all.model.num_parameters
    parts, all_parts = of_some.phases[0].parts, of_all.phases[0].parts
    assert (parts["gradients"], parts["optimizer"]) == (trained * 4, trained * 8)
    assert parts["weights"] == all_parts["weights"]
    assert of_some.disk.checkpoint < of_all.disk.checkpoint


def test_other_families_and_some_targets_are_counted_too(tiny_model_dir: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=100, n_positions=64))
    shape = shape_of(gpt2)
    assert shape.num_parameters == sum(p.numel() for p in gpt2.parameters())
    assert (shape.hidden, shape.intermediate, shape.key) == (32, 128, 32)
    assert shape.active == 3 * 12 * 32 * 32
    some = read_shape(str(tiny_model_dir), target_modules=["q_proj", "v_proj"])
    assert some.adapted == 2 * ((64 + 64) + (64 + 32))
    assert some.adapted_share == pytest.approx(128 / (5 * 64 + 64 + 160))
    with pytest.raises(UsageError, match="q_proi"):
        read_shape(str(tiny_model_dir), target_modules=["q_proi"])
    with pytest.raises(ModelNotFound):
        read_shape("no/such-model-here")


def test_a_mixture_of_experts_counts_what_a_token_passes() -> None:
    config = Qwen3MoeConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    shape = shape_of(model)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    assert shape.intermediate == 2 * 16
    experts_of_a_token = 2 * (2 * 3 * 32 * 16)  # layers x (experts x three matrices)
    attention = 2 * (32 * 32 * 2 + 2 * 32 * 16)
    assert shape.active - experts_of_a_token - attention == pytest.approx(2 * 32 * 8, abs=2 * 32 * 8)  # the router


# ------------------------------------------------------------------------------------------------ workload


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9),
    st.integers(8, 128),
    st.integers(1, 5),
)
def test_no_order_of_the_rows_makes_a_micro_batch_above_the_bound(
    lengths: list[int], max_tokens: int, per_step: int
) -> None:
    """Against every group that packing could make of every set of rows that a step could hold."""
    packing = Packing(max_tokens=max_tokens, examples_per_batch=2, examples_per_process=per_step)
    sizes = np.array(lengths, dtype=np.int64)
    rows = largest_rows(sizes, packing)
    assert len(set(rows)) == len(rows) <= per_step
    chosen = int(sizes[rows].sum())
    assert chosen <= max_tokens or len(rows) == 1
    bound = most_supervised(sizes, packing)  # every token supervised
    for together in itertools.combinations(lengths, min(per_step, len(lengths))):
        for group in pack_by_tokens(list(together), max_tokens):
            tokens = sum(together[i] for i in group)
            assert tokens <= bound
            # Greedy is not the best packing; what it leaves free is less than its shortest row or its own last gap.
            assert tokens <= max(max_tokens, max(lengths))
    assert chosen >= min(max(lengths), max_tokens)


def test_the_largest_micro_batch_is_filled_from_the_longest_rows() -> None:
    packing = Packing(max_tokens=100, examples_per_batch=2, examples_per_process=8)
    assert largest_rows(np.array([10, 60, 50, 39, 30]), packing) == [1, 3]
    assert largest_rows(np.array([10, 160, 50]), packing) == [1]
    unpacked = replace(packing, max_tokens=None)
    assert largest_rows(np.array([10, 60, 50, 39, 30]), unpacked) == [1, 2]
    few = replace(packing, examples_per_process=1)
    assert largest_rows(np.array([10, 60, 50, 39, 30]), few) == [1]


def test_without_rows_the_most_that_the_configuration_allows_is_planned() -> None:
    config = config_of(data__max_seq_length=512, training__micro_batch_tokens=1024)
    work = workload_of(None, config, Packing.of(config, BF16, 1))
    assert not work.is_measured
    assert (work.largest.num_tokens, work.largest.num_supervised) == (1024, 1024)


# ------------------------------------------------------------------------------------------------ plan


def planned(config: Config, model: Path, lengths: list[int], usable: int | None = 100 * GB, **machine: Any) -> RunPlan:
    packing = Packing.of(config, BF16, 1)
    targets = config.lora.target_modules if config.training.method == "lora" else None
    return plan_run(
        config,
        read_shape(str(model), target_modules=targets),
        workload_of(rows_of(lengths), config, packing),
        packing,
        Machine(device="cpu", precision="bfloat16", usable_bytes=usable, **machine),
        recompute=config.training.gradient_checkpointing is True,
    )


def test_steps_tokens_and_time(tiny_model_dir: Path) -> None:
    config = config_of(
        training__per_device_train_batch_size=4, training__gradient_accumulation_steps=2, training__num_train_epochs=2,
        evaluation__enabled=False, training__eval_steps=1000,
    )  # fmt: skip
    plan = planned(config, tiny_model_dir, [50] * 20, tokens_per_s=100.0)
    assert (plan.num_steps, plan.num_tokens) == (6, 2000)
    assert plan.time_s == pytest.approx(20 + 100 / 2 / 100)
    assert plan.speed_source == "measured in this run"
    products = planned(config, tiny_model_dir, [50] * 20, gflops=1.0)
    assert products.speed_source == "measured matrix products"
    assert products.tokens_per_s is not None
    unknown = planned(config, tiny_model_dir, [50] * 20)
    assert (unknown.time_s, unknown.speed_source) == (None, "not known")


def test_necessary_operations_are_six_for_each_weight_and_four_with_adapters(smollm2_path: Path) -> None:
    """notes: full 0.762 G for each token of SmolLM2-135M (217 tokens a document, 58 % supervised), adapters 0.49 G."""
    from halo_forge.train.planning.planner import flops_per_token

    for method, expected in (("full", 0.762e9), ("lora", 0.49e9)):
        config = config_of(training__method=method, lora__r=16)
        targets = "all-linear" if method == "lora" else None
        shape = read_shape(str(smollm2_path), target_modules=targets)
        rows = RowSizes(
            lengths=np.full(100, 217), num_supervised=np.full(100, 126), validation_tokens=0, longest_tokens=217,
            data_bytes=0,
        )  # fmt: skip
        work = workload_of(rows, config, Packing.of(config, BF16, 1))
        machine = Machine(device="cpu", precision="bfloat16", usable_bytes=None)
        inputs = memory_inputs(config, shape, work, machine, recompute=False)
        assert flops_per_token(inputs, work) == pytest.approx(expected, rel=0.12)


def test_disk_is_what_a_run_leaves(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Checkpoints of a real run, weighed; full and adapters."""
    for method in ("full", "lora"):
        prepared = prepared_run(tiny_tokenizer, tiny_model_dir, tmp_path / method / "run", method=method, max_steps=2)
        train_now(prepared)
        [checkpoint] = (tmp_path / method / "run").glob("checkpoint-*")
        weighed = sum(file.stat().st_size for file in checkpoint.rglob("*"))
        foreseen = forecast(prepared.config, None, BF16).plan.disk
        overhead = 4_000_000
        assert foreseen.checkpoint - overhead == pytest.approx(weighed, rel=0.1 if method == "full" else 0.25)
        assert foreseen.num_checkpoints == 1


def test_every_phase_grows_with_what_it_should(tiny_model_dir: Path) -> None:
    config = config_of(training__method="lora")
    shape = read_shape(str(tiny_model_dir), target_modules="all-linear")
    packing = Packing.of(config, BF16, 1)
    machine = Machine(device="cpu", precision="bfloat16", usable_bytes=None)
    inputs = memory_inputs(config, shape, workload_of(rows_of([900] * 9), config, packing), machine, recompute=False)
    start = {phase.name: phase.num_bytes for phase in predict_memory(inputs)}
    assert list(start) == ["training step", "validation", "saving", "evaluation"]

    def grown(**changes: Any) -> set[str]:
        later = predict_memory(replace(inputs, **changes))
        return {phase.name for phase in later if phase.num_bytes > start[phase.name]}

    assert grown(eval_batch=64) == {"evaluation"}
    assert grown(rank=64) == {"training step", "validation", "saving", "evaluation"}
    assert grown(dropout=0.5) == set()  # was on already
    assert predict_memory(inputs)[0].parts["logits"] <= MAX_LOGITS_BYTES  # a chunk, however many are supervised
    slow = replace(inputs, fast_layers=False)
    everywhere = replace(slow, supervised_logits_only=False)
    assert predict_memory(everywhere)[0].num_bytes > predict_memory(slow)[0].num_bytes > start["training step"]
    full = predict_memory(replace(inputs, method="full", rank=0))[0].parts
    assert full["gradients"] == shape.num_parameters * 4
    assert full["optimizer"] == shape.num_parameters * 8
    assert full["bfloat16 copy"] == 2 * (shape.active + shape.head)
    assert predict_memory(replace(inputs, recompute=True))[0].num_bytes < start["training step"]
    assert "evaluation" not in {phase.name for phase in predict_memory(replace(inputs, eval_batch=0))}


def test_what_would_help_is_ordered_by_cost_and_is_enough_where_it_says_so(tiny_model_dir: Path) -> None:
    """Each change, put into the configuration and planned by itself, saves what was told."""
    config = config_of(
        training__method="full", training__micro_batch_tokens=4096, data__max_seq_length=1024,
        training__gradient_checkpointing=False, evaluation__enabled=False, training__gradient_accumulation_steps=64,
    )  # fmt: skip
    lengths = [500] * 64
    roomy = planned(config, tiny_model_dir, lengths)
    assert changes_that_help(config, roomy, lambda c: planned(c, tiny_model_dir, lengths)) == []
    usable = roomy.peak_bytes - 10_000_000
    plan = planned(config, tiny_model_dir, lengths, usable)
    assert not plan.fits
    changes = changes_that_help(config, plan, lambda c: planned(c, tiny_model_dir, lengths, usable))
    assert [change.cost for change in changes] == sorted(change.cost for change in changes)
    names = [change.arguments.split("=")[0].removeprefix("--set ") for change in changes]
    assert names[0] == "training.micro_batch_tokens"
    assert {"training.gradient_checkpointing", "data.max_seq_length"} <= set(names)
    for change in changes:
        again = planned(with_settings(config, change.settings), tiny_model_dir, lengths, usable)
        assert plan.peak_bytes - again.peak_bytes == change.saves_bytes > 0
        assert again.fits == change.fits
    assert any(change.fits for change in changes)


def test_where_no_single_change_is_enough_they_are_put_together(tiny_model_dir: Path) -> None:
    config = config_of(
        training__micro_batch_tokens=4096, data__max_seq_length=1024, training__gradient_checkpointing=False,
        training__gradient_accumulation_steps=64,
    )  # fmt: skip
    lengths = [500] * 64
    replan = lambda c, usable=100 * GB: planned(c, tiny_model_dir, lengths, usable, process_bytes=0)  # noqa: E731
    singles = changes_that_help(config, replan(config, 1000), lambda c: replan(c, 1000))
    usable = replan(config).peak_bytes - max(change.saves_bytes for change in singles) - 1_000_000
    plan = replan(config, usable)
    changes = changes_that_help(config, plan, lambda c: replan(c, usable))
    assert not any(change.fits for change in changes[:-1])
    assert changes[-1].fits
    assert changes[-1].words == "all of these together"
    assert replan(with_settings(config, changes[-1].settings), usable).fits


def test_auto_recomputes_only_where_keeping_would_not_fit(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(model__name=str(tiny_model_dir), training__micro_batch_tokens=8192, data__max_seq_length=1024)
    rows = rows_of([1000] * 64)
    kept = forecast(config, rows, BF16)
    assert not kept.plan.recompute
    assert kept.changes == ()
    need = kept.plan.phases[0].num_bytes
    monkeypatch.setattr(forecast_module, "device_bytes", lambda _: int(need / 0.8) - 1)
    assert forecast(config, rows, BF16).plan.recompute
    monkeypatch.setattr(forecast_module, "device_bytes", lambda _: int(need / 0.8) + 1)
    assert not forecast(config, rows, BF16).plan.recompute
    always = with_settings(config, {"training.gradient_checkpointing": True})
    never = with_settings(config, {"training.gradient_checkpointing": False})
    assert forecast(always, rows, BF16).plan.recompute
    monkeypatch.setattr(forecast_module, "device_bytes", lambda _: 1000)
    assert not forecast(never, rows, BF16).plan.recompute
    monkeypatch.setattr(forecast_module, "device_bytes", lambda _: None)
    unknown = forecast(config, rows, BF16)
    assert unknown.plan.memory_fit == "unknown"
    assert unknown.plan.fits


def test_the_speed_of_the_same_run_is_taken_and_of_another_is_not(tmp_path: Path) -> None:
    config = Config()
    (tmp_path / "run.json").write_text(json.dumps({"config": config.to_dict()}))
    lines = [{"kind": "train", "num_tokens": 100, "time_s": 0.5}, {"kind": "validation", "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert earlier_speed(config, tmp_path) == 200.0
    assert earlier_speed(config_of(training__method="full"), tmp_path) is None
    assert earlier_speed(config, None) is None


# ------------------------------------------------------------------------------------------------ command


def test_the_command_says_whether_it_fits(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training_runs import write_rows

    rows = write_rows(tmp_path / "rows.jsonl", 60)
    words = ["plan", "--model", str(tiny_model_dir), "--data", str(rows), "--output", str(tmp_path / "out")]
    answer = CliRunner().invoke(build(), words)
    assert answer.exit_code == 0, answer.output
    assert "it fits" in answer.stdout
    assert not (tmp_path / "out").exists()
    found = json.loads(CliRunner().invoke(build(), [*words, "--json"]).stdout)
    assert found["fits"] is True
    assert found["num_steps"] >= 1
    assert found["peak_bytes"] == sum(
        next(p for p in found["phases"] if p["name"] == found["peak_phase"])["parts"].values()
    )

    monkeypatch.setattr(forecast_module, "device_bytes", lambda _: found["peak_bytes"] - 1_000_000)
    tight = CliRunner().invoke(build(), words)
    assert tight.exit_code == 6
    assert "does NOT fit" in tight.stdout
    assert "--set " in tight.stdout
    quick = json.loads(CliRunner().invoke(build(), [*words, "--quick", "--json"]).stdout)
    assert quick["num_steps"] is None
    assert quick["workload"]["is_measured"] is False
