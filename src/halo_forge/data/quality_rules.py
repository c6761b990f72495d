"""The rules that look at what a conversation says: their names, defaults and meanings (the checks stand in quality.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from halo_forge.config.schema import RowAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`fix` among `allowed` means that the rule has a mend."""

    code: str
    kind: Literal["quality", "privacy"]
    meaning: str
    default: RowAction
    allowed: tuple[RowAction, ...]


_LOOK: tuple[RowAction, ...] = ("keep", "skip", "quarantine", "fail")
_MEND: tuple[RowAction, ...] = ("keep", "fix", "skip", "quarantine", "fail")
RULES: tuple[Rule, ...] = (
    Rule(code="control_characters", kind="quality", default="keep", allowed=_MEND,
         meaning="holds control or direction characters, which a terminal may obey"),
    Rule(code="not_nfc", kind="quality", default="keep", allowed=_MEND,
         meaning="holds decomposed characters (not NFC), which tokenize differently from their usual form"),
)  # fmt: skip
RULE: Mapping[str, Rule] = {rule.code: rule for rule in RULES}
