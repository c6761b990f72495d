"""The rules that look at what a conversation says: names, defaults and meanings. The checks stand in quality.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from halo_forge.config.schema import RowAction
from halo_forge.texts.calls.arguments import CALL_PROBLEMS


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
    Rule(code="mojibake", kind="quality", default="keep", allowed=_MEND,
         meaning="holds UTF-8 that was read as Latin-1 or Windows-1252 (Ã© for é)"),
    Rule(code="outer_whitespace", kind="quality", default="keep", allowed=_MEND,
         meaning="a message begins or ends with white space"),
    Rule(code="unclosed_code_fence", kind="quality", default="keep", allowed=_MEND,
         meaning="an answer opens a ``` code block and does not close it"),
    Rule(code="broken_markdown", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer has a bold mark or a link that is not closed"),
    Rule(code="html_remains", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer holds HTML tags or entities that nobody asked for"),
    Rule(code="boilerplate", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer holds text of a chat program or a web page, not of the answer"),
    Rule(code="placeholder_answer", kind="quality", default="skip", allowed=_LOOK,
         meaning="the whole answer is a placeholder (TODO, lorem ipsum, your answer here)"),
    Rule(code="placeholder_text", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer holds a placeholder ([insert ...], TODO, N/A)"),
    Rule(code="refusal", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer refuses the request"),
    Rule(code="truncated_answer", kind="quality", default="keep", allowed=_LOOK,
         meaning="the last answer stops in the middle of a sentence, list or JSON value"),
    Rule(code="repetition", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer repeats itself in a loop"),
    Rule(code="low_information", kind="quality", default="keep", allowed=_LOOK,
         meaning="an answer is nothing but punctuation"),
    Rule(code="echoes_prompt", kind="quality", default="keep", allowed=_LOOK,
         meaning="the answer repeats the prompt, or the prompt already holds the answer"),
    Rule(code="other_language", kind="quality", default="skip", allowed=_LOOK,
         meaning="the answer is in a language that data.languages does not name"),
    Rule(code="language_mismatch", kind="quality", default="keep", allowed=_LOOK,
         meaning="prompt and answer are in different languages and no translation was asked for"),
    Rule(code="toxic_text", kind="quality", default="keep", allowed=_LOOK,
         meaning="a message has a high lexical toxicity score"),
    *(Rule(code=code, kind="quality", default="skip", allowed=_LOOK, meaning=meaning)
      for code, meaning in CALL_PROBLEMS.items()),
    Rule(code="calls_without_tools", kind="quality", default="keep", allowed=_LOOK,
         meaning="a call in a row that offers no tools, so that it cannot be checked"),
    Rule(code="private_key", kind="privacy", default="fix", allowed=_MEND,
         meaning="holds a private key (the mend writes [PRIVATE_KEY])"),
    Rule(code="secret_key", kind="privacy", default="fix", allowed=_MEND,
         meaning="holds an access token or API key (the mend writes [SECRET])"),
    Rule(code="pii_email", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds an e-mail address (the mend writes [EMAIL])"),
    Rule(code="pii_phone", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds a telephone number (the mend writes [PHONE])"),
    Rule(code="pii_credit_card", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds a payment card number (the mend writes [CREDIT_CARD])"),
    Rule(code="pii_iban", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds a bank account number (the mend writes [IBAN])"),
    Rule(code="pii_ip", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds a public IP address (the mend writes [IP_ADDRESS])"),
    Rule(code="pii_ssn", kind="privacy", default="keep", allowed=_MEND,
         meaning="holds a US social security number (the mend writes [SSN])"),
)  # fmt: skip
RULE: Mapping[str, Rule] = {rule.code: rule for rule in RULES}
