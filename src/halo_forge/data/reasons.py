"""Every reason code that a ledger may hold: what it means, what is done by default, and what may be done instead.

    damage         the row cannot be used as it is            data.on_bad_row decides
    policy         a sound row that is left out               counted, never damage
    mended         the row is used after a mend               counted as fixed
    flag           found, and left as it is
    quality, privacy, duplicate, contamination                data.policies decides, by code

`halo-forge data rules` prints this table; a test holds every code of the source against it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from halo_forge.config.schema import DataSection, RowAction
from halo_forge.data.rules.quality_rules import RULES
from halo_forge.errors import UsageError

Kind = Literal["damage", "policy", "mended", "flag", "quality", "privacy", "duplicate", "contamination"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """`default` None means that data.on_bad_row decides. `allowed` are the actions data.policies may name."""

    code: str
    kind: Kind
    meaning: str
    default: RowAction | None
    allowed: tuple[RowAction, ...]


DROPPING: tuple[RowAction, ...] = ("skip", "quarantine", "fail")
_DAMAGE = {
    "bad_json": "the line is not JSON",
    "truncated_line": "the file ends in the middle of this line",
    "nul_byte": "a NUL byte outside a string",
    "glued_objects": "several objects on one line",
    "duplicate_key": "a key stands twice in one object",
    "bad_number": "a number that no float holds, or NaN",
    "too_deep": "nested deeper than 64 levels",
    "line_too_long": "the line is longer than 16 MiB",
    "not_an_object": "a row is not an object with named columns",
    "bad_encoding": "bytes that are not UTF-8",
    "lone_surrogate": "half of a surrogate pair",
    "invalid_unicode": "half of a surrogate pair reached the tokenizer",
    "bad_csv": "the record cannot be read",
    "ragged_row": "more or fewer cells than columns",
    "missing_columns": "the columns of the format are not there",
    "reserved_columns": "columns named like tokens (input_ids, labels)",
    "bad_messages": "the messages are not a list of objects",
    "bad_role": "an unknown role",
    "missing_content": "a message without content",
    "null_content": "content is null",
    "bad_content_type": "content is neither text nor a list of text parts",
    "empty_content": "a message or answer is empty",
    "bad_tool_call": "a tool call that cannot be read",
    "bad_tools": "a tool description that cannot be read, or whose parameters are no JSON Schema",
    "duplicate_tool": "two different tools of one name",
    "no_tool_results": "calls over several turns without the results of the tools",
    "bad_weight": "a weight that is no number from 0 up",
    "bad_slices": "slices are not an object of labels",
    "system_not_first": "a system message after the first turn",
    "no_assistant_turn": "nobody answers, so there is nothing to learn",
    "no_user_turn": "the assistant answers nobody",
    "consecutive_assistant": "two answers in a row",
    "tool_result_without_call": "a tool result that no call asked for",
    "tool_call_without_result": "a tool call that nothing answers",
    "empty_conversation": "no messages",
    "mixed_document": "a plain text among messages",
    "media_unsupported": "an image or audio that the model cannot read",
    "media_missing": "an image or audio that is not there or cannot be read",
    "media_too_large": "an image or audio of more bytes than are read",
    "media_count_mismatch": "more markers than images or sounds, or fewer",
    "media_not_rendered": "the chat template leaves out an image or sound",
    "media_truncated": "the limit of length would cut an image or sound",
    "url_refused": "an address instead of a file: nothing is downloaded for a row",
    "audio_broken": "not a sound that can be read, or one that breaks off",
    "audio_empty": "a sound of 0 samples",
    "audio_not_finite": "a sound with samples that are no numbers",
    "audio_rate": "a sampling rate that is missing or no rate",
    "audio_too_large": "a sound of more bytes than are read",
    "audio_missing": "a row for a speech model without a sound",
    "audio_several": "several sounds or transcripts in one row for a model that hears one",
    "audio_instruction": "text beside the sound, for a model that only hears",
    "audio_times": "audio.timestamps is on, and the text's times are missing or wrong",
    "image_broken": "an image that cannot be decoded, or without pixels",
    "image_format": "no image, or one of a format that is not read",
    "image_too_large": "an image of more bytes than are read",
    "image_bomb": "an image of more pixels than are decoded",
    "image_refused": "the model's image processor refuses the image",
    "template_refused": "the chat template refuses the row",
    "mask_disagreement": "the two derivations of the mask differ",
    "stop_token_untrained": "no trained token would end the answer",
    "double_bos": "more than one begin-of-text token",
    "special_tokens_unsplittable": "special tokens in the text cannot be made text",
    "no_supervised_tokens": "no token of the row would be trained",
    "no_prompt": "nothing stands before the answer",
    "orphan_message": "a message whose parent stands nowhere in the file",
    "segments_unsupported": "trained and untrained segments in an order that no conversation has",
    "reasoning_missing": "data.reasoning: require, and an answer has none",
}
_MENDED = {
    "bom_removed": "the file began with a byte order mark, which is left out",
    "role_normalised": "a role was written in another way",
    "media_placed_first": "images without a place of their own stand before the question",
    "image_turned": "an image is turned as its camera says",
    "image_first_frame": "of an animation the first frame is read",
    "image_flattened": "a transparent image is laid on white",
    "image_8_bit": "an image of 16 bits a channel is read in 8",
    "nul_removed": "NUL characters are left out",
    "empty_system_dropped": "an empty system message is left out",
    "turns_joined": "two turns of one side in a row became one",
    "leading_assistant_dropped": "the assistant spoke before the user; that turn is left out",
    "trailing_turn_dropped": "turns after the last answer are left out",
    "json_text_parsed": "the messages were a list inside a string",
    "special_tokens_neutralised": "special tokens in the content are encoded as ordinary text",
    "truncated": "cut at data.max_seq_length",
    "times_removed": "times in the transcript are left out (audio.timestamps is off)",
    "reasoning_not_rendered": "the chat template leaves out the reasoning",
    "text_not_rendered": "the chat template leaves out text beside a tool call",
    "system_not_rendered": "the chat template leaves out the system message",
    "tools_not_rendered": "the chat template leaves out the tools",
    "tool_schema_normalised": "a tool was described in another way than as a function with a JSON Schema",
    "tool_type_unknown": "a tool has an argument of an unknown type, which may then be anything",
    "duplicate_tool_dropped": "a tool stood twice among the tools",
}
_FLAGS = {
    "other_format": "read as another format than most rows of its file",
    "several_answers": "several right answers; the first is trained",
    "merged_boundary": "one token stands across the border between prompt and answer",
}
_POLICY = {
    "in_holdout": "its prompt stands in the holdout",
    "in_validation": "its prompt stands in the validation file",
    "too_long": "longer than data.max_seq_length",
    "audio_too_long": "a sound longer than the model hears at once",
    "no_supervised_tokens_after_truncation": "nothing that is trained stands before the cut",
    "not_sampled": "not in its source's share of the mix",
    "rejected_answer": "an answer marked as rejected, with none beside it to learn from",
    "part_of_tree": "told in the conversation of another row of its tree",
}
_COPIES: dict[str, tuple[Kind, str, RowAction, tuple[RowAction, ...]]] = {
    "duplicate": ("duplicate", "the same conversation as an earlier row", "skip", ("keep", *DROPPING)),
    "near_duplicate": ("duplicate", "nearly the same words as an earlier row", "skip", ("keep", *DROPPING)),
    "semantic_duplicate": ("duplicate", "says the same as an earlier row", "skip", ("keep", *DROPPING)),
    "contaminated": ("contamination", "repeats a benchmark item or a held-out row", "fail", ("keep", *DROPPING)),
    "benchmark_overlap": ("contamination", "shares word n-grams with a benchmark item", "keep", ("keep", *DROPPING)),
    "contradiction": ("quality", "the same prompt has another answer elsewhere", "keep", ("keep", *DROPPING)),
}

_FINAL_ANSWERS: dict[str, tuple[Kind, str, RowAction, tuple[RowAction, ...]]] = {
    "final_answer_rewritten": (
        "mended", "its final answer is told in the convention of data.final_answer", "fix", ("fix", *DROPPING)
    ),
    "calculator_annotations": (
        "quality", "an answer holds annotations for a calculator (<<48/2=24>>), which the mend takes out", "fix",
        ("keep", "fix", *DROPPING),
    ),
    "no_final_answer": (
        "quality", "its last answer marks no final answer, so its question asks for none", "keep", ("keep", *DROPPING)
    ),
    "final_answer_no_number": (
        "quality", "its final answer is no number that can be read; numeric_match says nothing about it", "keep",
        ("keep", *DROPPING),
    ),
    "several_final_answers": (
        "quality", "its last answer gives final answers that differ", "skip", ("keep", *DROPPING)
    ),
    "other_convention_asked": (
        "quality", "it asks for another form of the final answer than data.final_answer", "skip", ("keep", *DROPPING)
    ),
}  # fmt: skip
"""Found only where data.final_answer names a convention."""


def _table() -> dict[str, Reason]:
    reasons = [
        *(Reason(code=c, kind="damage", meaning=m, default=None, allowed=DROPPING) for c, m in _DAMAGE.items()),
        *(Reason(code=c, kind="policy", meaning=m, default="skip", allowed=DROPPING) for c, m in _POLICY.items()),
        *(
            Reason(code=c, kind="mended", meaning=m, default="fix", allowed=("fix", *DROPPING))
            for c, m in _MENDED.items()
        ),
        *(
            Reason(code=c, kind="flag", meaning=m, default="keep", allowed=("keep", *DROPPING))
            for c, m in _FLAGS.items()
        ),
        *(
            Reason(code=c, kind=k, meaning=m, default=d, allowed=a)
            for c, (k, m, d, a) in (_COPIES | _FINAL_ANSWERS).items()
        ),
        *(Reason(code=r.code, kind=r.kind, meaning=r.meaning, default=r.default, allowed=r.allowed) for r in RULES),
    ]
    return {reason.code: reason for reason in reasons}


REASONS: Mapping[str, Reason] = _table()


def action_table(data: DataSection) -> dict[str, RowAction]:
    """What happens to rows with each reason code under this configuration. Raises UsageError for a code that does not
    exist or an action that it does not have."""
    for code, action in data.policies.items():
        if code not in REASONS:
            near = difflib.get_close_matches(code, REASONS, n=1)
            raise UsageError(
                f"data.policies: there is no reason code {code!r}",
                where=f"data.policies.{code}",
                expected="a code of `halo-forge data rules`",
                fix=f"did you mean {near[0]}?" if near else None,
            )
        if action not in REASONS[code].allowed:
            raise UsageError(
                f"data.policies: {code} rows cannot be dealt with by {action!r}",
                where=f"data.policies.{code}",
                expected=", ".join(REASONS[code].allowed),
            )
    return {code: data.policies.get(code) or reason.default or data.on_bad_row for code, reason in REASONS.items()}
