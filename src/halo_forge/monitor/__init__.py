"""Is the released model still answering the traffic it was measured on? Aggregates against aggregates; no torch."""

from __future__ import annotations

from halo_forge.monitor.records import DriftCheck, MonitorReport, Reference
from halo_forge.monitor.watch import observe

__all__ = ["DriftCheck", "MonitorReport", "Reference", "observe"]
