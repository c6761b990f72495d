"""Several sources as one training set: how many rows each gives, which ones, and what its lambda amounts to.

Rows. `plan_mix` turns shares into numbers of rows without ever taking a row twice, so the scarcest source limits the
others; `choose_rows` takes, of every source, the rows with the smallest content hashes. The choice is a function of
the rows alone: their order does not matter, and a source that grows keeps what was chosen of it. Choose before the
split, so that validation and holdout have the mix's proportions too.

Loss. Training minimises sum_t w_t nll_t / sum_t w_t over the supervised tokens of an optimizer step. Write W_i for the
sum of the w_t of source i as its rows ask for them, W for all of them, and L_i for the weighted mean loss of source i.
A `loss_weight` of lambda_i can mean two things:

    tokens    every w_t of the source is multiplied by lambda_i:
              L = sum_i lambda_i W_i L_i / sum_j lambda_j W_j
              With L_i summed over tokens, as the usual formula of the SFT loss has it, this is sum_i lambda_i L_i
              itself, over a constant. A large source counts more, and lambda = 1 everywhere is plain training.
    subsets   every w_t is multiplied by lambda_i W / W_i:
              L = sum_i lambda_i L_i / sum_j lambda_j
              Equal lambdas make sources equally important whatever their sizes.

`data.sources[].loss_weight` means the first, so that a source without one changes nothing; `token_weights` computes
both. Each identity is exact where one optimizer step sees all rows; over mini-batches the same expected gradient holds
up to the spread of a step's sum of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from halo_forge.config.schema import SourceEntry

Objective = Literal["tokens", "subsets"]
UNBALANCED = 4.0
"""A source whose share of the loss is this many times its lambda's, or this part of it, is pointed out."""


@dataclass(frozen=True, slots=True)
class MixPlan:
    """`rows[i]` of source i are to be taken. `notes` say what the plan had to give up."""

    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMix:
    """One source in the mix. `loss_frac` is its part in the objective, `subset_weight` the loss_weight by which its
    lambda would hold against the mean loss of each source (see `subsets` above), None without supervised tokens."""

    name: str
    num_available: int
    num_taken: int
    share: float | None
    loss_weight: float
    replay: bool
    train_rows: int
    train_tokens: int
    supervised_tokens: int
    loss_frac: float
    subset_weight: float | None


@dataclass(frozen=True, slots=True)
class MixReport:
    sources: tuple[SourceMix, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"sources": [asdict(source) for source in self.sources], "notes": list(self.notes)}

    def words(self) -> str:
        """A table for people, a line a source, and the notes below it."""
        total = sum(source.train_rows for source in self.sources)
        heads = ("source", "of", "taken", "train rows", "of rows", "tokens", "trained tokens", "lambda", "of loss")
        rows = [
            (
                source.name + (" (replay)" if source.replay else ""),
                f"{source.num_available:,}",
                f"{source.num_taken:,}",
                f"{source.train_rows:,}",
                f"{source.train_rows / total:.1%}" if total else "-",
                f"{source.train_tokens:,}",
                f"{source.supervised_tokens:,}",
                f"{source.loss_weight:g}",
                f"{source.loss_frac:.1%}",
            )
            for source in self.sources
        ]
        widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
        lines = [
            "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(cells))
            for cells in (zip(row, widths, strict=True) for row in (heads, *rows))
        ]
        return "\n".join([*lines, *self.notes])


# ------------------------------------------------------------------------------------------------ rows


def entry_name(entry: SourceEntry) -> str:
    """What reports call a source."""
    return entry.name or entry.path or entry.dataset or "source"


def plan_mix(
    num_available: Sequence[int],
    entries: Sequence[SourceEntry],
    temperature: float = 1.0,
    train_fracs: Sequence[float] | None = None,
) -> MixPlan:
    """How many rows of each source to take.

    num_available  usable rows per source (after cleaning and duplicates)
    temperature    shares become share ** (1 / temperature), then parts of one
    train_fracs    the part of a source's rows that will be trained on (1 for replay, else what the splits leave):
                   with it the shares hold among the training rows; None takes them as equal

    Sources without a share are taken whole, up to max_rows. Among those with one, the source that runs out first sets
    the total; a source that has no rows is told and left out of the shares.
    """
    limits = [min(rows, entry.max_rows or rows) for rows, entry in zip(num_available, entries, strict=True)]
    fracs = list(train_fracs) if train_fracs is not None else [1.0] * len(entries)
    taken = list(limits)
    notes = [
        f"{entry_name(entry)}: its share of the mix is void, because it has no usable row"
        for limit, entry in zip(limits, entries, strict=True)
        if entry.share is not None and not limit
    ]
    sharing = [at for at, entry in enumerate(entries) if entry.share is not None and limits[at] and fracs[at] > 0]
    if not sharing:
        return MixPlan(tuple(taken), tuple(notes))
    weights = np.array([float(entries[at].share or 0.0) for at in sharing]) ** (1.0 / temperature)
    parts = weights / weights.sum()
    trained = np.array([limits[at] * fracs[at] for at in sharing])
    totals = trained / parts
    scarcest = int(np.argmin(totals))
    wanted = parts * totals[scarcest] / np.array([fracs[at] for at in sharing])
    for number, at in enumerate(sharing):
        taken[at] = limits[at] if number == scarcest else min(limits[at], max(1, round(float(wanted[number]))))
    left = sum(limits[at] - taken[at] for at in sharing)
    if left:
        entry = entries[sharing[scarcest]]
        why = "its max_rows is reached" if limits[sharing[scarcest]] < num_available[sharing[scarcest]] else "runs out"
        notes.append(
            f"{entry_name(entry)} {'limits the mix: ' if why != 'runs out' else ''}{why} first, at "
            f"{limits[sharing[scarcest]]:,} rows: {left:,} rows of the other sources are not sampled"
        )
    return MixPlan(tuple(taken), tuple(notes))


def choose_rows(
    content_keys: np.ndarray, source_ids: np.ndarray, plan: MixPlan, candidates: np.ndarray | None = None
) -> np.ndarray:
    """bool [n]: the rows that the plan takes, of every source those with the smallest content hashes.

    content_keys  uint64 [n], the beginnings of the conversations' ids
    source_ids    int32 [n], numbers of the plan's sources; a negative one belongs to no source and is never chosen
    candidates    bool [n], rows that may be chosen; None means all. Each other row that is not chosen is not_sampled
    """
    usable = source_ids >= 0 if candidates is None else candidates & (source_ids >= 0)
    chosen = np.zeros(len(content_keys), bool)
    rows = np.flatnonzero(usable)
    num_rows = np.bincount(source_ids[rows], minlength=len(plan.rows))
    wanted = np.array(plan.rows, np.int64)
    whole = wanted >= num_rows
    chosen[rows[whole[source_ids[rows]]]] = True
    for source in np.flatnonzero(~whole & (wanted > 0)):
        own = rows[source_ids[rows] == source]
        order = np.argsort(content_keys[own], kind="stable")
        chosen[own[order[: wanted[source]]]] = True
    return chosen


# ------------------------------------------------------------------------------------------------ loss


def token_weights(
    loss_weights: Sequence[float], supervised_weights: Sequence[float], objective: Objective = "tokens"
) -> tuple[float, ...]:
    """What the loss weights of every source's tokens are to be multiplied by.

    loss_weights        lambda per source
    supervised_weights  W_i: the sum of the loss weights of the source's training tokens before lambda (the number of
                        its supervised tokens where all are 1)
    """
    if objective == "tokens":
        return tuple(float(weight) for weight in loss_weights)
    total = sum(supervised_weights)
    return tuple(
        weight * total / own if own > 0 else 0.0 for weight, own in zip(loss_weights, supervised_weights, strict=True)
    )


def mix_report(
    entries: Sequence[SourceEntry],
    num_available: Sequence[int],
    plan: MixPlan,
    train_rows: Sequence[int],
    train_tokens: Sequence[int],
    supervised_tokens: Sequence[int],
) -> MixReport:
    """Counts per source of what is really trained on, with each source's part in the loss."""
    lambdas = [entry.loss_weight for entry in entries]
    loss = [weight * tokens for weight, tokens in zip(lambdas, supervised_tokens, strict=True)]
    exact = token_weights(lambdas, supervised_tokens, "subsets")
    first = next((weight for weight in exact if weight > 0), 1.0)
    sources = tuple(
        SourceMix(
            name=entry_name(entry),
            num_available=num_available[at],
            num_taken=plan.rows[at],
            share=entry.share,
            loss_weight=entry.loss_weight,
            replay=entry.replay,
            train_rows=train_rows[at],
            train_tokens=train_tokens[at],
            supervised_tokens=supervised_tokens[at],
            loss_frac=loss[at] / sum(loss) if sum(loss) else 0.0,
            subset_weight=round(exact[at] / first, 6) if exact[at] > 0 else None,
        )
        for at, entry in enumerate(entries)
    )
    return MixReport(sources, (*plan.notes, *_balance_notes(sources)))


def _balance_notes(sources: Sequence[SourceMix]) -> list[str]:
    """Where lambdas were set and sizes outweigh them: the weights that would make them hold."""
    trained = [source for source in sources if source.subset_weight is not None]
    if len(trained) < 2 or all(source.loss_weight == trained[0].loss_weight for source in trained):
        return []
    total = sum(source.loss_weight for source in trained)
    factors = [source.loss_frac * total / source.loss_weight for source in trained]
    if max(factors) < UNBALANCED and min(factors) > 1 / UNBALANCED:
        return []
    exact = ", ".join(f"{source.name} {source.subset_weight:g}" for source in trained)
    return [
        "loss_weight multiplies tokens, so a source's size counts too; for lambdas that weigh the mean loss of each "
        f"source, set loss_weight: {exact}"
    ]
