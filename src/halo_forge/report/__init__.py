"""One page that tells a whole run: self-contained HTML, no script, nothing loaded from anywhere. No torch."""

from __future__ import annotations

from halo_forge.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
