"""The one table of other tools' names: TRL, transformers, PEFT, Axolotl, LLaMA-Factory, ms-swift and the documents
this tool was asked for from. Each row is a name (or several) and how its value is read here.

A name that is not in this table and not in the schema is an error. Rows about our own dotted keys read other tools'
values for them.
"""

from __future__ import annotations

from halo_forge.config.alias_datasets import (
    axolotl_datasets,
    axolotl_test_datasets,
    dataset_mixer,
    dataset_mixture,
    dataset_or_file,
    interleave_probs,
    mix_strategy,
    own_format,
    own_sources,
    row_type,
)
from halo_forge.config.alias_methods import ROWS as METHOD_ROWS
from halo_forge.config.alias_rules import (
    Rule,
    already,
    choice,
    inverted,
    neutral,
    refused,
    same,
    turns_on,
)
from halo_forge.config.alias_values import (
    checkpointing_options,
    evaluation_strategy,
    grad_norm,
    max_steps,
    own_schedule,
    resume,
    schedule,
    schedule_options,
    special_tokens,
    stage,
    switched_epochs,
    target_modules,
    trackers,
    trained_roles,
    validation_share,
    warmup,
)

_OTHER_ADAPTERS = "training.method: lora, dora, qlora, adapter or full"
_TRACKERS = "output.trackers: [tensorboard, wandb, mlflow, trackio]; metrics.jsonl always holds every figure"
_WANDB = "output.trackers: [wandb], and WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME or WANDB_MODE in the environment"
_MLFLOW = "output.trackers: [mlflow], and MLFLOW_TRACKING_URI or MLFLOW_EXPERIMENT_NAME in the environment"
_ONE_SEED = "training.seed alone decides"
_OWN_TEMPLATE = "the model's own chat template is always used"
_READ_HERE = "rows are read and tokenised once per run"
_NO_PADDING = "batches have no padding here"
_KERNELS = "remove it: training.supervised_logits_only already keeps the logits small"
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "adamw_torch_npu_fused"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit"), "adamw_8bit"),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), "paged_adamw"),
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
_REGISTRY = "remove it: publish.registry holds the released versions"
_NO_TAIL = "the last, smaller step of an epoch is trained too"
_EVERY = "eval_steps, save_steps and logging_steps are numbers of optimizer steps"

ROWS: tuple[tuple[tuple[str, ...], Rule], ...] = (
    # --- model
    (("base_model", "model_name_or_path", "model_name", "model_id", "model_path"), same("model.name")),
    (("pretrained_model_name_or_path",), same("model.name")),
    (("model_revision", "revision_of_model", "hub_revision"), same("model.revision")),
    (
        ("torch_dtype", "dtype"),
        already(("auto", "float32"), "weights are kept in float32", "training.bf16: true computes in bfloat16"),
    ),
    (("tokenizer_type", "model_type", "processor_type"), neutral("the classes are the model's own")),
    (("is_llama_derived_model", "is_mistral_derived_model"), neutral("the classes are the model's own")),
    (
        ("tokenizer_name_or_path", "tokenizer_name", "tokenizer_config", "base_model_config"),
        refused("another tokenizer or configuration than the model's own", "remove it"),
    ),
    (("tokenizer_use_fast", "use_fast_tokenizer"), already((True,), "the fast tokenizer is used", "remove it")),
    (("special_tokens",), Rule(special_tokens)),
    (("pad_token",), neutral(_NO_PADDING)),
    (("eos_token", "bos_token"), refused("another special token than the model's own", "remove it")),
    (("sdp_attention",), turns_on("model.attn_implementation", "sdpa")),
    (("eager_attention",), turns_on("model.attn_implementation", "eager")),
    (
        ("flash_attn",),
        choice(
            "model.attn_implementation",
            {"auto": "auto", "sdpa": "sdpa", "disabled": "eager"},
            {"fa2": "auto", "fa3": "auto"},
        ),
    ),
    (
        ("flash_attention", "xformers_attention", "flex_attention", "s2_attention", "sage_attention", "shift_attn"),
        refused("this attention kernel", "model.attn_implementation: auto"),
    ),
    (
        ("model.attn_implementation",),
        choice(
            "model.attn_implementation",
            {word: word for word in ("auto", "document", "sdpa", "eager")},
            dict.fromkeys(("flash_attention_2", "flash_attention_3", "flex_attention"), "auto"),
        ),
    ),
    # --- data
    (("dataset_name", "dataset_id"), Rule(dataset_or_file, "data")),
    (("data.dataset",), Rule(dataset_or_file, "data")),
    (("data.sources",), Rule(own_sources, "data")),
    (("datasets",), Rule(axolotl_datasets, "data")),
    (("test_datasets",), Rule(axolotl_test_datasets, "data")),
    (("train_data", "train_files", "data_files", "train_path", "train_dataset"), same("data.train_file")),
    (("val_file", "valid_file", "eval_file", "validation_data"), same("data.validation_file")),
    (("eval_dataset",), refused("a named data set to validate on", "data.validation_file")),
    (("pretraining_dataset",), refused("streaming text", "data.train_file with data.format: text")),
    (("max_length", "sequence_len", "cutoff_len", "model_max_length", "max_seq_len"), same("data.max_seq_length")),
    (("type",), Rule(row_type, "data")),
    (("data.format",), Rule(own_format, "data")),
    (("dataset_text_field",), choice("data.format", {"text": "text"}, {})),
    (("val_set_size", "val_size", "split_dataset_ratio", "validation_ratio"), Rule(validation_share, "data")),
    (("max_train_samples",), same("data.max_samples")),
    (("train_on_inputs", "train_on_prompt"), choice("data.train_on", {True: "all", False: "assistant"})),
    (("assistant_only_loss", "completion_only_loss"), choice("data.train_on", {True: "assistant", False: "all"})),
    (("mask_history",), turns_on("data.train_on", "last_assistant")),
    (("excess_length_strategy",), choice("data.overlong", {"drop": "drop", "truncate": "truncate", "raise": "fail"})),
    (
        ("truncation_strategy",),
        choice("data.overlong", {"delete": "drop", "right": "truncate", "raise": "fail"}, {"left": "delete or right"}),
    ),
    (("truncation_mode",), choice("data.overlong", {"keep_start": "truncate"}, {"keep_end": "data.overlong: drop"})),
    (("system", "system_message", "default_system", "default_system_message"), same("data.system_prompt")),
    (("template",), neutral(_OWN_TEMPLATE)),
    (("chat_template",), already(("tokenizer_default",), _OWN_TEMPLATE, "remove it")),
    (("chat_template_path", "chat_template_jinja"), refused("another chat template than the model's own", "remove it")),
    (("dataset_dir",), refused("a directory of registered data sets", "data.train_file with the path of the file")),
    (("dataset_config", "dataset_config_name", "dataset_test_split"), refused("choosing this part", "data.dataset")),
    (("dataset_train_split", "dataset_split"), already(("train",), "the train split is read", "train")),
    (("streaming", "dataset_streaming"), refused("streaming", "remove it: rows are read once and kept")),
    (("mix_strategy", "stopping_strategy"), Rule(mix_strategy, "data")),
    (("interleave_probs", "interleave_prob"), Rule(interleave_probs, "data")),
    (("dataset_mixer", "dataset_mixer_list"), Rule(dataset_mixer, "data")),
    (("dataset_mixture",), Rule(dataset_mixture, "data")),
    (("test_split_size",), Rule(validation_share, "data")),
    (
        ("datasets_weights", "dataset_weights", "mixture_proportion"),
        refused("weights without their data sets", "data.sources: [{path, share}, ...]"),
    ),
    (("shuffle_merged_datasets", "shuffle_dataset"), already((True,), "rows are shuffled by training.seed", "true")),
    (
        ("dataset_exact_deduplication",),
        already((True,), "exact duplicates are removed", "data.policies: {duplicate: keep}"),
    ),
    (("dataset_prepared_path", "dataset_num_proc", "dataset_processes"), neutral(_READ_HERE)),
    (("preprocessing_num_workers", "overwrite_cache", "tokenized_path", "load_from_cache_file"), neutral(_READ_HERE)),
    (("remove_unused_columns", "dataset_kwargs"), neutral("columns that are not needed are not read")),
    # --- training
    (("stage",), Rule(stage, "data")),
    (("do_train",), already((True,), "training is what this command does", "`halo-forge evaluate`")),
    (("do_eval", "do_predict", "predict_with_generate"), neutral("evaluation.enabled decides")),
    (("rl",), refused("training on preferences", "remove it: this tool fine-tunes on answers")),
    (("num_epochs", "epochs"), same("training.num_train_epochs")),
    (("training.max_steps",), Rule(max_steps, "training")),
    (("micro_batch_size", "batch_size", "per_device_batch_size"), same("training.per_device_train_batch_size")),
    (("gradient_accumulation", "grad_accum_steps"), same("training.gradient_accumulation_steps")),
    (("sample_packing", "neat_packing"), same("training.packing")),
    (("packing_strategy",), already(("bfd", "binpack", "sequential"), "packing never cuts a document", "remove it")),
    (("padding_free", "pad_to_sequence_len", "pad_to_multiple_of", "padding_side"), neutral(_NO_PADDING)),
    (("eval_packing", "eval_sample_packing"), neutral("packing does not change the validation loss")),
    (("lr", "peak_lr", "peak_learning_rate"), same("training.learning_rate")),
    (("lr_scheduler_type", "lr_schedule", "scheduler"), Rule(schedule, "training")),
    (("training.lr_scheduler",), Rule(own_schedule, "training")),
    (("lr_scheduler_kwargs",), Rule(schedule_options, "training")),
    (("cosine_min_lr_ratio", "min_lr_rate"), same("training.min_lr_ratio")),
    (("training.warmup_steps", "num_warmup_steps"), Rule(warmup, "training")),
    (("optim",), choice("training.optimizer", _OPTIMIZERS)),
    (("training.optimizer", "optimizer"), choice("training.optimizer", _OPTIMIZERS)),
    (("optim_args",), refused("optimizer options", "training.adam_beta1, adam_beta2, adam_epsilon")),
    (("training.max_grad_norm", "gradient_clipping", "grad_clip", "gradient_clip_val"), Rule(grad_norm, "training")),
    (("fp16", "float16"), refused("training in float16", "training.bf16: auto")),
    (("bfloat16",), same("training.bf16")),
    (
        ("mixed_precision",),
        choice("training.bf16", {"bf16": True, "no": False, False: False}, {"fp16": "bf16", "fp8": "bf16"}),
    ),
    (("tf32", "fp8"), refused("this number format", "training.bf16: auto")),
    (("use_gradient_checkpointing",), same("training.gradient_checkpointing")),
    (("disable_gradient_checkpointing",), inverted("training.gradient_checkpointing")),
    (("gradient_checkpointing_kwargs",), Rule(checkpointing_options)),
    (("activation_offloading",), refused("moving activations to main memory", "training.gradient_checkpointing: true")),
    (("eval_strategy", "evaluation_strategy"), Rule(evaluation_strategy)),
    (("save_strategy",), switched_epochs("output.save_steps")),
    (("logging_strategy",), switched_epochs("output.logging_steps")),
    (("evals_per_epoch", "saves_per_epoch", "eval_on_start"), refused("counting in epochs", _EVERY)),
    (("early_stopping_steps",), same("training.early_stopping_patience")),
    (
        ("metric_for_best_model",),
        already(("eval_loss", "loss"), "the validation loss decides which checkpoint is best", "eval_loss"),
    ),
    (("greater_is_better",), already((False,), "the lower validation loss is the better one", "false")),
    (("random_seed", "random_state"), same("training.seed")),
    (("data_seed", "dataset_shuffle_seed", "shuffle_seed"), refused("a second seed", _ONE_SEED)),
    (("label_smoothing_factor",), same("training.label_smoothing")),
    (("neftune_noise_alpha", "noisy_embedding_alpha"), same("training.neftune_alpha")),
    (("loss_type",), already(("nll", "chunked_nll"), "the loss is the cross-entropy of the answers", "nll")),
    (("use_liger_kernel", "enable_liger_kernel", "liger_fused_linear_cross_entropy"), refused("Liger", _KERNELS)),
    (("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm"), refused("Liger", _KERNELS)),
    (("cut_cross_entropy", "plugins", "unsloth_lora_mlp"), refused("this add-on", _KERNELS)),
    (("torch_compile", "torch_compile_backend"), refused("compiling the model", "remove it")),
    (("deepspeed",), refused("DeepSpeed", "remove it: one process per device with accelerate")),
    (("fsdp", "fsdp_config", "fsdp_version"), refused("FSDP", "remove it: one process per device with accelerate")),
    (("auto_find_batch_size",), refused("searching a batch size", "training.micro_batch_tokens")),
    (("group_by_length", "length_column_name"), refused("ordering rows by length", "training.packing saves padding")),
    (("train_on_eos",), already(("turn",), "the end of every trained turn is trained", "turn")),
    (("roles_to_train",), Rule(trained_roles, "data")),
    (("dataloader_drop_last",), already((False,), _NO_TAIL, "false")),
    (("dataloader_prefetch_factor", "dataloader_persistent_workers"), neutral("training.dataloader_num_workers rules")),
    (("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), refused("another optimizer", "AdamW")),
    # --- lora
    (("lora_r", "lora_rank", "rank", "peft_lora_r"), same("lora.r")),
    (("lora_alpha", "peft_lora_alpha"), same("lora.alpha")),
    (("lora_dropout", "peft_lora_dropout"), same("lora.dropout")),
    (("lora_target_modules", "lora_target", "lora.target_modules"), Rule(target_modules, "lora")),
    (("lora_target_linear",), turns_on("lora.target_modules", "all-linear")),
    (
        ("lora_bias", "bias"),
        already(("none",), "adapters have no bias: trained ones would change the base", "none"),
    ),
    (("task_type", "lora_task_type"), already(("CAUSAL_LM",), "the model is a causal language model", "CAUSAL_LM")),
    (("init_lora_weights", "peft_init_lora_weights"), already((True,), "adapters start at zero", "true")),
    (("lora_fan_in_fan_out",), already((False,), "PEFT finds this from the layer", "remove it")),
    (("pissa_init", "loftq_config", "peft"), refused("this start of the adapters", _OTHER_ADAPTERS)),
    (("loraplus_lr_ratio", "loraplus_lr_embedding"), refused("LoRA+", _OTHER_ADAPTERS)),
    (("relora_steps", "relora", "relora_prune_ratio"), refused("ReLoRA", _OTHER_ADAPTERS)),
    (("lora_model_dir", "adapter_name_or_path"), refused("going on with another adapter", "merge it into the model")),
    # --- output and evaluation
    (("output_dir", "output_path"), same("output.dir")),
    (("load_best_model_at_end",), choice("output.final", {True: "best_val", False: "latest"})),
    (("per_device_eval_batch_size", "eval_batch_size"), same("evaluation.batch_size")),
    (("eval_max_new_tokens",), same("evaluation.max_new_tokens")),
    (("overwrite_output_dir",), refused("writing over another run", "another output.dir")),
    (("resume_from_checkpoint", "auto_resume_from_checkpoints"), Rule(resume)),
    (("save_safetensors",), already((True,), "weights are written as safetensors", "true")),
    (("save_only_model",), already((False,), "checkpoints are complete", "false")),
    (("plot_loss",), already((True,), "report.html draws the loss", "true")),
    (("report_to", "log_with"), Rule(trackers, "output")),
    (("use_wandb",), turns_on("output.trackers", ["wandb"])),
    (("use_tensorboard",), turns_on("output.trackers", ["tensorboard"])),
    (("use_mlflow",), turns_on("output.trackers", ["mlflow"])),
    (("use_trackio",), turns_on("output.trackers", ["trackio"])),
    (("use_comet",), refused("Comet", _TRACKERS)),
    (
        ("wandb_project", "wandb_entity", "wandb_name", "wandb_mode"),
        refused("a W&B setting in the configuration", _WANDB),
    ),
    (("wandb_run_id",), refused("choosing the run at W&B", "remove it: a resumed run goes on in its own")),
    (("wandb_watch", "wandb_log_model"), refused("sending weights or gradients to W&B", "remove it")),
    (("mlflow_tracking_uri", "mlflow_experiment_name"), refused("an MLflow setting in the configuration", _MLFLOW)),
    (("run_name", "logging_dir"), refused("a name or directory for a tracker", "output.dir names the run")),
    (("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), refused("pushing to the Hub", _REGISTRY)),
    (("logging_first_step", "disable_tqdm", "log_level", "include_num_input_tokens_seen"), neutral("only display")),
    (("ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"), neutral("only several processes need it")),
    (("local_rank", "debug", "gpu_memory_limit", "eval_table_size"), refused("this switch", "remove it")),
    (("strict",), neutral("every key is read or refused here")),
)


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for names, rule in (*METHOD_ROWS, *ROWS):
        for name in names:
            if name in table:
                raise AssertionError(f"{name} stands in the alias table twice")
            table[name] = rule
    return table


ALIASES: dict[str, Rule] = _table()
"""Other tool's key, or our dotted key whose values other tools write differently -> how it is read."""

ADAPTER = "adapter"
"""Axolotl's key for the method; empty, it means every weight."""

AXOLOTL_MARK = "base_model"
"""A flat file with this key is Axolotl's: without `adapter` it trains every weight."""

TRANSFORMERS_MARK = "model_name_or_path"
"""A flat file with this key is TRL's, transformers' or LLaMA-Factory's; they differ in what no adapter key means."""
