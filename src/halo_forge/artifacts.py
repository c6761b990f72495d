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
    not zero and is not a pass. `slice` is "all", or "source=NAME", "domain=NAME", "prompt_length=short" and the like.
    `subsampled`: fewer items than there are were measured, by choice; such a number never decides a gate alone.
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
    standard_error: float | None = None
    subsampled: bool = False


class Comparison(Record):
    """Base against tuned on the same items. `delta` is tuned - base; wins and losses count items that changed.

    `p_value` is two-sided, of no difference between the two, by the named `test`. A comparison of a slice carries the
    slice in all three measurements, and stands beside the one of all items.
    """

    metric: str
    base: Measurement
    tuned: Measurement
    delta: Measurement
    wins: int = 0
    losses: int = 0
    p_value: float | None = None
    test: str | None = None  # "McNemar exact", "paired bootstrap"

    @property
    def slice(self) -> str:
        return self.delta.slice


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
    """`answers` and `flips` are JSONL paths relative to the run directory. `answers` has one line an item:
    {"id", "prompt", "reference", "slices", "base": {"text", "stopped", "num_tokens", "scores"}, "tuned": {...}};
    `flips` one for each item whose yes/no score changed: {"id", "metric", "outcome": "won" or "lost", "line": of
    `answers`, from 1}. `notes` says what was left out and why, for instance slices with too few items."""

    num_items: int
    num_scored: int  # items with generated answers; fewer than num_items when evaluation.max_prompts cut them
    confidence: float
    decoding: dict[str, float | int | str]
    comparisons: tuple[Comparison, ...]
    answers: str
    weights_sha256: str
    holdout_sha256: str
    time_s: float
    flips: str = ""
    notes: tuple[str, ...] = ()
    suites: tuple[SuiteReport, ...] = ()

    @property
    def overall(self) -> tuple[Comparison, ...]:
        """The comparisons over all items; those of slices are left out."""
        return tuple(row for row in self.comparisons if row.slice == "all")


class JudgeReport(Artifact):
    """Pairs that a judging model decided the same way in both orders: `wins` of the tuned model, `losses`; all else is
    `ties`, or `unusable` without a verdict that can be read. `controls`: kind of worthless answer -> how often of
    `num_controls` the reference was preferred. Tokens are what the server counted, `num_requests` this time's."""

    endpoint: str | None  # None: loaded in the process
    judge_model: str
    comparison: Comparison
    wins: int
    losses: int
    ties: int
    unusable: int
    controls: dict[str, int]
    num_controls: int
    prompt_tokens: int
    completion_tokens: int
    num_requests: int
    weights_sha256: str

    def words(self) -> str:
        found = self.comparison.tuned
        cost = f"{self.num_requests} requests, {self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        if found.value is None:
            return f"the judge is excluded from the gate: {found.note} ({cost})"
        return (
            f"judged by {self.judge_model}: tuned wins {self.wins}, base {self.losses}, {self.ties} ties, "
            f"{self.unusable} without a verdict ({cost})"
        )


# ------------------------------------------------------------------------------------------------ gate


class ReleasedComparison(Record):
    """This run against a released version on the same items: in each comparison `base` is the released version.

    `version` None: no other version is released yet. `problem`: why a version could not be compared with.
    """

    name: str
    version: int | None
    manifest_sha256: str = ""
    comparisons: tuple[Comparison, ...] = ()
    problem: str | None = None


Cause = Literal[
    "held", "below", "above", "no_gain", "regressed", "across", "too_few", "not_measured", "failed", "broken",
    "not_finite", "subsampled", "no_slice", "no_release", "not_comparable", "no_direction",
]  # fmt: skip
"""Why a rule got its verdict: `held` is a PASS; `below`, `above`, `no_gain` and `regressed` are a FAIL (`regressed`
also while the evidence is thin); the others leave it undecided."""


class RuleResult(Record):
    """`rule` is the rule in words, `evidence` the numbers it was held against. `margin` is how far inside (0 and above)
    or outside (below 0) the limit the deciding number is, in the metric's unit. `blocking` False: while it is
    INCONCLUSIVE this rule does not hold a PASS back. `command` is what to type for `next_action`."""

    rule: str
    metric: str
    verdict: Verdict
    reason: str
    evidence: str
    next_action: str | None = None
    slice: str = "all"
    cause: Cause | None = None
    margin: float | None = None
    blocking: bool = True
    command: str | None = None

    @property
    def holds_back(self) -> bool:
        """Whether the verdict of the gate cannot be PASS because of this rule."""
        return self.verdict == "FAIL" or (self.verdict == "INCONCLUSIVE" and self.blocking)


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
