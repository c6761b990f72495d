"""The records that cross stage borders: small, versioned, on disk as JSON beside the files they describe.

Each record says what it was made from (`inputs`: name -> sha256), with which configuration and code. A stage reads
the records of the stages before it and nothing else of theirs, so every stage is a function from files to a file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["measured", "not_measured", "failed"]
Direction = Literal["higher", "lower", "none"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Method = Literal["lora", "dora", "qlora", "adapter", "full"]
LORA_METHODS: tuple[Method, ...] = ("lora", "dora", "qlora")
"""Methods whose result is a peft adapter."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Provenance(Record):
    """Where a record comes from. `inputs` maps a name (file, stage) to its sha256."""

    created_at: str
    code_version: str
    config_sha256: str
    libraries: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)


class Artifact(Record):
    schema_version: Literal[1] = 1
    provenance: Provenance


# ------------------------------------------------------------------------------------------------ data


class RowExample(Record):
    """Where something was found. `excerpt` is redacted and at most 120 characters."""

    file: str
    line: int
    excerpt: str


class Finding(Record):
    """One reason code and what was done with its rows. `kind` groups them: damage, mended, flag, policy, quality,
    duplicate, contamination, privacy."""

    code: str
    meaning: str
    kind: str
    action: str  # keep, fix, skip, quarantine
    rows: int
    examples: tuple[RowExample, ...] = ()


class DuplicatePair(Record):
    """`kept` and `dropped` are file:line. `similarity` is 1 for exact copies, else Jaccard or cosine."""

    kept: str
    dropped: str
    kind: Literal["exact", "near", "semantic"]
    similarity: float
    excerpt: str


class DuplicateReport(Record):
    """Rows dropped as copies. `across_sources` of them stand in another file than the copy that stays."""

    exact: int
    near: int
    semantic: int
    across_sources: int
    near_threshold: float | None
    semantic_threshold: float | None
    examples: tuple[DuplicatePair, ...] = ()


class ContaminationHit(Record):
    """A row that repeats a benchmark item. `overlap` is the share of the item's n-grams that stand in the row."""

    file: str
    line: int
    item: str
    kind: Literal["exact", "near", "ngram_13", "ngram_8"]
    overlap: float
    excerpt: str


class ContaminationReport(Record):
    """One benchmark against all training rows; counts are rows, each under its strongest kind."""

    benchmark: str
    items: int
    sha256: str
    exact: int
    near: int
    ngram_13: int
    ngram_8: int
    examples: tuple[ContaminationHit, ...] = ()


class SourceReport(Record):
    """What one input file turned out to be. read == kept + dropped; fixed rows are among the kept."""

    path: str
    sha256: str
    format: str
    read: int
    kept: int
    fixed: int
    dropped: int
    name: str = ""
    loss_weight: float = 1.0
    train_rows: int = 0
    train_tokens: int = 0
    train_supervised_tokens: int = 0


class SplitReport(Record):
    """One of train / validation / holdout. `conversations` and `examples` are paths relative to the run directory."""

    rows: int
    tokens: int
    supervised_tokens: int
    sha256: str
    conversations: str
    examples: str
    examples_sha256: str = ""


class PreparedData(Artifact):
    sources: tuple[SourceReport, ...]
    reasons: dict[str, int]  # reason code -> rows, over all dropped and fixed rows
    splits: dict[str, SplitReport]
    ledger: str
    model_name: str
    template_sha256: str
    tokenizer_sha256: str
    max_seq_length: int
    token_lengths: dict[str, int] = Field(default_factory=dict)  # min, p50, p95, max over kept rows
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    duplicates: DuplicateReport | None = None
    contamination: tuple[ContaminationReport, ...] = ()
    holdout_overlap: ContaminationReport | None = None  # training rows against those held out of the same files
    languages: dict[str, int] = Field(default_factory=dict)  # ISO 639-1 or "unknown" -> kept rows
    length_counts: dict[str, int] = Field(default_factory=dict)  # "64-127" tokens -> kept rows
    advice: str = ""
    prepare_time_s: float = 0.0


# ------------------------------------------------------------------------------------------------ train


class TrainedModel(Artifact):
    """`final_model` and the pointers are paths relative to the run directory. Losses are nats per supervised token."""

    model_name: str
    method: Method
    final_model: str
    final_step: int  # the optimizer step whose weights `final_model` holds
    weights_sha256: str
    num_steps: int
    num_epochs: float
    num_tokens: int
    num_supervised_tokens: int
    num_trainable_parameters: int
    num_parameters: int
    train_loss: float
    validation_loss: float | None
    best_validation_loss: float | None
    validation_by_source: dict[str, float] = Field(default_factory=dict)  # at the last validation
    best_val: str | None
    best_train: str | None
    latest: str
    stop_reason: Literal["finished", "max_steps", "early_stopping"]
    precision: Literal["float32", "bfloat16"]
    device: str
    attention: str
    train_time_s: float
    tokens_per_s: float
    peak_memory_bytes: int


# ------------------------------------------------------------------------------------------------ evaluate


class Measurement(Record):
    """One number with its evidence. `low`/`high` bound the stated confidence interval; n counts items.

    A metric that could not be computed keeps its place with value None and a status that says so: not measured is
    not zero and is not a pass.
    """

    metric: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    status: Status = "measured"
    slice: str = "all"
    direction: Direction = "higher"
    note: str | None = None


class Comparison(Record):
    """Base against tuned on the same items. `delta` is tuned - base; wins and losses count items that changed."""

    metric: str
    base: Measurement
    tuned: Measurement
    delta: Measurement
    wins: int = 0
    losses: int = 0


class SuiteReport(Record):
    """One prompt suite. `comparisons` are of its own items (slice "all") and of its groups ("group=NAME"); `failed_*`
    count answers. `answers` is a JSONL path relative to the run directory, one line an item:
    {"id", "kind", "group", "language", "prompt", "question", "base": {"text", "stopped", "num_tokens", "scores",
    "reason"}, "tuned": {...}}; of a `choice` item {"probabilities", "scores", "reason"}."""

    name: str
    sha256: str
    num_items: int
    kinds: dict[str, int]  # kind -> items
    failed_base: int
    failed_tuned: int
    answers: str
    comparisons: tuple[Comparison, ...]


class SuiteRun(Artifact):
    """One model's answers to prompt suites, with nothing to compare them with. A measurement's slice is "all" or
    "suite=NAME"."""

    model_name: str
    decoding: dict[str, float | int | str]
    confidence: float
    suites: tuple[SuiteReport, ...]
    measurements: tuple[Measurement, ...]
    time_s: float


class EvalReport(Artifact):
    """`answers` is a JSONL path relative to the run directory, one line an item:
    {"id", "prompt", "reference", "base": {"text", "stopped", "num_tokens", "scores"}, "tuned": {...}}."""

    num_items: int
    num_scored: int  # items with generated answers; fewer than num_items when evaluation.max_prompts cut them
    confidence: float
    decoding: dict[str, float | int | str]
    comparisons: tuple[Comparison, ...]
    answers: str
    weights_sha256: str
    holdout_sha256: str
    time_s: float
    suites: tuple[SuiteReport, ...] = ()


# ------------------------------------------------------------------------------------------------ gate


class RuleResult(Record):
    """`rule` is the rule in words, `evidence` the numbers it was held against."""

    rule: str
    metric: str
    verdict: Verdict
    reason: str
    evidence: str
    next_action: str | None = None


class GateDecision(Artifact):
    verdict: Verdict
    rules: tuple[RuleResult, ...]
    weights_sha256: str
    report_sha256: str


# ------------------------------------------------------------------------------------------------ publish


class Release(Artifact):
    name: str
    version: int
    path: str
    manifest_sha256: str
    verdict: Verdict
    forced: bool
