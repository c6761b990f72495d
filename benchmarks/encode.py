"""Rows to ids and labels: this package against TRL's own preparation, on the same rows, equal before they are timed.

    python benchmarks/encode.py --data ../shared/data/gsm8k_train.jsonl

Contestants, each in a fresh process, turn about:

    ours            ChatEncoder.encode_batch over conversations, a thousand rows at a time
    ours_row_by_row ChatEncoder.encode, the reference that the quick way is held against
    trl_assistant   SFTTrainer._prepare_dataset, assistant_only_loss=True, with a training template for SmolLM2 (TRL
                    ships none for it): the plain one with `{% generation %}` around the answer and its stop token
    trl_completion  SFTTrainer._prepare_dataset on prompt and completion, TRL's default for such rows

Measured is CPU time of the process, all its threads (`time.process_time`), and wall time, from rows in the
contestant's own container to ids and labels in memory. `start` is what a process pays once (ours: reading the
tokenizer's vocabulary, loading and testing the quick encoder, learning the template). Packing differs in kind and is
timed apart: TRL packs the data set once, to full windows; we pack the rows of each optimizer step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_LENGTH = 2048
ROWS_PER_BATCH = 1000
ROWS_PER_STEP = 64
CONTESTANTS = ("ours", "trl_assistant", "trl_completion", "ours_row_by_row")
LIBRARIES = ("trl", "transformers", "tokenizers", "datasets", "fastokens", "numpy")


class Clock:
    """CPU and wall seconds by the name of what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.seconds[name] = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def load_tokenizer() -> Any:
    from halo_forge.models import embedded
    from halo_forge.models.load import load_tokenizer as load

    return load(str(embedded.embedded_model()))


def read_rows(path: Path, num_rows: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(num_rows), strict=False)]


def run_ours(rows: list[dict[str, str]], clock: Clock, row_by_row: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from halo_forge.chat import ChatEncoder, Conversation, Message, SourceRef, TextPart
    from halo_forge.train.batches import pack_by_tokens

    def conversation(number: int, row: dict[str, str]) -> Conversation:
        said = (("user", row["question"]), ("assistant", row["answer"]))
        messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in said)  # type: ignore[arg-type]
        return Conversation(id=str(number), messages=messages, source=SourceRef(path="rows", line=number))

    conversations = [conversation(number, row) for number, row in enumerate(rows, start=1)]
    encoder = ChatEncoder(load_tokenizer(), max_seq_length=MAX_LENGTH)
    if row_by_row:
        with clock.time("start"):
            encoder.encode(conversations[0])
        with clock.time("encode"):
            examples = [encoder.encode(one).example for one in conversations]
            ids = np.concatenate([example.input_ids for example in examples])
            weights = np.concatenate([example.loss_weights for example in examples])
            lengths = np.array([len(example.input_ids) for example in examples])
    else:
        with clock.time("start"):
            encoder.encode_batch(conversations[:64])
        with clock.time("encode"):
            batches = [
                encoder.encode_batch(conversations[first : first + ROWS_PER_BATCH])
                for first in range(0, len(conversations), ROWS_PER_BATCH)
            ]
            ids = np.concatenate([batch.ids for batch in batches])
            weights = np.concatenate([batch.loss_weights for batch in batches])
            lengths = np.concatenate([np.diff(batch.starts) for batch in batches])
        if any(batch.problems or batch.warnings or batch.num_slow for batch in batches):
            raise SystemExit("rows were refused or took the slow way: this is not the comparison it should be")
    order = np.random.default_rng(0).permutation(len(lengths))
    with clock.time("pack"):
        for first in range(0, len(order), ROWS_PER_STEP):
            pack_by_tokens(lengths[order[first : first + ROWS_PER_STEP]].tolist(), MAX_LENGTH)
    return ids, np.where(weights > 0, ids, -100), lengths


TRAINING_TURN = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
)


def training_template(plain: str) -> str:
    """SmolLM2's own template with the answer marked; renders the same text."""
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    if turn not in plain:
        raise SystemExit("this is not SmolLM2's template")
    return plain.replace(turn, TRAINING_TURN)


def run_trl(rows: list[dict[str, str]], clock: Clock, completion: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from types import SimpleNamespace

    import datasets
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer()

    def turn(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    said = [(turn("user", row["question"]), turn("assistant", row["answer"])) for row in rows]
    if completion:
        data = datasets.Dataset.from_list([{"prompt": [ask], "completion": [tell]} for ask, tell in said])
    else:
        data = datasets.Dataset.from_list([{"messages": [ask, tell]} for ask, tell in said])
        tokenizer.chat_template = training_template(tokenizer.chat_template)
    with tempfile.TemporaryDirectory() as directory:
        config = SFTConfig(
            output_dir=directory,
            max_length=MAX_LENGTH,
            assistant_only_loss=not completion,
            bf16=False,
            use_cpu=True,
            report_to=[],
        )
        # What the trainer's constructor sets before it prepares a data set.
        trainer = SimpleNamespace(
            _tokenizer=tokenizer, chat_template=None, completion_only_loss=completion, args=config
        )
        with clock.time("encode"):
            ready = SFTTrainer._prepare_dataset(trainer, data, tokenizer, config, False, None, "train")
        with clock.time("pack"):
            pack_dataset(ready.select_columns(["input_ids", "labels"]), MAX_LENGTH, "bfd", {})
    table = ready.data.table
    ids, labels = (table[name].combine_chunks().flatten().to_numpy() for name in ("input_ids", "labels"))
    return ids, labels, table["input_ids"].combine_chunks().value_lengths().to_numpy()


def run_contestant(name: str, data: Path, num_rows: int, out: Path) -> None:
    rows, clock = read_rows(data, num_rows), Clock()
    if name.startswith("ours"):
        ids, labels, lengths = run_ours(rows, clock, name == "ours_row_by_row")
    else:
        ids, labels, lengths = run_trl(rows, clock, name == "trl_completion")
    np.savez(out.with_suffix(".npz"), ids=ids, labels=labels, lengths=lengths)
    out.write_text(json.dumps(clock.seconds))


def start_contestant(name: str, arguments: argparse.Namespace, out: Path) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--contestant", name, "--out", str(out)]
    command += ["--data", str(arguments.data), "--rows", str(arguments.rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    seconds: dict[str, dict[str, float]] = json.loads(out.read_text())
    return seconds


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """How many rows have equal ids, equal labels, and labels equal but for what TRL trains after the stop token."""
    one, other = np.load(ours), np.load(theirs)
    starts, ends = ([0, *np.cumsum(each["lengths"]).tolist()] for each in (one, other))
    equal_ids = equal_labels = only_line_end = 0
    for number in range(min(len(starts), len(ends)) - 1):
        mine, yours = slice(starts[number], starts[number + 1]), slice(ends[number], ends[number + 1])
        if np.array_equal(one["ids"][mine], other["ids"][yours]):
            equal_ids += 1
            differ = np.flatnonzero(one["labels"][mine] != other["labels"][yours])
            equal_labels += not len(differ)
            only_line_end += differ.tolist() == [mine.stop - mine.start - 1]
    return {
        "rows": len(starts) - 1,
        "rows_theirs": len(ends) - 1,
        "equal_ids": equal_ids,
        "equal_labels": equal_labels,
        "labels_differ_in_the_last_token_only": only_line_end,
    }


def median(runs: list[dict[str, dict[str, float]]], step: str, unit: str) -> float | None:
    values = [run[step][unit] for run in runs if step in run]
    return round(statistics.median(values), 4) if values else None


def summarise(name: str, runs: list[dict[str, dict[str, float]]], num_rows: int) -> dict[str, Any]:
    encode = [run["encode"]["cpu_s"] for run in runs]
    return {
        "contestant": name,
        "num_runs": len(runs),
        "start_cpu_s": median(runs, "start", "cpu_s"),
        "encode_cpu_s": median(runs, "encode", "cpu_s"),
        "encode_wall_s": median(runs, "encode", "wall_s"),
        "pack_cpu_s": median(runs, "pack", "cpu_s"),
        "encode_cpu_us_per_row": round(statistics.median(encode) / num_rows * 1e6, 1),
        "encode_rows_per_cpu_s": round(num_rows / statistics.median(encode)),
        "encode_rows_per_cpu_s_range": [round(num_rows / max(encode)), round(num_rows / min(encode))],
    }


def ratios(runs: dict[str, list[dict[str, dict[str, float]]]], other: str) -> dict[str, Any]:
    """CPU time of another contestant over ours, pair by pair, without and with what a process pays once."""
    pairs = list(zip(runs["ours"], runs[other], strict=False))
    bare = [theirs["encode"]["cpu_s"] / ours["encode"]["cpu_s"] for ours, theirs in pairs]
    whole = [
        (theirs["encode"]["cpu_s"] + theirs.get("start", {}).get("cpu_s", 0.0))
        / (ours["encode"]["cpu_s"] + ours["start"]["cpu_s"])
        for ours, theirs in pairs
    ]
    told = {}
    for name, values in (("encode", bare), ("encode_and_start", whole)):
        told[name] = {
            "median": round(statistics.median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="rows to ids and labels: this package against TRL's preparation")
    parser.add_argument("--data", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--rows", type=int, default=7473)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "encode.json")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        run_contestant(arguments.contestant, arguments.data, arguments.rows, arguments.out)
        return
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in CONTESTANTS}
    equal: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for pair in range(arguments.pairs):
            for name in CONTESTANTS:
                if name == "ours_row_by_row" and pair:
                    continue
                runs[name].append(start_contestant(name, arguments, Path(directory) / f"{name}.json"))
            if not equal:
                places = {name: Path(directory) / f"{name}.npz" for name in CONTESTANTS}
                equal = {name: compare(places["ours"], places[name]) for name in CONTESTANTS[1:]}
                if not all(told["equal_ids"] == told["rows"] == told["rows_theirs"] for told in equal.values()):
                    raise SystemExit(f"the contestants do not make the same ids, so no time is quoted: {equal}")
                if equal["trl_assistant"]["equal_labels"] != equal["trl_assistant"]["rows"]:
                    raise SystemExit(f"the contestants do not make the same labels, so no time is quoted: {equal}")
    num_rows = equal["trl_assistant"]["rows"]
    result = {
        "what": "rows to ids and labels, one process each, CPU seconds of all threads",
        "data": arguments.data.name,
        "num_rows": num_rows,
        "num_pairs": arguments.pairs,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "load_average": os.getloadavg()[0]},
        "note": "the machine was shared while this ran: compare CPU times and the ratios of pairs, not wall times",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "equality": equal,
        "table": [summarise(name, runs[name], num_rows) for name in CONTESTANTS],
        "ratio_to_ours": {name: ratios(runs, name) for name in CONTESTANTS[1:]},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("equality", "table", "ratio_to_ours")}, indent=2))


if __name__ == "__main__":
    main()
