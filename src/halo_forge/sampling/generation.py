"""K samples a prompt, each written as soon as it is complete: a killed generation goes on where it stopped.

A line of the sample file is {"key", "sample", "token_ids", "stopped"}; the first line says what they were drawn with.
A sample's random numbers hang on (seed, prompt, sample number) alone (models/sampling.py), so the rest of the samples
come out as they would have without the stop.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import torch
from transformers import PreTrainedTokenizerBase

from halo_forge.chat import prompt_and_reference
from halo_forge.errors import RowError, RunConflict, UsageError
from halo_forge.models.forward import keep_going
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.models.sampling import Sampling
from halo_forge.runs import Notify, sha256_json, silent
from halo_forge.sampling.questions import Asked, Asking

MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How samples are drawn. temperature 0 is greedy decoding."""

    samples: int = 4
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    max_new_tokens: int = 256
    batch_size: int = 16

    def check(self) -> None:
        """Raises UsageError for what cannot be drawn."""
        wrong = next((words for words, is_right in (
            (f"--samples {self.samples}: 1 to {MAX_SAMPLES}", 1 <= self.samples <= MAX_SAMPLES),
            (f"--temperature {self.temperature}: 0 to 10", 0 <= self.temperature <= 10),
            (f"--top-p {self.top_p}: above 0, at most 1", 0 < self.top_p <= 1),
            (f"--max-new-tokens {self.max_new_tokens}: at least 1", self.max_new_tokens >= 1),
            (f"--batch-size {self.batch_size}: at least 1", self.batch_size >= 1),
        ) if not is_right), None)  # fmt: skip
        if wrong:
            raise UsageError("this cannot be drawn", where=wrong)
        if self.temperature == 0 and self.samples > 1:
            raise UsageError(
                "at temperature 0 all samples of a prompt are the same", where=f"--samples {self.samples}",
                fix="--samples 1, or a temperature above 0",
            )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What decides the samples; not their number, nor the batch."""
        return {name: value for name, value in asdict(self).items() if name not in ("samples", "batch_size")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One prompt with its samples, in the order of their numbers."""

    asked: Asked
    prompt_text: str
    reference: str | None
    samples: tuple[Generation, ...]


def draw_samples(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asking: Asking,
    drawing: Drawing,
    path: Path,
    weights: str,
    notify: Notify = silent,
    check: Callable[[], None] = keep_going,
) -> tuple[list[Sampled], int]:
    """Every prompt's samples, and how many of them were there before.

    path     the sample file; a second writer is refused, and so is a file that was drawn otherwise
    weights  what tells the model from others
    Prompts that this tokenizer's template refuses are counted in `asking.unusable` and left out.
    """
    questions = _questions(tokenizer, asking)
    made_with = {**drawing.identity(), "weights": weights}
    with _sample_file(path, made_with) as (file, known):
        wanted = [
            (question, number)
            for question in questions
            for number in range(drawing.samples)
            if (question.key, number) not in known
        ]
        num_known = len(questions) * drawing.samples - len(wanted)
        if num_known:
            notify("note", {"text": f"{num_known} samples are there already"})
        total = len(questions) * drawing.samples

        counted = count(1)

        def keep(index: int, answer: Generation) -> None:
            question, number = wanted[index]
            known[question.key, number] = (list(answer.token_ids), answer.stopped)
            line = {"key": question.key, "sample": number, "token_ids": answer.token_ids, "stopped": answer.stopped}
            file.write(json.dumps(line) + "\n")
            file.flush()
            progress = {"title": "sampling", "done": num_known + next(counted), "total": total, "unit": "answers"}
            notify("eval.progress", progress)

        keys = tuple(f"{drawing.seed}:{question.key}:{number}" for question, number in wanted)
        sampling = Sampling(temperature=drawing.temperature, top_p=drawing.top_p, keys=keys)
        generate(
            model, [question.prompt for question, _ in wanted], decode=lambda ids: "",
            max_new_tokens=drawing.max_new_tokens, batch_size=drawing.batch_size, on_finished=keep, check=check,
            sampling=sampling if drawing.temperature else None,
        )  # fmt: skip
    return [question.sampled(tokenizer, known, drawing.samples) for question in questions], num_known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokenised:
    asked: Asked
    prompt: Prompt
    reference: str | None
    key: str  # of the tokens: what a model reads and where it stops

    def sampled(
        self, tokenizer: PreTrainedTokenizerBase, known: dict[tuple[str, int], tuple[list[int], bool]], samples: int
    ) -> Sampled:
        answers = [known[self.key, number] for number in range(samples)]
        return Sampled(
            asked=self.asked, prompt_text=_text(tokenizer, self.prompt.token_ids), reference=self.reference,
            samples=tuple(Generation(tuple(ids), _text(tokenizer, ids), stopped) for ids, stopped in answers),
        )  # fmt: skip


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    ids = list(token_ids)
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _questions(tokenizer: PreTrainedTokenizerBase, asking: Asking) -> list[_Tokenised]:
    found, usable = [], []
    for asked in asking.prompts:
        try:
            ids, reference, stops = prompt_and_reference(asked.conversation, tokenizer)
        except RowError as problem:
            asking.unusable[problem.code] += 1
            continue
        usable.append(asked)
        found.append(
            _Tokenised(
                asked=asked, prompt=Prompt(tuple(ids), frozenset(stops)), key=sha256_json([ids, sorted(stops)])[:32],
                reference=reference if asked.answered else None,
            )
        )  # fmt: skip
    asking.prompts = usable
    return found


@contextmanager
def _sample_file(
    path: Path, made_with: dict[str, Any]
) -> Iterator[tuple[IO[str], dict[tuple[str, int], tuple[list[int], bool]]]]:
    """The file, open for appending and locked, and the samples in it. A line that a crash tore is passed over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[tuple[str, int], tuple[list[int], bool]] = {}
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunConflict("another process draws these samples", where=str(path), fix="wait for it") from None
        file.seek(0)
        lines = file.read().split("\n")
        header = _json(lines[0])
        if header is not None and header.get("drawn_with") != made_with:
            earlier = header.get("drawn_with", {})
            changed = sorted(name for name in made_with if earlier.get(name) != made_with[name])
            raise RunConflict(
                f"the samples here were drawn otherwise: {', '.join(changed)}", where=str(path),
                fix="give another --output, or remove this file",
            )  # fmt: skip
        if header is None:
            os.truncate(path, 0)
            file.write(json.dumps({"drawn_with": made_with}) + "\n")
        elif lines[-1]:
            file.write("\n")
        for line in lines[1:]:
            row = _json(line)
            if row is not None and {"key", "sample", "token_ids", "stopped"} <= set(row):
                known[row["key"], row["sample"]] = (row["token_ids"], row["stopped"])
        yield file, known


def _json(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
