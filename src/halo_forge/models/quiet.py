"""Silence for libraries that talk to the terminal while they work, and everything back as it was afterwards."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _level(logger_name: str, level: int) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """No progress bars and no warnings of huggingface_hub inside; its settings are restored on the way out."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars_were_off = are_progress_bars_disabled()
    with _level("huggingface_hub", logging.ERROR), warnings.catch_warnings():
        # With HF_HUB_DISABLE_PROGRESS_BARS set, the switch warns that the variable rules.
        warnings.filterwarnings("ignore", message="Cannot (dis|en)able progress bars")
        if not bars_were_off:
            disable_progress_bars()
        try:
            yield
        finally:
            if not bars_were_off:
                enable_progress_bars()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """As `quiet_hub`, and for transformers too: what it would report about a load is checked by us instead."""
    from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

    before = set_tqdm_hook(lambda factory, args, kwargs: EmptyTqdm(*args, **kwargs))  # type: ignore[no-untyped-call]
    try:
        with quiet_hub(), _level("transformers", logging.ERROR), warnings.catch_warnings():
            # peft reads an attribute that transformers has renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        set_tqdm_hook(before)


@contextmanager
def quiet_bitsandbytes() -> Iterator[None]:
    """Its import tells which optional kernels are missing."""
    with _level("bitsandbytes", logging.ERROR):
        yield
