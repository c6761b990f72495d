"""The gate's section: rules on measurements, and what must be measured at all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from halo_forge.config.section import PositiveInt, Section


class GateRule(Section):
    metric: str
    min: float | None = None
    """The tuned value is at least this."""
    max: float | None = None
    """The tuned value is at most this."""
    min_delta: float | None = None
    """The tuned value is better than the base's by at least this, in the metric's good direction."""
    max_regression: Annotated[float, Field(ge=0)] | None = None
    """Budget: the bad end of the interval of the change is at most this much worse, whatever gate.evidence is."""
    against: Literal["base", "released"] = "base"
    """What min_delta and max_regression compare with: the base model, or the version that is released."""
    slice: str = "all"
    """`all` items, one slice (`source=NAME`), or every slice of a kind (`each source`)."""
    required: bool = True
    """False: while it cannot be decided, the rule does not hold a PASS back. A FAIL still is one."""

    @model_validator(mode="after")
    def _has_a_bound(self) -> GateRule:
        if self.min is None and self.max is None and self.min_delta is None and self.max_regression is None:
            raise ValueError("a rule needs min, max, min_delta or max_regression")
        return self


class GateSection(Section):
    rules: list[GateRule] = [GateRule(metric="perplexity", max=20.0), GateRule(metric="perplexity", min_delta=0.0)]
    """All must hold. Default: perplexity of held-out answers under 20 and not worse than the base model's."""
    required_metrics: list[str] = []
    """Metrics that must be measured, whatever they are: without one the gate is INCONCLUSIVE."""
    min_items: PositiveInt = 20
    """With fewer measured items a rule is INCONCLUSIVE."""
    evidence: Literal["interval", "point"] = "interval"
    """`interval`: the whole confidence interval must be on the right side, else INCONCLUSIVE. `point`: the value."""
