"""The monitor section: what counts as drift in production, over how many rows, and what of a log is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from halo_forge.config.section import PositiveInt, Section


class MonitorSection(Section):
    min_rows: PositiveInt = 100
    """Fewer logged rows give no verdict."""
    max_psi: Annotated[float, Field(gt=0)] = 0.25
    """Population stability index of lengths, languages or topics above which drift is reported."""
    max_rate_change: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Change of a rate (JSON-valid, empty, refusing, repeating, stopped answers, prompts far from all of the release's)
    above which drift is reported."""
    max_mmd: Annotated[float, Field(gt=0)] = 0.02
    """Squared maximum mean discrepancy of prompt vectors above which drift is reported; 0 is no difference."""
    false_alarm_rate: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Of windows in which nothing has changed, at most this share reports drift (Benjamini-Yekutieli over all
    checks)."""
    window_rows: PositiveInt = 1000
    """Rows that are judged together when a state is kept."""
    window_hours: Annotated[float, Field(gt=0)] | None = None
    """Judge what was logged in so many hours instead, by the rows' own time."""
    windows_to_alarm: PositiveInt = 1
    """Windows in a row that must drift before an alarm is raised. Two calm ones, below 0.7 of the threshold,
    clear it."""
    embedding: Literal["hashed", "minilm", "none"] = "hashed"
    """Vectors of prompts, fixed when a version is published: `hashed` character n-grams; `minilm` sentence embeddings
    (a package of 80 MB, about 30 ms a row); `none`."""
    store_texts: bool = False
    """Keep words and short examples of new topics in state, alerts and page. Otherwise no text of a log is kept."""
    max_regression: Annotated[float, Field(ge=0)] = 0.02
    """`monitor regress`: how much worse than at its release a metric may be: of a share so much, of others this part of
    the value."""

    @model_validator(mode="after")
    def _windows_hold_enough(self) -> MonitorSection:
        if self.window_hours is None and self.window_rows < self.min_rows:
            raise ValueError(
                f"window_rows ({self.window_rows}) is less than min_rows ({self.min_rows}): no window would be judged"
            )
        return self
