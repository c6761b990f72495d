"""How likely a difference this large is where there is none: two-sided p-values for two models on the same items.

yes/no scores    McNemar's test in its exact form: of the items that changed, as many won as lost, by the binomial
everything else  the paired bootstrap, inverted: p is the level at which the reported interval of the difference (see
                 `statistics.percentile_interval`, t-widened) would touch 0. So p < 0.05 says the same as a 95 %
                 interval on one side of 0, and no p-value is below what the number of resamples can show.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MCNEMAR = "McNemar exact"
BOOTSTRAP = "paired bootstrap"
SERIES_END = 1e-17
NORMAL = NormalDist()


def mcnemar_p_value(num_won: int, num_lost: int) -> float:
    """Twice the binomial tail of the rarer outcome at one half, at most 1; 1 where nothing changed. Exact: sums of
    whole numbers, divided once (McNemar 1947, in the form of Fagerland, Lydersen and Laake 2013, section 2)."""
    changed, rarer = num_won + num_lost, min(num_won, num_lost)
    tail = term = 1
    for k in range(1, rarer + 1):
        term = term * (changed - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_p_value(differences: npt.NDArray[np.float64], n: int) -> float | None:
    """From bootstrap replicates [R] of the difference over n >= 2 items; None where one is not a number."""
    if not np.isfinite(differences).all():
        return None
    ties = 0.5 * float((differences == 0).sum())
    beyond = min(float((differences > 0).sum()), float((differences < 0).sum())) + ties
    reach = -NORMAL.inv_cdf(min((beyond + 1) / (len(differences) + 1), 0.5))
    return student_two_sided(reach * math.sqrt((n - 1) / n), n - 1)


def student_two_sided(t: float, degrees: int) -> float:
    """P(|T| >= t) for Student's t with a whole number of degrees of freedom, by its finite series (Abramowitz and
    Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(theta) ** 2
    is_odd = degrees % 2
    term = math.cos(theta) if is_odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
        if term < SERIES_END:
            break
    inside = (theta + math.sin(theta) * total) * 2 / math.pi if is_odd else math.sin(theta) * total
    return min(1.0, max(0.0, 1.0 - inside))
