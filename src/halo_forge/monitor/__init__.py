"""Is the released model still answering the traffic it was measured on? Aggregates against aggregates; no torch.

production_log.py  a line becomes a row          log_lines.py   whole lines of a growing file
log_parts.py       rotation                      window.py      rows become counts and sums
topics.py          what nobody asked before      traffic.py     windows open and close
significance.py    p-values, false discoveries   drift.py       a window against the release
alarms.py          hysteresis                    state.py       the memory, and what a kill leaves of it
watch.py           a whole log at once           session.py     a log that goes on
regression.py      the released model measured again
"""

from __future__ import annotations

from halo_forge.monitor.records import DriftCheck, MonitorReport, Reference, RegressionReport
from halo_forge.monitor.session import WatchSession, follow, open_session
from halo_forge.monitor.watch import observe

__all__ = [
    "DriftCheck",
    "MonitorReport",
    "Reference",
    "RegressionReport",
    "WatchSession",
    "follow",
    "observe",
    "open_session",
]
