"""Alarms with hysteresis: one threshold raises, a lower one clears, and each must be seen in several windows in a row.

Without that a rate that sits at its threshold would ring in every other window. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halo_forge.config.monitor_section import MonitorSection
from halo_forge.monitor.records import Alarm, DriftCheck

CALM_FRACTION = 0.7
WINDOWS_TO_CLEAR = 2


def next_alarms(
    alarms: Mapping[str, Alarm], window: int, checks: Sequence[DriftCheck], limits: MonitorSection
) -> tuple[dict[str, Alarm], tuple[str, ...], tuple[str, ...]]:
    """(alarms after this window, names raised by it, names cleared by it). A check that this window could not make
    leaves its alarm as it is."""
    after, raised, cleared = dict(alarms), [], []
    for check in checks:
        before = after.get(check.name, Alarm(name=check.name))
        alarm = _next(before, window, check, limits)
        after[check.name] = alarm
        if alarm.is_on and not before.is_on:
            raised.append(check.name)
        if before.is_on and not alarm.is_on:
            cleared.append(check.name)
    return after, tuple(raised), tuple(cleared)


def _next(alarm: Alarm, window: int, check: DriftCheck, limits: MonitorSection) -> Alarm:
    is_calm = check.statistic < CALM_FRACTION * check.threshold
    num_drifted = alarm.num_drifted + 1 if check.drifted else 0
    num_calm = alarm.num_calm + 1 if is_calm else 0
    counts = {"num_drifted": num_drifted, "num_calm": num_calm}
    if not alarm.is_on and num_drifted >= limits.windows_to_alarm:
        return alarm.model_copy(update={**counts, "is_on": True, "since_window": window})
    if alarm.is_on and num_calm >= WINDOWS_TO_CLEAR:
        return alarm.model_copy(update={**counts, "is_on": False, "since_window": None})
    return alarm.model_copy(update=counts)
