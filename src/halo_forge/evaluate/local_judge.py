"""A judge that runs in this process: a model from a directory, the cache or the Hub, asked greedily."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.chat import Conversation, Message, SourceRef, TextPart, prompt_and_reference
from halo_forge.config.judge_section import JudgeSection
from halo_forge.errors import RowError
from halo_forge.evaluate.items import decode
from halo_forge.evaluate.judge_client import JudgeUnreachable, Reply
from halo_forge.models.compute import Compute
from halo_forge.models.forward import keep_going
from halo_forge.models.generate import Prompt, generate
from halo_forge.models.load import load_model, load_tokenizer


class LocalJudge:
    """The weights are loaded with the first question, and not at all when every reply is known."""

    def __init__(self, settings: JudgeSection, compute: Compute, check: Callable[[], None] = keep_going) -> None:
        self.settings, self.compute, self.check = settings, compute, check

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        name = str(self.settings.judge_model)
        dtype = torch.bfloat16 if self.compute.precision == "bfloat16" else torch.float32
        model = load_model(name, dtype=dtype, device=self.compute.device, attn_implementation="sdpa")
        return model, load_tokenizer(name)

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Raises ModelNotFound, JudgeUnreachable where the model's template cannot write the question."""
        model, tokenizer = self._loaded
        said = [*messages, {"role": "assistant", "content": "?"}]
        conversation = Conversation(
            id="judge",
            messages=tuple(Message(role=m["role"], parts=(TextPart(text=m["content"]),)) for m in said),  # type: ignore[arg-type]
            source=SourceRef(path="judge", line=1),
        )
        try:
            token_ids, _, stops = prompt_and_reference(conversation, tokenizer)
        except RowError as error:
            raise JudgeUnreachable(
                f"this model's template cannot write a question for a judge: {error.reason}",
                where=self.settings.judge_model,
                fix="take a model whose chat template has system, user and assistant turns",
            ) from None
        (reply,) = generate(
            model,
            [Prompt(tuple(token_ids), frozenset(stops))],
            decode=lambda ids: decode(tokenizer, ids),
            max_new_tokens=self.settings.max_reply_tokens,
            batch_size=1,
            check=self.check,
        )
        return Reply(reply.text, len(token_ids), len(reply.token_ids))
