"""What to change when a run does not fit: every change planned again, with what it saves and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from halo_forge.config.schema import Config
from halo_forge.train.planning.planner import RunPlan

MIN_MICRO_BATCH_TOKENS = 128
SLOWDOWN_PER_HALVING = 0.08
"""Half the tokens in a micro-batch: smaller products, more passes over the weights (2048 to 1024, two cores)."""
CHANGES_TRAINING = 10.0
"""Costs from here on are not time: another result is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`settings`: dotted key -> value. cost orders changes: the share of time they add, or above CHANGES_TRAINING where
    they change what is trained. saves_bytes is of the largest phase; fits: this change alone is enough."""

    settings: dict[str, Any]
    words: str
    cost: float
    saves_bytes: int = 0
    fits: bool = False

    @property
    def arguments(self) -> str:
        """Ready to be pasted behind a command."""
        return " ".join(f"--set {key}={_yaml(value)}" for key, value in self.settings.items())


Replan = Callable[[Config], RunPlan]


def changes_that_help(config: Config, plan: RunPlan, replan: Replan) -> list[Change]:
    """Single changes that lower the peak or the disk, cheapest first; then, where none is enough by itself, the
    shortest run of them that is. Empty when everything fits with room to spare."""
    if plan.memory_fit in ("fits", "unknown") and plan.disk_fits:
        return []
    singles = [_tried(change, config, plan, replan) for change in _candidates(config, plan)]
    helpful = _worth_their_cost(sorted(singles, key=lambda change: change.cost))
    if any(change.fits for change in helpful):
        return helpful
    together = _together(helpful, config, plan, replan)
    return [*helpful, together] if together is not None else helpful


def cheapest_fix(changes: Sequence[Change]) -> str:
    """The arguments of the first change that is enough, or of all together, for an error's last line."""
    enough = [change for change in changes if change.fits]
    if enough:
        return enough[0].arguments
    return "a smaller model (model.name), or a machine with more memory"


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with other values at dotted keys, validated again."""
    values = config.to_dict()
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        values[section][key] = value
    return Config.model_validate(values)


def _candidates(config: Config, plan: RunPlan) -> Iterator[Change]:
    """In no order; the ones that cannot help are dropped later, because planning again shows that they save nothing."""
    training, lora, workload = config.training, config.lora, plan.workload
    if not training.supervised_logits_only:
        yield Change(settings={"training.supervised_logits_only": True}, words="the same numbers", cost=0.0)
    if config.evaluation.enabled and config.evaluation.batch_size > 1:
        size = max(1, config.evaluation.batch_size // 4)
        yield Change(
            settings={"evaluation.batch_size": size}, words="answers take longer; training is as fast", cost=0.01
        )
    if config.output.save_total_limit > 3:
        yield Change(settings={"output.save_total_limit": 3}, words="fewer checkpoints to go back to", cost=0.02)
    if training.packing:
        tokens, halvings = -(-workload.largest.num_tokens // 128) * 64, 1  # half, in whole blocks of 64
        while tokens >= max(MIN_MICRO_BATCH_TOKENS, workload.longest_tokens // 2) and halvings <= 3:
            cost = SLOWDOWN_PER_HALVING * halvings
            words = f"the same gradient, about {cost:.0%} slower"
            yield Change(settings={"training.micro_batch_tokens": tokens}, words=words, cost=cost)
            tokens, halvings = tokens // 2, halvings + 1
    elif training.per_device_train_batch_size > 1:
        half = training.per_device_train_batch_size // 2
        settings = {
            "training.per_device_train_batch_size": half,
            "training.gradient_accumulation_steps": training.gradient_accumulation_steps
            * -(-training.per_device_train_batch_size // half),
        }
        yield Change(settings=settings, words="the same step, about 10% slower", cost=0.1)
    if not plan.recompute:
        slower = 1 / 3 if training.method == "full" else 1 / 2
        words = f"the same numbers, about {slower:.0%} slower"
        yield Change(settings={"training.gradient_checkpointing": True}, words=words, cost=slower)
    if plan.precision == "float32" and plan.device == "cpu":
        words = "fewer digits, and this machine computes no faster with it"
        yield Change(settings={"training.bf16": True}, words=words, cost=1.0)
    yield from _other_trainings(config, plan, lora.r)


def _other_trainings(config: Config, plan: RunPlan, rank: int) -> Iterator[Change]:
    if config.training.method == "lora" and config.lora.dropout:
        words = "another training: no dropout on the adapters' inputs"
        yield Change(settings={"lora.dropout": 0.0}, words=words, cost=CHANGES_TRAINING)
    if config.training.method == "full":
        words = "another training: adapters instead of every weight (about ten times the learning rate)"
        yield Change(settings={"training.method": "lora"}, words=words, cost=CHANGES_TRAINING + 2)
    longest = plan.workload.longest_tokens
    if longest >= 2 * MIN_MICRO_BATCH_TOKENS:
        words = f"another training: rows of more than {longest // 2} tokens are left out (data.overlong)"
        settings = {"data.max_seq_length": longest // 2}
        yield Change(settings=settings, words=words, cost=CHANGES_TRAINING + 1)
    if config.training.method == "lora" and rank >= 16:
        words = "another training: adapters of a quarter of the rank"
        yield Change(settings={"lora.r": rank // 4}, words=words, cost=CHANGES_TRAINING + 3)


def _worth_their_cost(changes: Sequence[Change]) -> list[Change]:
    """Those that save something, and more than a cheaper value of the same keys."""
    kept: list[Change] = []
    for change in changes:
        rivals = [other.saves_bytes for other in kept if other.settings.keys() == change.settings.keys()]
        if change.saves_bytes > max([0, *rivals]):
            kept.append(change)
    return kept


def _tried(change: Change, config: Config, plan: RunPlan, replan: Replan) -> Change:
    changed = replan(with_settings(config, change.settings))
    saves = plan.peak_bytes - changed.peak_bytes
    if not plan.disk_fits and plan.memory_fit != "does not fit":
        saves = plan.disk.num_bytes - changed.disk.num_bytes
    fits = changed.fits and (plan.memory_fit != "tight" or changed.memory_fit == "fits")
    return Change(settings=change.settings, words=change.words, cost=change.cost, saves_bytes=saves, fits=fits)


def _together(helpful: Sequence[Change], config: Config, plan: RunPlan, replan: Replan) -> Change | None:
    """The cheapest changes one upon the other until the run fits; a later value of a key replaces an earlier one."""
    settings: dict[str, Any] = {}
    for change in helpful:
        settings |= change.settings
        combined = Change(settings=dict(settings), words="all of these together", cost=change.cost)
        tried = _tried(combined, config, plan, replan)
        if tried.fits:
            return tried
    return None


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
