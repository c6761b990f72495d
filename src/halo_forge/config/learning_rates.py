"""The default peak learning rate, by method and model size, and the reason in words."""

from __future__ import annotations

import re

from halo_forge.artifacts import Method

_BILLION = 10**9
FULL_RATES = ((3 * _BILLION, 5e-5), (14 * _BILLION, 2e-5), (None, 1e-5))
"""(models of at most so many parameters, peak rate of a full fine-tune). Practice for 0.5B-3B, 7B, and up to 70B."""
UNKNOWN_SIZE_RATE = 2e-5
"""Where the name tells no size: that of a 7B model, which a small one survives, too."""
ADAPTER_FACTOR = 10
"""Adapters take about ten times the rate of the full model: 1e-4 to 5e-4 for 1e-5 to 5e-5."""

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


def num_parameters_in_name(model_name: str) -> int | None:
    """Parameters as a model's name tells them: `Qwen2.5-7B` 7e9, `Mixtral-8x7B` 56e9, `smollm2-135m` 135e6. Of several
    the largest counts (`30B-A3B` has 3B active ones); None where the last part of the name holds none."""
    last = model_name.replace("\\", "/").rstrip("/").rpartition("/")[2].replace("_", "-")
    sizes = [
        int(times or 1) * float(number) * (_BILLION if unit in "bB" else 10**6)
        for times, number, unit in _SIZE.findall(last)
    ]
    return round(max(sizes)) if sizes else None


def default_learning_rate(method: Method, model_name: str) -> tuple[float, str]:
    """(peak rate, why): the why is shown as the value's origin."""
    size = num_parameters_in_name(model_name)
    if size is None:
        rate, which = UNKNOWN_SIZE_RATE, "as for 7B; model.name tells no size"
    else:
        limit, rate = next((limit, rate) for limit, rate in FULL_RATES if limit is None or size <= limit)
        beyond = max(limit for limit, _ in FULL_RATES if limit is not None)
        which = f"above {_shown(beyond)}" if limit is None else f"up to {_shown(limit)}"
        which += f"; model.name says {_shown(size)}"
    if method != "full":
        rate = round(rate * ADAPTER_FACTOR, 12)
    return rate, f"default for {method} {which}"


def _shown(size: int) -> str:
    return f"{size / _BILLION:g}B" if size >= _BILLION else f"{size / 10**6:g}M"
