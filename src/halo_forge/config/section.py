"""What all sections of the configuration have in common: strict, frozen, documented keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, field_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _exactly(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Whole numbers from 2**53 on are rounded where a number with a fraction may stand; that is told, not done."""
        kept = handler(value)
        if type(value) is int and type(kept) is float and kept != value:
            raise ValueError("a whole number of more than 15 digits cannot be kept exactly")
        return kept
