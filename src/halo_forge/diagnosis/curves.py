"""Lines of metrics.jsonl become series of numbers, and the little statistics that the rules share.

Axes: N points of a series. Losses are nats per supervised token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """steps int64 [N], strictly rising; values float64 [N], all finite."""

    steps: NDArray[np.int64]
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def up_to(self, step: int) -> Series:
        end = int(np.searchsorted(self.steps, step, side="right"))
        return Series(self.steps[:end], self.values[:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """`loss` and `sources` hold applied steps only; `nonfinite_steps` are the others."""

    last_step: int
    loss: Series
    grad_norm: Series
    learning_rate: Series
    supervised_tokens: Series
    nonfinite_steps: tuple[int, ...]
    validation: Series
    sources: Mapping[str, Series]
    validation_sources: Mapping[str, Series]


class _Points:
    """Points of one series while lines are read. A step that comes again, or late, is from a damaged file: left out."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def add(self, step: int, value: Any) -> None:
        if is_finite(value) and (not self.steps or step > self.steps[-1]):
            self.steps.append(step)
            self.values.append(float(value))

    def series(self) -> Series:
        return Series(np.array(self.steps, dtype=np.int64), np.array(self.values, dtype=np.float64))


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_step(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def curves_of(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """Series of every kind of number. Lines of other kinds, and fields that are not numbers, are passed over."""
    names = ("loss", "grad_norm", "learning_rate", "num_supervised_tokens")
    train = {name: _Points() for name in names}
    validation = _Points()
    sources: dict[str, _Points] = {}
    validation_sources: dict[str, _Points] = {}
    nonfinite: list[int] = []
    last = 0
    for line in lines:
        step, kind = line.get("step"), line.get("kind")
        if not is_step(step) or kind not in ("train", "validation"):
            continue
        last = max(last, step)
        if kind == "validation":
            validation.add(step, line.get("loss"))
            _add_sources(validation_sources, step, line.get("by_source"))
            continue
        train["learning_rate"].add(step, line.get("learning_rate"))
        if not line.get("applied", True) or not is_finite(line.get("loss")):
            nonfinite.append(step)
            continue
        for name in ("loss", "grad_norm", "num_supervised_tokens"):
            train[name].add(step, line.get(name))
        _add_sources(sources, step, line.get("by_source"))
    return Curves(
        last_step=last,
        loss=train["loss"].series(),
        grad_norm=train["grad_norm"].series(),
        learning_rate=train["learning_rate"].series(),
        supervised_tokens=train["num_supervised_tokens"].series(),
        nonfinite_steps=tuple(dict.fromkeys(nonfinite)),
        validation=validation.series(),
        sources={name: points.series() for name, points in sources.items()},
        validation_sources={name: points.series() for name, points in validation_sources.items()},
    )


def _add_sources(series: dict[str, _Points], step: int, by_source: Any) -> None:
    for name, value in by_source.items() if isinstance(by_source, Mapping) else ():
        if isinstance(value, Mapping) and value.get("num_supervised_tokens", 1):
            series.setdefault(str(name), _Points()).add(step, value.get("loss"))


# ---------------------------------------------------------------------------------------------- statistics


def fall_between(before: Floats, after: Floats) -> tuple[float, float]:
    """(mean before - mean after, standard error of it). A trend inside a window only makes the error larger."""
    error = math.sqrt(_squared_error(before) + _squared_error(after))
    return float(before.mean() - after.mean()), error


def _squared_error(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.inf


def warmup_end(curves: Curves) -> int:
    """The first step at the highest rate so far: what comes before is warm-up. 0 where no rate is known."""
    rates = curves.learning_rate
    return int(rates.steps[np.argmax(rates.values >= 0.99 * rates.values.max())]) if len(rates) else 0


def trailing_medians(values: Floats, window: int) -> Floats:
    """[N]: median of up to `window` values before each one; NaN for the first."""
    medians = np.full(len(values), np.nan)
    for index in range(1, min(window, len(values))):
        medians[index] = np.median(values[:index])
    if len(values) > window:
        medians[window:] = np.median(np.lib.stride_tricks.sliding_window_view(values[:-1], window), axis=1)
    return medians
