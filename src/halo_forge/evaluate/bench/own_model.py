"""A loaded model as lm-eval asks it: our scoring and our generation behind lm-eval's own interface.

Tokens are made as lm-eval's `hf` model makes them (where a context ends, which special tokens, what is cut on the
left), so that equal items get equal requests; what is computed on them is ours. Every likelihood and every answer is
kept as soon as it is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from halo_forge.evaluate.answer_cache import AnswerCache
from halo_forge.models.fast.scoring import Continuation, Likelihood, score
from halo_forge.models.forward import language_model
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.runs import sha256_json

MAX_NEW_TOKENS = 256
"""lm-eval's own default, for tasks that name no length."""
DEFAULT_MAX_LENGTH = 2048
Progress = Callable[[int, int], None]
Pair = tuple[Any, list[int], list[int]]


class SampledAnswers(Exception):
    """A task asks for sampled answers; answers here are greedy."""


class OwnModel(TemplateLM):  # type: ignore[misc]
    """progress(done, total) is called as requests of a task are answered; check before every batch and step."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        cache: AnswerCache,
        *,
        batch_size: int,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.inner: PreTrainedModel = language_model(model)
        self.batch_size, self.progress, self.check = batch_size, progress, check
        self.stop_token_ids = _stop_token_ids(self.inner, tokenizer)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        longest = getattr(self.inner.config.get_text_config(), "max_position_embeddings", None)
        return int(longest) if longest else DEFAULT_MAX_LENGTH

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    # -------------------------------------------------------------------------------------------- likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(self, requests: list[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._scored([self._continuation(context, wanted) for _, context, wanted in requests])

    def _continuation(self, context: Sequence[int], wanted: Sequence[int]) -> Continuation:
        """Cut on the left to what the model can read; the last token is predicted and not read."""
        tokens = (*context, *wanted)[-(self.max_length + 1) :]
        return Continuation(tokens, max(1, len(tokens) - len(wanted)))

    def _scored(self, continuations: Sequence[Continuation]) -> list[tuple[float, bool]]:
        keys = [sha256_json(["likelihood", item.token_ids, item.start]) for item in continuations]
        missing = {
            key: item
            for key, item in zip(keys, continuations, strict=True)
            if item.start < len(item.token_ids) and self.cache.likelihood(key) is None
        }
        names = list(missing)
        done = 0

        def keep(index: int, found: Likelihood) -> None:
            nonlocal done
            self.cache.keep(names[index], log_likelihood=found.log_likelihood, is_greedy=found.is_greedy)
            done += 1
            self.progress(done, len(names))

        score(self.model, [missing[name] for name in names], on_scored=keep, check=self.check)
        # A continuation without tokens is certain.
        return [self.cache.likelihood(key) or (0.0, True) for key in keys]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows: list[Continuation] = []
        counts = []
        for request in requests:
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length, context_len=1,
            )  # fmt: skip
            own = [self._continuation(*make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        scored = iter(self._scored(windows))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    # -------------------------------------------------------------------------------------------- answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        asked: dict[int, dict[str, Prompt]] = defaultdict(dict)
        keys, stops = [], []
        for request in requests:
            context, how = request.args
            prompt, max_new_tokens = self._prompt(context, how)
            key = sha256_json(
                ["answer", prompt.token_ids, sorted(prompt.stop_token_ids), prompt.stop_texts, max_new_tokens]
            )
            keys.append(key)
            stops.append([*prompt.stop_texts, self.tokenizer.decode([self.eot_token_id])])
            if self.cache.answer(key) is None:
                asked[max_new_tokens][key] = prompt
        total = sum(map(len, asked.values()))
        done = 0
        for max_new_tokens, missing in asked.items():
            self._answer(missing, max_new_tokens, done, total)
            done += len(missing)
        answers = []
        for key, stop in zip(keys, stops, strict=True):
            known = self.cache.answer(key)
            assert known is not None
            answers.append(postprocess_generated_text(self._decode(known[0]), stop, None))
        return answers

    def _answer(self, missing: dict[str, Prompt], max_new_tokens: int, num_done: int, total: int) -> None:
        names = list(missing)

        def keep(index: int, answer: Generation) -> None:
            nonlocal num_done
            self.cache.keep(names[index], token_ids=list(answer.token_ids), stopped=answer.stopped)
            num_done += 1
            self.progress(num_done, total)

        generate(
            self.model, list(missing.values()), decode=self._decode, max_new_tokens=max_new_tokens,
            batch_size=self.batch_size, on_finished=keep, check=self.check,
        )  # fmt: skip

    def _prompt(self, context: str, how: dict[str, Any]) -> tuple[Prompt, int]:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(how, MAX_NEW_TOKENS))
        if wanted.get("do_sample") or wanted.get("temperature"):
            raise SampledAnswers("it asks for sampled answers, and answers are greedy here")
        max_new_tokens = int(wanted["max_gen_toks"])
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(f"it asks for {max_new_tokens} new tokens; the model reads {self.max_length} in all")
        token_ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        until = wanted.get("until") or []
        texts = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        return Prompt(tuple(token_ids), self.stop_token_ids, texts), max_new_tokens

    def _decode(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def _stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends an answer of `model.generate`: the tokenizer's end token and those of generation_config.json."""
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)
