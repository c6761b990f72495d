"""Everything one training run works with, built once: model, optimizer, order, schedule, splits, fingerprint."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.artifacts import LORA_METHODS, PreparedData
from halo_forge.chat import Example, read_examples
from halo_forge.config.schema import Config
from halo_forge.domains.media import Media, counts_documents, inputs_of_step, open_media
from halo_forge.errors import ConfigError, ConfigProblem, TrainingError
from halo_forge.models.compute import Compute
from halo_forge.models.fast.compiled import compile_layers
from halo_forge.models.fast.decoder import FastDecoder, NotCovered
from halo_forge.models.fast.head import Softening
from halo_forge.models.machine import return_freed_memory
from halo_forge.models.weights import parameter_names
from halo_forge.runs import Notify, sha256_json
from halo_forge.train.attention import DOCUMENT_ATTENTION, set_training_attention
from halo_forge.train.batches import (
    Batch,
    Examples,
    MediaInputs,
    StepOrder,
    examples_to_batch,
    nothing_like,
    pack_by_tokens,
    step_batches,
)
from halo_forge.train.loss import Objective, autocast, fast_objective, model_objective
from halo_forge.train.methods import load_training_model
from halo_forge.train.neftune import with_noise
from halo_forge.train.optimizer import Schedule, make_optimizer, make_schedule
from halo_forge.train.processes import Processes, current_processes, share_out, step_cost
from halo_forge.train.sharding import check_shardable, shard
from halo_forge.train.watching.source_losses import LossCounter, LossSums

CPU_MICRO_BATCH_TOKENS = 1536
"""LoRA on a 135M model, two cores: as fast as 2048 (within 4 %, either way) with 0.25 GB less; 1024 are 7 % and 640
another 10 % slower (measured)."""


@dataclass(slots=True, kw_only=True)
class Session:
    config: Config
    directory: Path
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    start: list[torch.Tensor]  # the trained weights as they were, where l2_to_start pulls towards them
    parameter_names: dict[torch.nn.Parameter, str]
    order: StepOrder
    schedule: Schedule
    objective: Objective
    max_tokens: int | None  # per micro-batch; None = unpacked
    examples_per_batch: int
    train: Examples
    validation: Examples
    compute: Compute
    processes: Processes
    attention: str
    share_prefixes: bool
    fingerprint: str
    media: Media | None = None

    @property
    def media_inputs(self) -> MediaInputs | None:
        return self.media.inputs if self.media is not None else None

    @property
    def num_steps(self) -> int:
        return self.schedule.num_steps

    def batches_of(self, step: int) -> list[Batch]:
        """This process's micro-batches of one optimizer step."""
        examples = self.examples_of(step)
        shares = self.shares_of(examples)
        batches = step_batches(
            [examples[position] for position in shares[self.processes.rank]],
            max_tokens=self.max_tokens,
            examples_per_batch=self.examples_per_batch,
            share_prefixes=self.share_prefixes,
            trim=self.config.training.skip_unread,
            media_inputs=inputs_of_step(self.media, step) if self.media is not None else None,
        )
        if self.compute.shard:
            batches += [nothing_like(examples[0])] * (self._most_groups(examples, shares) - len(batches))
        if self.config.training.dataloader_pin_memory and self.compute.device.type == "cuda":
            return [batch.pin_memory() for batch in batches]
        return batches

    def examples_of(self, step: int) -> list[Example]:
        return [self.train[int(index)] for index in self.order.indices(step)]

    def shares_of(self, examples: Sequence[Example]) -> list[list[int]]:
        """Which of the examples each process works on."""
        width = self.model.config.get_text_config().hidden_size
        costs = [step_cost(len(example.input_ids), width) for example in examples]
        return share_out(costs, [prompt_tokens(example) for example in examples], self.processes.count)

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.max_tokens is None:
            size = self.examples_per_batch
            return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]
        return pack_by_tokens(lengths, self.max_tokens)

    def _most_groups(self, examples: Sequence[Example], shares: Sequence[Sequence[int]]) -> int:
        """Micro-batches of the process that has most: with a sharded model every one of them needs all processes."""
        return max(len(self._groups([len(examples[position].input_ids) for position in share])) for share in shares)

    def steps_from(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, micro-batches) in order; with worker threads, batches are built ahead of the loop."""
        workers = self.config.training.dataloader_num_workers
        if workers == 0:
            for step in range(first, self.num_steps):
                yield step, self.batches_of(step)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
            ahead = [pool.submit(self.batches_of, step) for step in range(first, min(first + workers, self.num_steps))]
            for step in range(first, self.num_steps):
                batches = ahead.pop(0).result()
                if step + workers < self.num_steps:
                    ahead.append(pool.submit(self.batches_of, step + workers))
                yield step, batches

    @torch.no_grad()
    def validation_loss(self, check: Callable[[], None] = lambda: None) -> LossSums | None:
        """nll over the validation split; None without rows. `check` may raise Interrupted before a micro-batch."""
        if not len(self.validation):
            return None
        examples = [self.validation[i] for i in range(len(self.validation))]
        shares = self.shares_of(examples)
        mine = [examples[position] for position in shares[self.processes.rank]]
        groups = self._groups([len(example.input_ids) for example in mine])
        batches = [examples_to_batch([mine[i] for i in group], media_inputs=self.media_inputs) for group in groups]
        if self.compute.shard:
            batches += [nothing_like(examples[0])] * (self._most_groups(examples, shares) - len(batches))
        counter = LossCounter()
        self.model.eval()
        self.objective.refresh()
        try:
            for batch in batches:
                if not dist.is_initialized():  # one process that leaves alone lets the others wait for it
                    check()
                batch = batch.to(self.compute.device)
                _, nll = self.objective.nll(batch, batch.weights)
                counter.add(batch, nll)
        finally:
            self.model.train()
        return counter.over_processes()


def prompt_tokens(example: Example) -> bytes:
    """What stands before the first trained token."""
    return example.input_ids[: int(np.flatnonzero(example.loss_weights)[0])].tobytes()


def examples_per_step(config: Config, num_processes: int) -> int:
    training = config.training
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * num_processes


def step_order(config: Config, num_examples: int, num_per_step: int) -> StepOrder:
    return StepOrder(num_examples=num_examples, examples_per_step=num_per_step, seed=config.training.seed)


def num_training_steps(config: Config, order: StepOrder) -> int:
    if config.training.max_steps is not None:
        return config.training.max_steps
    return max(1, math.ceil(config.training.num_train_epochs * order.steps_per_epoch - 1e-9))


def step_counts(config: Config, num_examples: int, num_processes: int = 1) -> tuple[int, int, float]:
    """(optimizer steps, examples in each, epochs) of a run."""
    order = step_order(config, num_examples, examples_per_step(config, num_processes))
    num_steps = num_training_steps(config, order)
    return num_steps, order.examples_per_step, num_steps / order.steps_per_epoch


def open_session(
    config: Config,
    directory: Path,
    prepared: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    compute: Compute,
    notify: Notify,
) -> Session:
    """Load the model, attach adapters, choose the attention and prove it. Raises TrainingError, ModelNotFound."""
    training, processes = config.training, current_processes()
    if compute.shard:
        check_shardable(config)
    train = read_examples(directory / prepared.splits["train"].examples)
    validation = read_examples(directory / prepared.splits["validation"].examples)
    if training.early_stopping and not len(validation):
        suggestion = "set data.validation_split or data.validation_file"
        problem = "early stopping needs validation rows"
        raise ConfigError([ConfigProblem(message=problem, where="training.early_stopping", suggestion=suggestion)])
    order = step_order(config, len(train), compute.examples_per_step or examples_per_step(config, processes.count))
    media = open_media(config, tokenizer)
    model = load_training_model(config, compute, tokenizer, notify)
    probe = examples_to_batch([_first_tokens(train[i % len(train)], 16 - 5 * i) for i in range(2)])
    objective, attention = choose_objective(model, config, compute, probe.to(compute.device), notify, media)
    if training.neftune_alpha is not None:
        objective = with_noise(objective, model, training.neftune_alpha)
    if compute.shard:
        shard(model, compute)
    model.train()
    packed = training.packing and attention != "unpacked" and not counts_documents(media)
    return Session(
        config=config,
        directory=directory,
        model=model,
        tokenizer=tokenizer,
        optimizer=make_optimizer(model.parameters(), training),
        parameter_names=parameter_names(model),
        order=order,
        schedule=make_schedule(training, config.learning_rate, num_training_steps(config, order)),
        start=[p.detach().clone() for p in model.parameters() if p.requires_grad] if training.l2_to_start else [],
        objective=objective,
        max_tokens=micro_batch_tokens(config, compute) if packed else None,
        examples_per_batch=1 if attention == "unpacked" else training.per_device_train_batch_size,
        train=train,
        validation=validation,
        compute=compute,
        processes=processes,
        attention=attention,
        share_prefixes=(
            training.prefix_sharing
            and not compute.shard  # every process must know how many micro-batches the others have
            and attention == DOCUMENT_ATTENTION
            and training.neftune_alpha is None
            and media is None
            and not drops_anything(model)
        ),
        fingerprint=training_fingerprint(config, prepared, compute),
        media=media,
    )


def choose_objective(
    model: PreTrainedModel | PeftModel,
    config: Config,
    compute: Compute,
    probe: Batch,
    notify: Notify,
    media: Media | None = None,
) -> tuple[Objective, str]:
    """(what a step minimises, the attention's name): through the written-out layers where they cover the model and are
    seen to agree with it, else through the model's own forward pass; with media as the domain computes it."""
    training = config.training
    if compute.recompute:
        recompute_activations(model)
    only = training.supervised_logits_only
    softening = Softening(label_smoothing=training.label_smoothing, kl_to_base=training.kl_to_base)
    if media is not None:
        through_domain = model_objective(model, compute.precision, softening=softening, media=media)
        return through_domain, media.attention if media.packs else "unpacked"
    if training.fast_layers and not compute.shard and config.model.attn_implementation in ("auto", "document"):
        try:
            decoder = FastDecoder.of(model, torch.bfloat16 if compute.precision == "bfloat16" else torch.float32)
        except NotCovered as reason:
            notify("note", {"text": f"transformers' own layers are used: {reason}"})
        else:
            return_freed_memory()  # the weights that joint matrices replaced, and what loading them took
            decoder.recompute, decoder.skip_unread = bool(compute.recompute), training.skip_unread
            with autocast(compute.device, compute.precision):
                agrees = decoder.agrees(model, probe.input_ids[0].split(probe.document_lengths))
            if agrees:
                if training.compile is True or (training.compile == "auto" and compute.device.type == "cuda"):
                    failed = compile_layers(decoder, probe.input_ids[0].split(probe.document_lengths), compute.device)
                    if failed is not None:
                        notify("note", {"text": f"the layers run uncompiled (slower on a GPU): {failed}"})
                return fast_objective(decoder, supervised_logits_only=only, softening=softening), DOCUMENT_ATTENTION
            notify("note", {"text": "transformers' own layers are used: the fast ones give other numbers here"})
    with autocast(compute.device, compute.precision):
        attention = set_training_attention(
            model.get_base_model() if isinstance(model, PeftModel) else model, config.model.attn_implementation, probe
        )
    if attention == "unpacked":
        notify("note", {"text": "this model cannot keep packed documents apart: every document runs alone (slower)"})
    through_model = model_objective(model, compute.precision, supervised_logits_only=only, softening=softening)
    return through_model, attention


def drops_anything(model: torch.nn.Module) -> bool:
    """Whether training draws dropout masks: documents would share theirs in a shared prefix."""
    attention = getattr(getattr(model, "config", None), "attention_dropout", 0.0) or 0.0
    return attention > 0 or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def recompute_activations(model: PreTrainedModel | PeftModel) -> None:
    """Without re-entrance: frozen embeddings then need no gradient of their own, and random numbers are replayed."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    # transformers renamed it in 5.x; the old name warns where the new one exists.
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def micro_batch_tokens(config: Config, compute: Compute) -> int:
    if config.training.micro_batch_tokens is not None:
        return config.training.micro_batch_tokens
    tokens = config.training.per_device_train_batch_size * config.data.max_seq_length
    return min(tokens, CPU_MICRO_BATCH_TOKENS) if compute.device.type == "cpu" else tokens


def training_fingerprint(config: Config, prepared: PreparedData, compute: Compute) -> str:
    """What must be equal for a checkpoint to be continued: data, template, tokenizer, model, method, precision, and how
    many examples a step takes. Cadence of logging and saving may change, and how many processes share a step."""
    training = config.training.model_dump(mode="json")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        training.pop(name)
    return sha256_json(
        {
            "data": {name: split.sha256 for name, split in sorted(prepared.splits.items())},
            "template": prepared.template_sha256,
            "tokenizer": prepared.tokenizer_sha256,
            "model": config.model.model_dump(mode="json"),
            "training": training,
            "examples_per_step": compute.examples_per_step or examples_per_step(config, current_processes().count),
            "learning_rate": config.learning_rate,
            "lora": config.lora.model_dump(mode="json") if config.training.method in LORA_METHODS else None,
            "adapter": config.adapter.model_dump(mode="json") if config.training.method == "adapter" else None,
            "precision": compute.precision,
            "device": compute.device.type,
            **(_media_settings(config) if "media" in prepared.provenance.inputs else {}),
        }
    )


def _media_settings(config: Config) -> dict[str, Any]:
    return {"audio": config.audio.model_dump(mode="json"), "vision": config.vision.model_dump(mode="json")}


def _first_tokens(example: Example, num_tokens: int) -> Example:
    """A short document for the packing proof; its targets do not matter, only that it has one."""
    if len(example.input_ids) < 2:
        raise TrainingError("a training example has fewer than two tokens", where=example.conversation_id)
    ids = example.input_ids[:num_tokens]
    weights = example.loss_weights[: len(ids)].copy()
    weights[1] = 1.0
    return Example(input_ids=ids, loss_weights=weights, conversation_id=example.conversation_id)


def use_all_cores() -> None:
    """torchrun sets OMP_NUM_THREADS=1 for its workers; share the cores evenly instead."""
    if dist.is_initialized() and os.environ.get("TORCHELASTIC_RUN_ID"):
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
