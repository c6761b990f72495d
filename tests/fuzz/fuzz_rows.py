"""Fuzz the way from a file's bytes to conversations: nothing but DataError and RowError may come out, ever.

    python tests/fuzz/fuzz_rows.py --seconds 300 [--seed 0] [--keep DIRECTORY]

The corpus is the catalogue of malformed input (tests/malformed) and sound rows of every format. Where `atheris` is
installed it guides the mutations by coverage; otherwise they are drawn at random from the seed. An input that breaks a
rule is written to --keep, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from halo_forge.data.conversion.formats import convert, detect
from halo_forge.data.files.rows import Row
from halo_forge.data.files.sources import read_batches, rows_of
from halo_forge.errors import DataError, RowError
from malformed.malformed_rows import CASES, SENTENCES

NAMES = ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.md", "a.parquet", "a.arrow", "a")
PIECES = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"\n", b"\r", b"\r\n", b"\0", b"null", b"true",
    b"NaN", b"1e999", b"-1", b"9" * 5000, b"[" * 70, b'{"a":' * 70, b"\xff", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80",
    b'"messages"', b'"role"', b'"content"', b'"from"', b'"value"', b'"text"', b'"prompt"', b'"completion"', b'"tools"',
    b'"tool_calls"', b'"function_call"', b'"tool"', b'"assistant"', b'"weight"', b'"slices"', b'"chosen"',
    b'"rejected"', b'"segments"', b'"ideal"', b'"input"', b'"message_id"', b'"parent_id"', b'"message_tree_id"',
    b'"replies"', b'"label"', b'"images"', b'{"type": "tool_result", "content": [', b'{"type": "image_url"}',
    b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1", b"\xff\xff\xff\xff",
)  # fmt: skip
QUESTION, ANSWER = SENTENCES[0]
SOUND = (
    {"prompt": [{"role": "user", "content": QUESTION}], "completion": [{"role": "assistant", "content": ANSWER}]},
    {"prompt": QUESTION, "chosen": ANSWER, "rejected": "No."},
    {"chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {ANSWER}", "rejected": "x"},
    {"segments": [{"label": True, "text": QUESTION}, {"label": False, "text": ANSWER}]},
    {"input": [{"role": "user", "content": QUESTION}], "ideal": [ANSWER, "b"]},
    {"instruction": QUESTION, "context": "c", "response": ANSWER, "category": "d"},
    {"message_tree_id": "a", "prompt": {"text": "q", "role": "prompter", "replies": [
        {"text": "r", "role": "assistant", "rank": 0, "replies": []}]}},
    {"message_id": "a", "parent_id": None, "text": "q", "role": "prompter", "message_tree_id": "a", "rank": None},
    {"message_id": "b", "parent_id": "a", "text": "r", "role": "assistant", "message_tree_id": "a", "rank": 0.0},
    {"query": "q", "answers": '[{"name": "f", "arguments": {"a": 1}}]', "tools": '[{"name": "f"}]'},
    {"system": 'SYSTEM: use {"name": "f"}', "chat": "USER: q ASSISTANT: <functioncall> {\"name\": \"f\", "
     "\"arguments\": '{}'} <|endoftext|> FUNCTION RESPONSE: {} ASSISTANT: a"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "tool_result", "content": "r"}]},
                  {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"},
                   {"type": "tool_use", "id": "1", "name": "f", "input": {}}]}], "tools": [{"name": "f",
                       "input_schema": {}}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0.5}], "weight": 2},
)  # fmt: skip


def corpus() -> list[bytes]:
    inputs = [b"\n".join(json.dumps(row).encode() for row in SOUND), json.dumps(SOUND).encode()]
    inputs += [json.dumps(row).encode() + b"\n" for row in SOUND]
    inputs.append(b"question,answer\n" + "\n".join(f'"{q}","{a}"' for q, a in SENTENCES).encode())
    with tempfile.TemporaryDirectory() as directory:
        for case in CASES:
            if case.id not in ("M18", "M21b"):
                data = (Path(directory) / case.build(Path(directory))).read_bytes()
                inputs.append(data[:100_000])
    return inputs


def one_input(data: bytes, directory: Path) -> None:
    """Read and convert; raises AssertionError or anything foreign where a rule is broken. The first byte names the
    kind of file."""
    if not data:
        return
    path = directory / NAMES[data[0] % len(NAMES)]
    path.write_bytes(data[1:])
    try:
        rows = [row for batch in read_batches(path, _hear) for row in rows_of(pickle.loads(pickle.dumps(batch)))[0]]
        few = [row for batch in read_batches(path, _hear, rows_per_batch=2) for row in rows_of(batch)[0]]
    except DataError:
        return
    finally:
        path.unlink(missing_ok=True)
    assert [(row.line, row.value, _code(row)) for row in rows] == [(row.line, row.value, _code(row)) for row in few]
    values = [row.value for row in rows if row.value is not None]
    if not values:
        return
    try:
        verdict = detect("f", values[:64])
        verdict.render("f").encode()
    except DataError:
        return
    for row in rows:
        assert (row.value is None) != (row.problem is None)
        row.excerpt()
        if row.value is not None:
            for mixed, media in ((False, False), (True, True)):
                _converted(row, verdict.format, mixed, media)


def _converted(row: Row, format: str, mixed: bool, media: bool) -> None:
    try:
        converted = convert(row, format, "Be brief.", mixed=mixed, media=media)  # type: ignore[arg-type]
    except RowError as problem:
        refused = problem
    else:
        refused = None
    if refused is not None:
        assert refused.code.isidentifier()
        refused.reason.encode()
        return
    turns = converted.conversation.messages
    assert turns
    assert len(converted.conversation.id) == len(converted.prompt_key) == 64
    assert turns[0].role == "document" or turns[-1].role == "assistant"
    again = convert(row, format, "Be brief.", mixed=mixed, media=media)  # type: ignore[arg-type]
    assert again.conversation.id == converted.conversation.id


def _code(row: Row) -> str | None:
    return row.problem.code if row.problem else None


def _hear(text: str) -> None:
    text.encode()


def mutated(data: bytes, random_state: random.Random, others: list[bytes]) -> bytes:
    for _ in range(random_state.choice((1, 1, 2, 3, 8))):
        at = random_state.randrange(len(data) + 1)
        to = min(len(data), at + random_state.choice((1, 2, 5, 20, 200)))
        what = random_state.randrange(6)
        if what == 0:
            data = data[:at] + random_state.choice(PIECES) + data[at:]
        elif what == 1:
            data = data[:at] + random_state.choice(PIECES) + data[to:]
        elif what == 2:
            data = data[:at] + data[to:]
        elif what == 3:
            data = data[:at] + bytes([random_state.randrange(256)]) + data[at + 1 :]
        elif what == 4:
            data = data[:at] + data[at:to] * random_state.choice((2, 3, 50)) + data[to:]
        else:
            other = random_state.choice(others)
            start = random_state.randrange(len(other) + 1)
            data = data[:at] + other[start : start + random_state.choice((5, 50, 500))] + data[to:]
    return data[:200_000]


def fuzz(seconds: float, seed: int, directory: Path, keep: Callable[[bytes, str], None]) -> tuple[int, int]:
    """(executions, inputs that broke a rule)."""
    random_state, inputs = random.Random(seed), corpus()
    num_runs = num_broken = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        source = (
            inputs[num_runs] if num_runs < len(inputs) else mutated(random_state.choice(inputs), random_state, inputs)
        )
        data = bytes([random_state.choice((0, 0, 0, 0, 1, 2, random_state.randrange(9)))]) + source
        num_runs += 1
        start = time.monotonic()
        try:
            one_input(data, directory)
            assert time.monotonic() - start < 20, "it hangs"
        except Exception:  # whatever it is, it is what is looked for
            num_broken += 1
            keep(data, traceback.format_exc())
    return num_runs, num_broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-rows")
    arguments = parser.parse_args()

    def keep(data: bytes, trace: str) -> None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:16]
        (arguments.keep / name).write_bytes(data)
        (arguments.keep / f"{name}.txt").write_text(trace)
        print(f"{arguments.keep / name}\n{trace}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        try:
            import atheris
        except ImportError:
            num_runs, num_broken = fuzz(arguments.seconds, arguments.seed, place, keep)
            print(f"{num_runs} inputs in {arguments.seconds:g} s, {num_broken} broke a rule")
            return 1 if num_broken else 0
        seeds = place / "corpus"
        seeds.mkdir()
        for number, data in enumerate(corpus()):
            (seeds / str(number)).write_bytes(b"\0" + data)
        atheris.instrument_all()
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={int(arguments.seconds)}", f"-seed={arguments.seed or 1}", str(seeds)],
            lambda data: one_input(data, place),
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
