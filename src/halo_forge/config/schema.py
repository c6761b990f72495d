"""The whole configuration: twelve sections, every key with its type, default, bounds and meaning.

Section and key names follow the documents the tool was asked for from; other tools' names for the same thing are
accepted through `aliases.py`. Cross-key rules stand in the section they protect. No torch, no I/O.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from halo_forge.artifacts import Method
from halo_forge.config.audio_section import AudioSection
from halo_forge.config.gate_section import GateRule as GateRule
from halo_forge.config.gate_section import GateSection as GateSection
from halo_forge.config.judge_section import JudgeSection
from halo_forge.config.learning_rates import default_learning_rate
from halo_forge.config.monitor_section import MonitorSection
from halo_forge.config.section import Fraction, PositiveInt, Section
from halo_forge.config.vision_section import VisionSection

RowFormat = Literal[
    "auto", "messages", "sharegpt", "instruction", "prompt_completion", "question_answer", "query_response", "text",
    "dolly", "openai_evals", "oasst", "segments", "preference", "xlam", "glaive", "bfcl", "speech", "prepared",
]  # fmt: skip


class ModelSection(Section):
    name: str = "smollm2-135m-instruct"
    """A Hub id, a local directory, or `smollm2-135m-instruct`, which also installs from the package registry."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    trust_remote_code: Literal[False] = False
    """Code from a model repository is never run; `true` is refused."""
    tool_format: Literal["template", "auto", "tool_call_tags"] = "template"
    """How tools and calls are written: as the model's own template does; `tool_call_tags` writes them into the system
    message and as `<tool_call>{...}</tool_call>`, in the published template too; `auto` does so only where the model's
    template leaves tools or calls out."""
    add_tokens: list[str] = []
    """Strings that become one new token each wherever they stand in a text. Their embeddings start as the mean of the
    others and are trained, under lora too."""
    add_special_tokens: list[str] = []
    """The same for special tokens: only the chat template writes them; in a text the string stays plain text."""
    attn_implementation: Literal["auto", "document", "sdpa", "eager"] = "auto"
    """`document` runs each packed document by itself; `auto` takes it wherever the model allows it. `sdpa` and
    `eager` use the model's own attention with a block mask: slower, for comparison."""


RowAction = Literal["keep", "fix", "skip", "quarantine", "fail"]


class SourceEntry(Section):
    """One source of a mix. Exactly one of `path` and `dataset`."""

    path: str | None = None
    """File, directory or pattern."""
    dataset: str | None = None
    """Short name or Hub id of a data set."""
    name: str | None = None
    """What reports call it. Default: the path or data set."""
    format: RowFormat = "auto"
    share: Annotated[float, Field(gt=0)] | None = None
    """Relative share of rows in the mix. Sources without one are taken whole."""
    max_rows: PositiveInt | None = None
    """At most this many rows are taken."""
    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the loss of its rows: the lambda of a weighted objective."""
    replay: bool = False
    """General data against forgetting: only ever trained on, never validated or held out."""

    @model_validator(mode="after")
    def _one_place(self) -> SourceEntry:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("a source has either a path or a dataset")
        return self


class DataSection(Section):
    train_file: str | list[str] | None = None
    """JSONL, JSON, CSV, Parquet or text file, directory or pattern, `-` for stdin, or a list of them."""
    dataset: str | None = None
    """Short name (`halo-forge sft datasets`) or Hub id of a data set."""
    sources: list[SourceEntry] | None = None
    """Several sources with shares, caps and loss weights, instead of train_file and dataset."""
    mix_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Flattens (above 1) or sharpens (below 1) the shares of data.sources: share ** (1 / temperature)."""
    format: RowFormat = "auto"
    """How rows are to be read; `auto` detects it per file and says what it found."""
    validation_file: str | None = None
    """Rows to validate on, instead of a share of the training rows."""
    holdout_file: str | None = None
    """Rows to evaluate on, instead of a share of the training rows."""
    validation_split: Fraction = 0.05
    """Share of rows, chosen by content hash, that is validated on while training."""
    holdout_split: Fraction = 0.1
    """Share of rows, chosen by content hash, that is frozen and only ever evaluated on."""
    split_by: str | None = None
    """What stays on one side of the split: a column, or `source`. Default: rows with the same prompt."""
    stratify_by: str | None = None
    """Split every value of this column (or `source`) in the same proportion."""
    max_samples: PositiveInt | None = None
    """Read at most this many rows."""
    max_seq_length: Annotated[int, Field(ge=8)] = 2048
    """Longest example in tokens."""
    overlong: Literal["drop", "truncate", "fail"] = "drop"
    """What happens to a longer one. `truncate` cuts the end and trains no token after the cut; all are counted."""
    on_bad_row: Literal["skip", "quarantine", "fail"] = "skip"
    """`skip` writes the row to the ledger and goes on, `quarantine` also keeps it in data/quarantine.jsonl; `fail`
    stops at the first."""
    policies: dict[str, RowAction] = {}
    """What happens to rows with a finding, by reason code (`halo-forge data rules` lists them): keep, fix, skip,
    quarantine or fail."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """More unusable rows than this share stop the run (over-long rows are policy, not damage)."""
    languages: list[str] | None = None
    """Languages that rows may be in (ISO 639-1: en, de, ...). Default: any; the report counts them."""
    near_duplicate_threshold: Annotated[float, Field(ge=0.5, le=1.0)] | None = 0.85
    """Rows whose word 5-grams overlap by this much (Jaccard) are near-duplicates; null looks for exact ones only."""
    semantic_duplicate_threshold: Annotated[float, Field(ge=0.5, le=1.0)] | None = None
    """Rows whose sentence embeddings (MiniLM) have this cosine similarity are duplicates; null does not embed."""
    decontaminate: list[str] = []
    """Benchmarks (a name known to `halo-forge data contamination`, a file or a directory) no training row may
    repeat. The holdout is always among them."""
    toxicity_model: str | None = None
    """A text-classification model (directory or Hub id) that scores answers beside the lexical toxicity rule."""
    system_prompt: str | None = None
    """Put before conversations that have no system message of their own."""
    train_on: (
        Literal["assistant", "last_assistant", "all"]
        | Annotated[list[Literal["assistant", "user", "system"]], Field(min_length=1)]
    ) = "assistant"
    """Which turns are trained, or a list of the roles whose turns are. `all` trains every token after the first."""
    reasoning: Literal["keep", "strip", "require"] = "keep"
    """Reasoning of assistant turns: rendered as the template does, left out, or every row must have it."""
    final_answer: Literal["keep", "hashes", "boxed", "sentence"] = "keep"
    """How answers end: `#### 18` (hashes), `\\boxed{18}` (boxed) or `The answer is: 18` (sentence). Answers in another
    of these are rewritten; `keep` leaves all rows as they are."""
    answer_instruction: bool = True
    """With final_answer: tell the model, behind each question whose answer ends in it, how to end."""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that prepare rows; 0 prepares in this one. Default: one per core for large inputs."""

    @property
    def names_rows(self) -> bool:
        """Whether anything is named to train on."""
        return bool(self.train_file or self.dataset or self.sources)

    @model_validator(mode="after")
    def _one_way_to_name_sources(self) -> DataSection:
        if self.sources and (self.train_file or self.dataset):
            raise ValueError("sources replaces train_file and dataset: give one or the other")
        return self

    @model_validator(mode="after")
    def _splits_leave_rows(self) -> DataSection:
        if self.validation_split + self.holdout_split >= 0.9:
            raise ValueError("validation_split + holdout_split must stay below 0.9: too little is left to train on")
        return self


class TrainingSection(Section):
    method: Method = "lora"
    """`lora` trains low-rank adapters, `dora` also their magnitudes, `qlora` adapters over a base in 4 bits, `adapter`
    bottleneck layers, `full` every weight (or those of training.trainable)."""
    trainable: list[str] | None = None
    """With method full: the weights that are trained, the rest stays as it is. Names and globs of modules
    (`lm_head`, `norm`, `*_proj`), layers by number (`layers.28-29`, `layers.last_2`), or `re:` and a regular
    expression from the start of a weight's name. Default: all."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps; overrides num_train_epochs."""
    per_device_train_batch_size: PositiveInt = 2
    """Examples per device in one micro-batch of an unpacked step."""
    gradient_accumulation_steps: PositiveInt = 16
    """One optimizer step sees per_device_train_batch_size x gradient_accumulation_steps x devices examples."""
    packing: bool = True
    """Regroup the examples of one optimizer step into micro-batches of at most micro_batch_tokens tokens. The step
    sees the same examples and has the same gradient; documents never attend to each other."""
    micro_batch_tokens: Annotated[int, Field(ge=8)] | None = None
    """Tokens per packed micro-batch. Default: per_device_train_batch_size x max_seq_length, at most 1536 on CPU."""
    supervised_logits_only: bool = True
    """Compute vocabulary logits only where a target is trained. Same loss and gradient; false computes them all."""
    skip_unread: bool = True
    """Leave out what no trained token depends on: the end of a document after the last one, and in the last layer the
    positions that predict none. Same loss and gradient."""
    prefix_sharing: bool = True
    """Compute what documents of a micro-batch begin with once (system prompts, few-shot examples, several answers to
    one prompt), where it saves enough and nothing is dropped out. Same loss and gradient."""
    fast_layers: bool = True
    """Layers with written-out gradients for Llama-like models, once they are seen to agree with transformers' own.
    Same loss and gradient up to rounding; false runs transformers' layers."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the repeated part of the fast layers (torch.compile): a minute at the start, fewer passes over memory.
    Same loss and gradient up to rounding. `auto` does it on a GPU; where compiling fails the run says so and goes
    on."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak rate. Default by method and by the size that model.name tells, see `config show`: 5e-5 up to 3B
    parameters, 2e-5 up to 14B (and where the name tells nothing), 1e-5 beyond; ten times that for adapters."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The schedule ends at this share of the peak."""
    warmup_ratio: Fraction = 0.03
    """Share of all steps with a linearly rising rate."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps with a rising rate; overrides warmup_ratio."""
    optimizer: Literal["adamw", "adafactor", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """`adamw` in one fused pass; `adafactor` keeps row and column sums instead of second moments and no first ones; the
    others are bitsandbytes' (the `quantised` extra)."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Decoupled; applied to matrices, not to norms and biases."""
    l2_to_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pull every trained weight towards where it started, as weight decay pulls towards zero. Against forgetting; keeps
    a copy of the trained weights."""
    kl_to_base: Annotated[float, Field(ge=0)] = 0.0
    """Add this times KL(base || model) at trained positions, the base being the model without its adapter. Against
    forgetting; a second forward pass."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that goes to all tokens alike."""
    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Uniform noise on the embeddings while training, alpha / sqrt(tokens x width) high (NEFTune); 5 is usual."""
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null turns clipping off."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16 over float32 master weights. `auto` measures whether this machine is faster with it."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, a third (full) to a half (lora) more time. `auto` does
    it only where keeping them would not fit into the memory that is free."""
    preflight: bool | Literal["overfit"] = True
    """Before the first step check the masks of the first rows and try the largest micro-batch (memory, time, a
    gradient for every trained tensor). `overfit` also learns one row by heart and looks whether the model then stops.
    The run's numbers are the same either way."""
    eval_steps: PositiveInt = 250
    """Validate every so many steps, and at the end."""
    early_stopping: bool = False
    early_stopping_patience: PositiveInt = 3
    """Validations in a row without improvement before the run stops."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """A validation loss must fall by more than this to count as an improvement."""
    max_nonfinite_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient is not finite (each is skipped) before the run stops."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Threads that build batches ahead; 0 builds them in the loop (required on Strix Halo)."""
    dataloader_pin_memory: bool = False
    """Page-locked batches for faster copies to a GPU (must be off on Strix Halo)."""
    seed: Annotated[int, Field(ge=0)] = 42

    @model_validator(mode="after")
    def _settings_fit(self) -> TrainingSection:
        if self.kl_to_base and self.method == "full":
            raise ValueError(
                "training.kl_to_base needs the base model, which full training changes: take an adapter, or "
                "training.l2_to_start"
            )
        if self.max_steps is not None and self.warmup_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is more than max_steps ({self.max_steps})")
        return self


class LoraSection(Section):
    r: PositiveInt = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Adapters are scaled by alpha / r."""
    dropout: Fraction = 0.05
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""
    exclude_modules: list[str] = []
    """Names among target_modules that get none."""
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = None
    """Numbers of the layers that get adapters, from 0. Default: all."""
    rank_pattern: dict[str, PositiveInt] = {}
    """Other ranks than r, by module name or a regular expression that ends in one."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Other alphas than alpha, by module name or a regular expression that ends in one."""
    use_rslora: bool = False
    """Scale adapters by alpha / sqrt(r) instead, which keeps high ranks (64 and more) learning (rsLoRA)."""
    modules_to_save: list[str] = []
    """Further modules that are trained whole and saved with the adapter, for instance `lm_head` or `embed_tokens`."""


class AdapterSection(Section):
    bottleneck_size: PositiveInt | None = None
    """Width of the bottleneck. Default: hidden size / reduction_factor."""
    reduction_factor: Annotated[float, Field(ge=1)] = 16.0
    """Hidden size over bottleneck width, where bottleneck_size is not given."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Non-linearity between down- and up-projection."""
    after_attention: bool = False
    """A second adapter after the attention of each layer (Houlsby), not only after its MLP (Pfeiffer)."""


class OutputSection(Section):
    dir: str = "models/sft"
    save_steps: PositiveInt = 500
    """Checkpoint every so many steps, at every best validation, and at the end."""
    save_total_limit: PositiveInt = 3
    """Checkpoints to keep; best_val, best_train and latest always stay."""
    logging_steps: PositiveInt = 10
    """Steps between lines on the console and in training_log.json; metrics.jsonl has every step."""
    final: Literal["best_val", "latest"] = "best_val"
    """Which weights become final_model/."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Boards of other tools that get a copy of metrics.jsonl while training."""


class EvaluationSection(Section):
    enabled: bool = True
    max_prompts: PositiveInt | None = None
    """Generate answers for at most this many holdout rows (all of them count for perplexity)."""
    max_new_tokens: PositiveInt = 256
    batch_size: PositiveInt = 16
    json_schema: str | None = None
    """A JSON Schema file that answers must satisfy."""
    regex: str | None = None
    """A regular expression that should be found in answers."""
    scorers: list[str] = []
    """Own metrics, each `path/to/file.py:function`: the file's code is run."""
    slices: bool | list[str] = True
    """Also compare by source, row label and length; a list names which."""
    suites: list[str] = []
    """Prompt suites that base and tuned answer too: names that `halo-forge suites list` shows, or JSONL files."""
    benchmarks: list[str] = []
    """Benchmarks that both run, whole: of `halo-forge bench list`, or tasks of lm-eval. Rows as for `bench run`."""
    self_consistency: Annotated[int, Field(ge=2, le=64)] | None = None
    """Also sample this many answers a prompt, where the reference has a final number, and score their most frequent
    number (temperature 0.7). Default: greedy answers only."""
    sample_prompts: Annotated[int, Field(ge=0)] = 3
    """Validation prompts that are answered at every validation, kept in samples.jsonl; 0 answers none."""
    sample_tokens: PositiveInt = 48
    """Longest of these answers in tokens."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000


class PublishSection(Section):
    enabled: bool = True
    """`halo-forge run` publishes a passing model; false stops after the gate."""
    name: str | None = None
    """Model name in the registry. Default: the name of output.dir."""
    registry: str = "models/registry"
    """Directory of the registry."""
    force: bool = False
    """Publish without a PASS; the version is marked as forced."""


class Config(Section):
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    lora: LoraSection = LoraSection()
    adapter: AdapterSection = AdapterSection()
    audio: AudioSection = AudioSection()
    vision: VisionSection = VisionSection()
    output: OutputSection = OutputSection()
    evaluation: EvaluationSection = EvaluationSection()
    judge: JudgeSection = JudgeSection()
    gate: GateSection = GateSection()
    publish: PublishSection = PublishSection()
    monitor: MonitorSection = MonitorSection()

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, with the default by method and model size."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        return default_learning_rate(self.training.method, self.model.name)[0]

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
