"""A first configuration for a file: what the rows are, and for every key that is set, why it is set so.

`look_at` reads (all rows are counted, the first are converted); `starter_config` decides and writes YAML with comments.
Sizes follow common experience: 50 rows carry a style, 1,000 a task, 10,000 a change of behaviour; five passes are the
most that a set of any size bears, and tiny ones need more.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from halo_forge.chat.records import Conversation
from halo_forge.config.schema import Config, ModelSection
from halo_forge.config.yaml_text import yaml_value
from halo_forge.data.conversion.formats import Verdict, convert, detect, detection_head
from halo_forge.data.files.rows import Row, shown_path
from halo_forge.data.files.sources import expand_paths, read_rows
from halo_forge.data.files.text_rows import BYTES_PER_TOKEN
from halo_forge.errors import DataError, RowError, UsageError

SAMPLE_ROWS = 2000
MAX_READ_ROWS = 50_000
"""More rows than this are counted as lines where a file has one row a line."""
LENGTHS = (256, 512, 1024, 2048, 4096)
TEXT_TOKENS = 1024
TOKENS_PER_TURN = 8
"""What a template puts around a message, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLook:
    """What a file turned out to be. Lengths are estimated tokens of the sample; `num_bad` of `num_sampled` rows could
    not be converted, for the `bad_codes`."""

    name: str
    formats: tuple[str, ...]
    verdicts: tuple[str, ...]
    num_rows: int
    is_estimate: bool
    num_sampled: int
    num_bad: int
    bad_codes: tuple[str, ...]
    row_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    json_frac: float

    @property
    def format(self) -> str:
        return self.formats[0] if len(self.formats) == 1 else "auto"

    @property
    def is_text(self) -> bool:
        return self.formats == ("text",)

    @property
    def num_usable(self) -> int:
        return round(self.num_rows * (1 - self.num_bad / max(1, self.num_sampled)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One key and why it has its value."""

    key: str
    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Starter:
    """`text` is the file to write; `warnings` are what its owner should know before the first run."""

    text: str
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]


def look_at(name: str) -> FileLook:
    """Read a file, directory or pattern. Raises DataError for what cannot be read or has no rows that fit a format."""
    if name == "-":
        raise UsageError("a configuration needs a file that stays", where="-", fix="save the rows into a file first")
    num_rows, is_estimate, num_bad, num_sampled = 0, False, 0, 0
    verdicts: dict[str, Verdict] = {}
    codes: Counter[str] = Counter()
    conversations: list[Conversation] = []
    for path in expand_paths([name]):
        rows = read_rows(path, lambda text: None)
        head = detection_head(rows, SAMPLE_ROWS)
        values = [row.value for row in head if row.value is not None]
        if not values:
            continue
        verdict = verdicts[shown_path(path)] = detect(shown_path(path), values)
        counted = 0
        for row in chain(head, rows):
            counted += 1
            if num_sampled < SAMPLE_ROWS:
                num_sampled += 1
                conversation, code = _converted(row, verdict)
                codes.update([code] if code else [])
                conversations += [conversation] if conversation else []
            elif num_rows + counted >= MAX_READ_ROWS and (lines := _num_lines(path)) is not None:
                counted, is_estimate = lines, True
                break
        num_rows += counted
    num_bad = codes.total()
    if not conversations:
        raise DataError(
            "no row of this file can be trained on" + (f": {codes.most_common(1)[0][0]}" if codes else ""),
            where=name,
            fix=f"halo-forge data check {name}",
        )
    answers = [turn.text for one in conversations for turn in one.messages if turn.role in ("assistant", "document")]
    return FileLook(
        name=name,
        formats=tuple(dict.fromkeys(verdict.format for verdict in verdicts.values())),
        verdicts=tuple(verdict.render(path) for path, verdict in verdicts.items()),
        num_rows=num_rows,
        is_estimate=is_estimate,
        num_sampled=num_sampled,
        num_bad=num_bad,
        bad_codes=tuple(code for code, _ in codes.most_common(3)),
        row_tokens=tuple(sum(_tokens(turn.text) for turn in one.messages) for one in conversations),
        answer_tokens=tuple(_tokens(answer) for answer in answers if answer) or (1,),
        json_frac=sum(map(_is_json, answers)) / max(1, len(answers)),
    )


def starter_config(look: FileLook, *, model: str | None = None, output: str | None = None) -> Starter:
    """The configuration for a file that was looked at, as commented YAML that `load_config` accepts."""
    sections = _choices(look, model or ModelSection().name, output or f"runs/{_slug(look.name)}")
    warnings = _warnings(look, {choice.key: choice.value for section in sections.values() for choice in section})
    lines = [
        f"# Made by `halo-forge init` from {_one_line(look.name)}.",
        f"# {_rows_words(look)}. Every other key has its default: halo-forge config show FILE",
        *(f"# Note: {warning}" for warning in warnings),
    ]
    for section, choices in sections.items():
        lines += ["", f"{section}:"]
        for choice in choices:
            lines += [f"  # {choice.why}", *_yaml_lines(choice.key.partition(".")[2], choice.value)]
    flat = tuple(choice for choices in sections.values() for choice in choices)
    return Starter("\n".join(lines) + "\n", flat, warnings)


# ------------------------------------------------------------------------------------------------ decisions


def _choices(look: FileLook, model: str, output: str) -> dict[str, tuple[Choice, ...]]:
    epochs, epochs_why = _epochs(look.num_usable)
    batch, accumulation, steps = _batches(look.num_usable, epochs)
    longest = max(look.row_tokens)
    most = TEXT_TOKENS if look.is_text else LENGTHS[-1]  # texts are cut into passages that fit
    length = min(most, next((size for size in LENGTHS if size >= 1.2 * longest), most))
    validation, holdout = (0.1, 0.2) if look.num_usable < 200 else (0.05, 0.1)
    held_out = round(look.num_usable * holdout)
    often = max(1, min(250, steps // 4))
    answer = int(np.percentile(look.answer_tokens, 99) * 1.3)
    new_tokens = min(512, max(32, -(-answer // 32) * 32))
    limited = f"longest row here: about {longest}. Longer rows are left out and counted"
    if look.is_text:
        limited = "texts are cut into passages of this length"
    sections: dict[str, list[Choice]] = {
        "model": [_choice("model.name", model, "a Hub id or a local directory works too; start from a chat model")],
        "data": [
            _choice("data.train_file", look.name, _rows_words(look)),
            *(
                [_choice("data.format", look.format, "how the rows were read; `auto` detects it again every time")]
                if look.format != "auto"
                else []
            ),
            _choice("data.max_seq_length", length, f"tokens; {limited}"),
            _choice("data.validation_split", validation, "share of rows that is validated on while training"),
            _choice(
                "data.holdout_split", holdout, f"frozen, never trained on: about {held_out} rows to compare models on"
            ),
            _choice("data.max_bad_fraction", 0.01, "more unusable rows than this stop the run"),
        ],
        "training": [
            _choice("training.method", "lora", "small adapters; `full` trains every weight and forgets more"),
            _choice("training.num_train_epochs", epochs, epochs_why),
            _choice("training.per_device_train_batch_size", batch, "examples in memory at a time"),
            _choice(
                "training.gradient_accumulation_steps",
                accumulation,
                f"{batch * accumulation} examples a step, about {steps} steps",
            ),
            _choice("training.learning_rate", 2e-4, "usual for adapters: 1e-4 to 5e-4; `full` needs 1e-5 to 5e-5"),
            _choice("training.eval_steps", often, "validate about four times"),
        ],
        "output": [_choice("output.dir", output, "everything that the run writes")],
        "evaluation": [
            _choice("evaluation.max_new_tokens", new_tokens, "long enough for 99 of 100 answers here"),
            *(
                [_choice("evaluation.max_prompts", 200, "answers are generated for so many; perplexity reads all")]
                if held_out > 200
                else []
            ),
        ],
        "gate": [_choice("gate.rules", _rules(look), "what a model must reach to be published; all must hold")],
    }
    return {name: tuple(choices) for name, choices in sections.items()}


def _choice(key: str, value: object, why: str) -> Choice:
    return Choice(key=key, value=value, why=why)


def _epochs(num_rows: int) -> tuple[int, str]:
    for size, epochs, why in (
        (50, 8, "very few rows need several passes; watch the validation loss"),
        (500, 5, "few rows: 3 to 5 passes; more usually overfits"),
        (10_000, 3, "1 to 5 passes; more usually overfits"),
        (100_000, 2, "many rows: 1 to 3 passes"),
    ):
        if num_rows < size:
            return epochs, why
    return 1, "so many rows need one pass"


def _batches(num_rows: int, epochs: int) -> tuple[int, int, int]:
    """(batch size, accumulation, optimizer steps): up to 64 examples a step, and some fifty steps where rows allow."""
    trained = max(1, round(num_rows * 0.8))
    batch = 4 if trained >= 16 else 1
    accumulation = 1
    while batch * accumulation < 64 and trained * epochs / (batch * accumulation * 2) >= 50:
        accumulation *= 2
    return batch, accumulation, max(1, -(-trained // (batch * accumulation)) * epochs)


def _rules(look: FileLook) -> list[dict[str, object]]:
    rules: list[dict[str, object]] = [{"metric": "perplexity", "min_delta": 0.0}]
    if not look.is_text and look.json_frac > 0.95:
        rules.append({"metric": "json_valid", "min": 0.9})
    elif not look.is_text and np.median(look.answer_tokens) <= 12:
        rules.append({"metric": "exact_match", "min_delta": 0.0})
    return rules


def _warnings(look: FileLook, values: dict[str, object]) -> tuple[str, ...]:
    warnings = []
    held_out = round(look.num_usable * float(str(values["data.holdout_split"])))
    if look.num_bad > 0.01 * look.num_sampled:
        warnings.append(
            f"{look.num_bad} of {look.num_sampled} rows cannot be used ({', '.join(look.bad_codes)}) and will stop the "
            f"run: `halo-forge data check {_one_line(look.name)}` lists them"
        )
    if held_out < Config().gate.min_items:
        warnings.append(
            f"about {held_out} rows are held out, and the gate needs {Config().gate.min_items} to decide: "
            "it will say INCONCLUSIVE"
        )
    if look.num_usable < 50:
        warnings.append(f"{look.num_usable} usable rows are few: from 50 on, adapters hold a style or a format")
    too_long = (
        0 if look.is_text else sum(tokens > int(str(values["data.max_seq_length"])) for tokens in look.row_tokens)
    )
    if too_long:
        warnings.append(f"about {too_long} of {len(look.row_tokens)} rows are longer than data.max_seq_length")
    if len(look.formats) > 1:
        warnings.append(f"the files have different formats ({', '.join(look.formats)}); each is read in its own")
    return tuple(warnings)


# ------------------------------------------------------------------------------------------------ reading


def _converted(row: Row, verdict: Verdict) -> tuple[Conversation | None, str | None]:
    if row.problem is not None:
        return None, row.problem.code
    try:
        return convert(row, verdict.format).conversation, None
    except RowError as problem:
        return None, problem.code
    except UnicodeEncodeError:
        return None, "lone_surrogate"


def _num_lines(path: Path) -> int | None:
    """Lines of a file that has one row a line, counted without reading them; None for any other file."""
    if not path.name.lower().endswith((".jsonl", ".ndjson")):
        return None
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))


def _tokens(text: str) -> int:
    return len(text.encode(errors="replace")) // BYTES_PER_TOKEN + TOKENS_PER_TURN


def _is_json(text: str) -> bool:
    if text.strip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------------------------------------ words


def _rows_words(look: FileLook) -> str:
    about = "about " if look.is_estimate else ""
    kind = "passages of text" if look.is_text else f"rows ({', '.join(look.formats)})"
    typical = int(np.median(look.row_tokens))
    return f"{about}{look.num_rows:,} {kind}, typically {typical} tokens"


def _yaml_lines(leaf: str, value: object) -> Iterable[str]:
    if isinstance(value, list):
        yield f"  {leaf}:"
        for item in value:
            yield f"    - {yaml_value(item)}"
        return
    yield f"  {leaf}: {yaml_value(value)}"


def _slug(name: str) -> str:
    """A directory name from a path or pattern: `data/my rows.jsonl.gz` -> `my-rows`."""
    stem = os.path.basename(os.path.normpath(name)).partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:48] or "first"


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
