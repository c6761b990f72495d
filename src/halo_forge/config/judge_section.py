"""The judge's section: which model compares answers, how it is reached, and how much it may be asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from halo_forge.config.section import PositiveInt, Section


class JudgeSection(Section):
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server (`https://HOST/v1`), to which held-out prompts and answers are then sent.
    Default: judge.judge_model is loaded here."""
    judge_model: str | None = None
    """The judging model: its name at the endpoint, or a directory or Hub id. Default: no judge."""
    api_key_env: str | None = None
    """Environment variable that holds the key. The key itself never stands in a configuration."""
    max_items: PositiveInt = 100
    """Held-out prompts whose two answers are compared; the ones with the smallest content hash."""
    num_controls: PositiveInt = 8
    """Prompts on which the judge must prefer the reference to each of four worthless answers."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for one reply."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Further attempts after a timeout, a refusal for too many requests, or a fault of the server."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Ask no faster than this."""
    max_reply_tokens: PositiveInt = 64
    """Longest reply of the judge."""

    @property
    def is_on(self) -> bool:
        return self.judge_model is not None

    @model_validator(mode="after")
    def _reachable(self) -> JudgeSection:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint must be a URL that begins with http:// or https://")
        if self.endpoint is not None and self.judge_model is None:
            raise ValueError("endpoint is given, and judge_model says nothing about which of its models judges")
        return self
