"""One chat completion at a time from an OpenAI-compatible server, over the standard library's HTTP.

Tried again with growing waits: no connection, a timeout, 408, 409, 425, 429 (after the server's Retry-After) and 5xx,
and a body that is no completion. Anything else is an error at once. Redirects are not followed: the key must not travel
to another host. The key is read from the environment and stands in no message, log or file.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from halo_forge.config.judge_section import JudgeSection
from halo_forge.errors import HaloForgeError, UsageError

MAX_REPLY_BYTES = 1_000_000
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
AGAIN = frozenset({408, 409, 425, 429})


class JudgeUnreachable(HaloForgeError):
    """The judge did not answer after all attempts, or refused for good. What was answered is kept."""


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    prompt_tokens: int
    completion_tokens: int


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(slots=True)
class JudgeClient:
    """`sleep` and `now` are the clock, replaced in tests that must not wait. `num_attempts` counts what was sent."""

    settings: JudgeSection
    check: Callable[[], None] = lambda: None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    num_attempts: int = 0
    _next_at: float = field(default=0.0)

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Raises JudgeUnreachable, UsageError (no key), Interrupted through `check`."""
        request = self._request(messages)
        problem = ""
        for attempt in range(self.settings.max_retries + 1):
            self.check()
            self._keep_to_the_rate()
            self.num_attempts += 1
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            try:
                opener = urllib.request.build_opener(_NoRedirect)
                with opener.open(request, timeout=self.settings.timeout_s) as response:
                    return _reply(response.read(MAX_REPLY_BYTES + 1))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"HTTP {error.code} {error.reason}"
                    if error.code not in AGAIN and error.code < 500:
                        raise self._unreachable(problem, _status_fix(error.code, self.settings)) from None
                    wait = max(wait, _retry_after_s(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            except ValueError as error:
                problem = f"the reply is no chat completion: {error}"
            if attempt < self.settings.max_retries:
                self.sleep(wait)
        raise self._unreachable(
            f"{problem}, after {self.settings.max_retries + 1} attempts",
            "the same command goes on where it stopped; judge.timeout_s and judge.max_retries make it more patient",
        )

    def _request(self, messages: list[dict[str, str]]) -> urllib.request.Request:
        settings = self.settings
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "halo-forge"}
        if settings.api_key_env is not None:
            key = os.environ.get(settings.api_key_env, "").strip()
            if not key or not key.isprintable():
                raise UsageError(
                    f"the environment variable {settings.api_key_env} holds no key",
                    where="judge.api_key_env",
                    fix=f"export {settings.api_key_env}=...",
                )
            headers["Authorization"] = f"Bearer {key}"
        body = {
            "model": settings.judge_model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": settings.max_reply_tokens,
        }
        url = f"{str(settings.endpoint).rstrip('/')}/chat/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), headers)

    def _keep_to_the_rate(self) -> None:
        if self.settings.requests_per_minute is None:
            return
        wait = self._next_at - self.now()
        if wait > 0:
            self.sleep(wait)
        self._next_at = self.now() + 60.0 / self.settings.requests_per_minute

    def _unreachable(self, problem: str, fix: str) -> JudgeUnreachable:
        return JudgeUnreachable(f"the judge did not answer: {problem}", where=self.settings.endpoint, fix=fix)


def _reply(body: bytes) -> Reply:
    if len(body) > MAX_REPLY_BYTES:
        raise ValueError(f"it is longer than {MAX_REPLY_BYTES} bytes")
    try:
        answer = json.loads(body)
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{body[:80]!r}") from None
    if not isinstance(text, str) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{body[:80]!r}")
    return Reply(text, *counts)


def _retry_after_s(header: str | None) -> float:
    """Seconds only; the form with a date is rare, and the growing waits serve it."""
    return min(LONGEST_WAIT_S, float(header)) if header and header.strip().isdecimal() else 0.0


def _status_fix(code: int, settings: JudgeSection) -> str:
    if code in (401, 403):
        return f"the key in {settings.api_key_env or '(no judge.api_key_env is given)'} is not accepted there"
    if code in (404, 405):
        return (
            f"look at judge.endpoint (it ends in /v1 for most servers) and judge.judge_model ({settings.judge_model})"
        )
    return "look at judge.endpoint and judge.judge_model"
