"""Other tools' names: each has its effect or is refused, and is told once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halo_forge.config import ResolvedConfig, load_config
from halo_forge.config.alias_rules import Misfit, NotOffered
from halo_forge.config.aliases import ALIASES
from halo_forge.config.keys import DOTTED_BY_LEAF, KEYS, default_values
from halo_forge.config.schema import Config
from halo_forge.errors import ConfigError

Load = Callable[[str], ResolvedConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str) -> ResolvedConfig:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(path, environment={})

    return load_text


def values_of(resolved: ResolvedConfig) -> dict[str, Any]:
    nested = resolved.config.to_dict()
    return {dotted: nested[spec.section][spec.leaf] for dotted, spec in KEYS.items()}


def changed(resolved: ResolvedConfig) -> dict[str, Any]:
    defaults = default_values()
    return {dotted: value for dotted, value in values_of(resolved).items() if value != defaults[dotted]}


# ------------------------------------------------------------------------------------------------ the table itself


def test_rules_name_keys_that_exist() -> None:
    for name, rule in ALIASES.items():
        if rule.renames is not None:
            assert rule.renames in KEYS, name
            assert rule.section == rule.renames.partition(".")[0]
        assert rule.section is None or rule.section in Config.model_fields
        assert "." not in name or name in KEYS


def test_no_other_name_hides_a_key_of_ours() -> None:
    hidden = {name for name in ALIASES if name in DOTTED_BY_LEAF}
    # a flat `batch_size` is a training batch everywhere else; evaluation.batch_size keeps its own. `optimizer` is the
    # same key with other words for its values
    assert hidden == {"batch_size", "optimizer"}
    assert load_config(overrides=["evaluation.batch_size=3"], environment={}).config.evaluation.batch_size == 3
    assert load_config(overrides=["batch_size=3"], environment={}).config.training.per_device_train_batch_size == 3


ANY_VALUES = [True, False, 0, 1, -1, 0.5, float("inf"), "x", "none", [], ["a"], [{}], {}, {"a": 1}, None]


def test_every_row_reads_or_refuses_any_value() -> None:
    for name, rule in ALIASES.items():
        for value in ANY_VALUES:
            try:
                reading = rule.read(value)
            except (NotOffered, Misfit):
                continue
            assert set(reading.values) <= set(KEYS), (name, value)
            assert reading.values or reading.note, f"{name}: {value} does nothing and does not say why"


# ------------------------------------------------------------------------------------------------ names and values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base_model: m\nadapter: lora", {"model.name": "m"}),
        ("base_model: m", {"model.name": "m", "training.method": "full"}),
        ("base_model: m\nadapter:", {"model.name": "m", "training.method": "full"}),
        ("adapter: ''", {"training.method": "full"}),
        ("model_name_or_path: m\nuse_peft: true", {"model.name": "m"}),
        ("use_peft: false", {"training.method": "full"}),
        ("finetuning_type: full", {"training.method": "full"}),
        ("train_type: full", {"training.method": "full"}),
        ("adapter: qlora\nload_in_4bit: true", {"training.method": "qlora"}),
        ("model: {load_in_4bit: true}", {"training.method": "qlora"}),
        ("use_peft: true\nload_in_4bit: true\nbnb_4bit_quant_type: nf4", {"training.method": "qlora"}),
        ("finetuning_type: lora\nquantization_bit: 4\ndouble_quantization: true", {"training.method": "qlora"}),
        (
            "qlora: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}",
            {"training.method": "qlora"},
        ),
        ("adapter: lora\npeft_use_dora: true", {"training.method": "dora"}),
        ("training: {method: lora}\nlora: {use_dora: true}", {"training.method": "dora"}),
        ("adapter: dora", {"training.method": "dora"}),
        ("train_type: bottleneck", {"training.method": "adapter"}),
        (
            "training: {method: adapter}\nadapter: {bottleneck_size: 8}",
            {"training.method": "adapter", "adapter.bottleneck_size": 8},
        ),
        ("use_rslora: true", {"lora.use_rslora": True}),
        ("peft_use_rslora: true", {"lora.use_rslora": True}),
        ("lora_modules_to_save: [lm_head]", {"lora.modules_to_save": ["lm_head"]}),
        ("additional_target: embed_tokens, lm_head", {"lora.modules_to_save": ["embed_tokens", "lm_head"]}),
        ("peft_layers_to_transform: [0, 1]", {"lora.layers_to_transform": [0, 1]}),
        ("lora: {rank_pattern: {q_proj: 4}}", {"lora.rank_pattern": {"q_proj": 4}}),
        ("tokens: [<a>, <b>]", {"model.add_tokens": ["<a>", "<b>"]}),
        ("new_special_tokens: <a>,<b>", {"model.add_special_tokens": ["<a>", "<b>"]}),
        ("special_tokens: {additional_special_tokens: [<a>]}", {"model.add_special_tokens": ["<a>"]}),
        (
            "unfrozen_parameters: ['^lm_head.weight$', 'model.layers.2[0-9]+']",
            {"training.method": "full", "training.trainable": ["re:^lm_head.weight$", "re:model.layers.2[0-9]+"]},
        ),
        ("finetuning_type: freeze", {"training.method": "full", "training.trainable": ["layers.last_2"]}),
        (
            "finetuning_type: freeze\nfreeze_trainable_layers: 4\nfreeze_trainable_modules: all",
            {"training.method": "full", "training.trainable": ["layers.last_4"]},
        ),
        (
            "finetuning_type: freeze\nfreeze_trainable_layers: -3",
            {"training.method": "full", "training.trainable": ["layers.0-2"]},
        ),
        ("max_length: 99", {"data.max_seq_length": 99}),
        ("max_seq_length: 99", {"data.max_seq_length": 99}),
        ("sequence_len: 99", {"data.max_seq_length": 99}),
        ("cutoff_len: 99", {"data.max_seq_length": 99}),
        ("batch_size: 5", {"training.per_device_train_batch_size": 5}),
        ("micro_batch_size: 5", {"training.per_device_train_batch_size": 5}),
        ("per_device_eval_batch_size: 5", {"evaluation.batch_size": 5}),
        ("gradient_accumulation: 5", {"training.gradient_accumulation_steps": 5}),
        ("num_epochs: 5", {"training.num_train_epochs": 5}),
        ("roles_to_train: [assistant]", {}),
        ("roles_to_train: [gpt, human]", {"data.train_on": ["assistant", "user"]}),
        ("optim: adamw_torch_fused", {}),
        ("optimizer: adamw_hf", {}),
        ("training: {optimizer: adamw_bnb_8bit}", {"training.optimizer": "adamw_8bit"}),
        ("optim: paged_adamw_32bit", {"training.optimizer": "paged_adamw"}),
        ("neftune_noise_alpha: 5", {"training.neftune_alpha": 5.0}),
        ("label_smoothing_factor: 0.1", {"training.label_smoothing": 0.1}),
        ("max_steps: -1", {}),
        ("max_steps: 5", {"training.max_steps": 5}),
        ("warmup_steps: 5", {"training.warmup_steps": 5}),
        ("warmup_steps: 0.25", {"training.warmup_ratio": 0.25}),
        ("training: {warmup_steps: 0.25}", {"training.warmup_ratio": 0.25}),
        ("lr: 1e-3", {"training.learning_rate": 1e-3}),
        ("lr_scheduler_type: linear", {"training.lr_scheduler": "linear"}),
        ("scheduler: constant_with_warmup", {"training.lr_scheduler": "constant"}),
        ("training: {lr_scheduler: cosine_with_min_lr}", {}),
        ("lr_scheduler_kwargs: {min_lr_rate: 0.2}", {"training.min_lr_ratio": 0.2}),
        ("cosine_min_lr_ratio: 0.2", {"training.min_lr_ratio": 0.2}),
        ("max_grad_norm: 0", {"training.max_grad_norm": None}),
        ("gradient_clipping: 0.3", {"training.max_grad_norm": 0.3}),
        ("sample_packing: false", {"training.packing": False}),
        ("packing: false", {"training.packing": False}),
        ("bf16: false", {"training.bf16": False}),
        ("mixed_precision: bf16", {"training.bf16": True}),
        ("gradient_checkpointing: true", {"training.gradient_checkpointing": True}),
        ("disable_gradient_checkpointing: false", {"training.gradient_checkpointing": True}),
        ("evaluation_strategy: steps\neval_steps: 5", {"training.eval_steps": 5}),
        ("eval_strategy: no", {"data.validation_split": 0.0, "output.final": "latest"}),
        ("load_best_model_at_end: false", {"output.final": "latest"}),
        (
            "early_stopping_patience: 5",
            {"training.early_stopping": True, "training.early_stopping_patience": 5},
        ),
        ("early_stopping_steps: 5", {"training.early_stopping": True, "training.early_stopping_patience": 5}),
        ("random_state: 5", {"training.seed": 5}),
        ("lora_r: 5\nlora_alpha: 6\nlora_dropout: 0.5", {"lora.r": 5, "lora.alpha": 6, "lora.dropout": 0.5}),
        ("lora: {lora_rank: 5}", {"lora.r": 5}),
        ("lora_target_modules: [q_proj]", {"lora.target_modules": ["q_proj"]}),
        ("lora_target: q_proj,v_proj", {"lora.target_modules": ["q_proj", "v_proj"]}),
        ("lora_target: all", {}),
        ("lora: {target_modules: q_proj}", {"lora.target_modules": ["q_proj"]}),
        ("lora_target_linear: true", {}),
        ("output_dir: o", {"output.dir": "o"}),
        ("val_set_size: 0.2", {"data.validation_split": 0.2}),
        ("val_size: 0.2", {"data.validation_split": 0.2}),
        ("max_samples: 5", {"data.max_samples": 5}),
        ("report_to: wandb", {"output.trackers": ["wandb"]}),
        ("report_to: [tensorboard, mlflow, tensorboard]", {"output.trackers": ["tensorboard", "mlflow"]}),
        ("use_trackio: true", {"output.trackers": ["trackio"]}),
        ("train_on_inputs: true", {"data.train_on": "all"}),
        ("assistant_only_loss: false", {"data.train_on": "all"}),
        ("mask_history: true", {"data.train_on": "last_assistant"}),
        ("excess_length_strategy: raise", {"data.overlong": "fail"}),
        ("truncation_strategy: right", {"data.overlong": "truncate"}),
        ("dataset_name: trl-lib/Capybara", {"data.dataset": "trl-lib/Capybara"}),
        ("dataset_name: rows.jsonl", {"data.train_file": "rows.jsonl"}),
        ("dataset: codealpaca", {"data.dataset": "codealpaca"}),
        ("data: {type: chat_template}", {"data.format": "messages"}),
        ("data: {type: alpaca}", {"data.format": "instruction"}),
        ("data: {type: sharegpt}", {"data.format": "sharegpt"}),
        ("data: {type: completion}", {"data.format": "text"}),
        ("data: {format: alpaca}", {"data.format": "instruction"}),
        ("stage: pt", {"data.format": "text"}),
        ("sdp_attention: true", {"model.attn_implementation": "sdpa"}),
        ("flash_attn: disabled", {"model.attn_implementation": "eager"}),
        (
            "datasets: [{path: a.jsonl, type: alpaca}, {path: b.jsonl}]",
            {"data.train_file": ["a.jsonl", "b.jsonl"], "data.format": "instruction"},
        ),
        ("datasets: [{path: org/set, type: sharegpt}]", {"data.dataset": "org/set", "data.format": "sharegpt"}),
        (
            "datasets: [{path: json, data_files: [a.jsonl], ds_type: json, split: train, field_messages: conversations,"
            " type: chat_template}]",
            {"data.train_file": "a.jsonl", "data.format": "sharegpt"},
        ),
        ("test_datasets: [{path: v.jsonl, type: alpaca}]", {"data.validation_file": "v.jsonl"}),
        ("system: Be brief.", {"data.system_prompt": "Be brief."}),
        ("eval_max_new_tokens: 9", {"evaluation.max_new_tokens": 9}),
    ],
)
def test_other_names_have_their_effect(load: Load, text: str, expected: dict[str, Any]) -> None:
    resolved = load(text)
    assert changed(resolved) == expected
    for key in expected:
        assert "config.yaml" in resolved.origins[key] or key == "output.final"


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("max_length: 64", ("max_length (line 1) means data.max_seq_length",)),
        ("seed: 1", ("seed (line 1) means training.seed",)),
        ("\nadapter: lora", ("adapter (line 2) means training.method",)),
        ("max_steps: -1", ("max_steps: -1 (line 1) means training.max_steps: null",)),
        ("warmup_steps: 0.1", ("warmup_steps (line 1) means training.warmup_ratio",)),
        ("scheduler: constant_with_warmup",
         ("scheduler: constant_with_warmup (line 1) means training.lr_scheduler: constant",)),
        ("wandb_project:", ("wandb_project (line 1) is empty: nothing is set",)),
        ("base_model: m",
         ("base_model (line 1) means model.name", "base_model (line 1) without adapter: training.method is full")),
        ("adapter:", ("adapter (line 1) is empty: training.method is full",)),
        (
            "datasets:\n  - path: a.jsonl\n    type: completion",
            ("datasets (line 1) means data.train_file: a.jsonl, data.format: text",),
        ),
        ("training: {packing: on}", ("training.packing: \"on\" (line 1) means training.packing: true",)),
    ],
)  # fmt: skip
def test_each_other_name_is_told_once(load: Load, text: str, notices: tuple[str, ...]) -> None:
    assert load(text).notices == notices


def test_our_own_keys_in_their_sections_are_not_told(load: Load) -> None:
    assert load("training: {seed: 3, lr_scheduler: linear}\nlora: {target_modules: [a]}").notices == ()


def test_a_transformers_file_that_names_no_method_is_told_which_one_it_gets(load: Load) -> None:
    resolved = load("model_name_or_path: m")
    assert resolved.config.training.method == "lora"
    assert "without use_peft or finetuning_type" in resolved.notices[-1]


@pytest.mark.parametrize(
    ("line", "because"),
    [
        ("load_in_4bit: false", "nothing to do"),
        ("fp16: false", "nothing to do"),
        ("deepspeed:", "nothing is set"),
        ("report_to: none", "nothing to do"),
        ("save_strategy: steps", "output.save_steps says how often"),
        ("torch_dtype: auto", "float32"),
        ("lora_bias: none", "no bias"),
        ("lora: {task_type: CAUSAL_LM}", "causal"),
        ("special_tokens: {pad_token: x}", "no padding"),
        ("pad_to_sequence_len: true", "no padding"),
        ("gradient_checkpointing_kwargs: {use_reentrant: false}", "not reentrant"),
        ("stage: sft", "supervised"),
        ("template: qwen", "chat template"),
        ("dataset_prepared_path: p", "read and tokenised once"),
        ("resume_from_checkpoint: true", "resumes by itself"),
    ],
)
def test_what_is_so_already_is_accepted_and_told(load: Load, line: str, because: str) -> None:
    resolved = load(line)
    assert changed(resolved) == {}
    assert because in resolved.notices[0]
    assert "line 1" in resolved.notices[0]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("text", "message", "instead", "column"),
    [
        ("adapter: vera", "adapter: vera is not part of this release", "training.method", 10),
        ("model: {load_in_8bit: true}", "8 bits", "training.method: qlora", 23),
        ("quantization_bit: 8", "8 bits", "4", 19),
        ("quantization_method: hqq", "bitsandbytes", "qlora", 22),
        ("bnb_4bit_quant_type: fp4", "nf4", "nf4", 22),
        ("qlora: {load_in_4bit: true, bnb_4bit_quant_type: fp4}", "bnb_4bit_quant_type", "nf4", 50),
        ("unfrozen_parameters: ['^lm_head', 'model.embed_tokens.weight[:32000]']", "range of rows", "whole", 35),
        ("freeze_trainable_modules: mlp", "layers are trained whole", "layers.last_2.mlp", 27),
        ("lora_bias: all", "change the base", "none", 12),
        ("fp16: true", "float16 is not part of this release", "bf16", 7),
        ("training: {fp16: true}", "float16", "bf16", 18),
        ("deepspeed: ds.json", "DeepSpeed", "accelerate", 12),
        ("fsdp: [full_shard]", "FSDP", "accelerate", 7),
        ("lr_scheduler_type: polynomial", "schedule 'polynomial'", "cosine, linear or constant", 20),
        ("evaluation_strategy: epoch", "training.eval_steps says how often", "steps", 22),
        ("save_strategy: epoch", "output.save_steps says how often", "steps", 16),
        ("evals_per_epoch: 4", "counting in epochs", "eval_steps", 18),
        ("val_set_size: 100", "number of rows", "a share", 15),
        ("report_to: comet_ml", "tracker 'comet_ml'", "tensorboard, wandb, mlflow, trackio", 12),
        ("report_to: all", "every tracker", "tensorboard, wandb, mlflow, trackio", 12),
        ("wandb_project: mine", "W&B setting", "WANDB_PROJECT", 16),
        ("mlflow_tracking_uri: http://x", "MLflow setting", "MLFLOW_TRACKING_URI", 22),
        ("push_to_hub: true", "Hub", "registry", 14),
        ("torch_dtype: bfloat16", "float32", "bf16", 14),
        ("flash_attn: fa2", "fa2", "auto", 13),
        ("model: {attn_implementation: flash_attention_2}", "flash_attention_2", "auto", 30),
        ("special_tokens: {eos_token: x}", "setting eos_token", "own tokens", 29),
        ("chat_template: chatml", "own chat template", "remove", 16),
        ("resume_from_checkpoint: runs/x/checkpoint-5", "not part of the configuration", "--resume", 25),
        (
            "dataset: [{_component_: torchtune.datasets.preference_dataset, source: a/b}]",
            "preference_dataset",
            "chat_dataset",
            25,
        ),
        (
            "dataset: [{_component_: torchtune.datasets.chat_dataset, source: a/b, new_system_prompt: x}]",
            "new_system_prompt",
            "source",
            90,
        ),
        ("mix_strategy: interleave_over", "repeats rows", "interleave_under", 15),
        ("stopping_strategy: all_exhausted", "repeats rows", "interleave_under", 20),
        ("dataset_mixer: {a/b: 0.5}", "the fraction 0.5", "max_rows", 22),
        ("dataset_mixture: {datasets: [{id: a/b, config: x}]}", "config of a data set", "id and weight", 48),
        ("dataset_mixture: {datasets: [{id: a/b, weight: 0.2}]}", "the fraction 0.2", "max_rows", 48),
        (
            "datasets: [{path: json, data_files: [a.jsonl, b.jsonl], fraction: 0.5}]",
            "one fraction for several",
            "each",
            67,
        ),
        ("data: {type: chat_template.argilla}", "data set type", "chat_template", 14),
        (
            "test_datasets: [{path: a.jsonl, type: alpaca}, {path: b.jsonl, type: sharegpt}]",
            "one local file",
            "data.validation_file",
            16,
        ),
        ("datasets: [{path: a.jsonl, shards: 3}]", "shards of a data set", "path and type", 36),
        ("datasets: [{path: a.jsonl, split: test}]", "split: test", "split: train", 35),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", "min_lr", "min_lr_ratio", 31),
    ],
)
def test_what_this_release_does_not_do_is_said_plainly(
    load: Load, text: str, message: str, instead: str, column: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    (problem,) = caught.value.problems
    assert message in problem.message
    assert instead in str(problem.suggestion)
    assert problem.where.endswith(f":1:{column}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("use_peft: maybe", "use_peft must be one of true, false; found maybe"),
        ("datasets: a.jsonl", "datasets must be a list of data sets"),
        ("datasets: [{type: alpaca}]", "datasets must be a mapping with a path"),
        (
            "micro_batch_size: 0",
            "micro_batch_size (that is training.per_device_train_batch_size) must be a whole number",
        ),
        ("lora_r: big", "lora_r (that is lora.r) must be a whole number of at least 1; found the text big"),
        ("max_length: 64\nsequence_len: 65", "both set data.max_seq_length, to 65 and 64"),
        ("learning_rate: 1e-3\ntraining: {learning_rate: 1e-4}", "both set training.learning_rate"),
        ("lora_target_modules: [q]\nlora_target_linear: true", "both set lora.target_modules"),
        ("mask_history: true\ntrain_on_prompt: true", "both set data.train_on"),
    ],
)
def test_other_names_with_impossible_values(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message in caught.value.problems[0].message


def test_two_names_for_one_value_that_agree_are_accepted(load: Load) -> None:
    assert changed(load("max_length: 64\nsequence_len: 64")) == {"data.max_seq_length": 64}


# ------------------------------------------------------------------------------------------------ several data sets


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        (
            "datasets: [{path: a.jsonl, type: alpaca}, {path: b.jsonl, type: sharegpt}, {path: c/d}]",
            [{"path": "a.jsonl", "format": "instruction"}, {"path": "b.jsonl", "format": "sharegpt"},
             {"dataset": "c/d"}],
        ),
        ("datasets: [{path: a/b}, {path: c/d}]", [{"dataset": "a/b"}, {"dataset": "c/d"}]),
        (
            "datasets: [{path: a/b, fraction: 0.8}, {path: c.jsonl, split: train, fraction: 0.2}]",
            [{"dataset": "a/b", "share": 0.8}, {"path": "c.jsonl", "share": 0.2}],
        ),
        ("dataset: identity,alpaca_en_demo", [{"dataset": "identity"}, {"dataset": "alpaca_en_demo"}]),
        ("dataset: [a/b#500, c.jsonl]", [{"dataset": "a/b", "max_rows": 500}, {"path": "c.jsonl"}]),
        (
            "dataset: a,b\nmix_strategy: interleave_under\ninterleave_probs: 0.7,0.3",
            [{"dataset": "a", "share": 0.7}, {"dataset": "b", "share": 0.3}],
        ),
        (
            "interleave_prob: [3, 1]\nstopping_strategy: first_exhausted\ndataset: [a, b]",
            [{"dataset": "a", "share": 3.0}, {"dataset": "b", "share": 1.0}],
        ),
        ("dataset: a,b\nmix_strategy: interleave_under",
         [{"dataset": "a", "share": 1.0}, {"dataset": "b", "share": 1.0}]),
        ("dataset: a,b\nmix_strategy: concat", [{"dataset": "a"}, {"dataset": "b"}]),
        ("dataset_mixer_list: [a/b, 1.0, c/d, 5000]", [{"dataset": "a/b"}, {"dataset": "c/d", "max_rows": 5000}]),
        ("dataset_mixer: {a/b: 1.0, c.jsonl: 7}", [{"dataset": "a/b"}, {"path": "c.jsonl", "max_rows": 7}]),
        (
            "dataset_mixture: {datasets: [{id: a/b, split: train, weight: 1.0}, {id: c/d, weight: 300}], seed: 0}",
            [{"dataset": "a/b"}, {"dataset": "c/d", "max_rows": 300}],
        ),
        (
            "dataset:\n- {_component_: torchtune.datasets.chat_dataset, source: a/b, conversation_style: sharegpt}\n"
            "- {_component_: torchtune.datasets.text_completion_dataset, source: json, data_files: t.json}",
            [{"dataset": "a/b", "format": "sharegpt"}, {"path": "t.json", "format": "text"}],
        ),
        ("data: {sources: [{path: a.jsonl, format: alpaca}, {path: b.jsonl, format: openai}]}",
         [{"path": "a.jsonl", "format": "instruction"}, {"path": "b.jsonl", "format": "messages"}]),
    ],
)  # fmt: skip
def test_several_data_sets_are_sources(load: Load, text: str, sources: list[dict[str, Any]]) -> None:
    found = load(text).config.data.sources
    assert found is not None
    assert [source.model_dump(exclude_defaults=True) for source in found] == sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset_mixer: {a/b: 1.0}", {"data.dataset": "a/b"}),
        ("dataset: {_component_: torchtune.datasets.alpaca_dataset}",
         {"data.dataset": "tatsu-lab/alpaca", "data.format": "instruction"}),
        ("dataset: [a.jsonl, b.jsonl]", {"data.train_file": ["a.jsonl", "b.jsonl"]}),
        ("dataset: a\nmix_strategy: interleave_under", {"data.dataset": "a"}),
        ("datasets: [{path: a/b}]\ntest_split_size: 0.2", {"data.dataset": "a/b", "data.validation_split": 0.2}),
        ("dataset_mixture: {datasets: [{id: a/b}], test_split_size: 0.2}",
         {"data.dataset": "a/b", "data.validation_split": 0.2}),
    ],
)  # fmt: skip
def test_what_one_key_can_say_needs_no_sources(load: Load, text: str, expected: dict[str, Any]) -> None:
    assert changed(load(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: a,b\ninterleave_probs: 0.7,0.2,0.1", "holds 3 weights and the data sets are 2"),
        ("dataset: a\ninterleave_probs: '1.0'", "holds 1 weights and the data sets are 0"),
        ("dataset: a,b\ninterleave_probs: 0.7,0", "a number above 0 for each data set"),
        ("dataset: a,b\ninterleave_probs: [0.7, x]", "a number above 0 for each data set"),
        ("dataset: a#x", "the name of a data set"),
        ("dataset: a#0,b", "the name of a data set"),
        ("dataset: [a, 5]", "the name of a data set"),
        ("dataset_mixer_list: [a/b, 1.0, c/d]", "a fraction or a number of its rows"),
        ("dataset_mixer: {a/b: -1}", "a fraction or a number of rows above 0"),
        ("datasets: [{path: a/b, fraction: 0}]", "fraction is a number above 0"),
    ],
)
def test_mixes_that_do_not_add_up(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    (problem,) = caught.value.problems
    assert message in problem.message
