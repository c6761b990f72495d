"""Where rows come from: packed files, standard input, Arrow, saved data sets; batches for workers; bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halo_forge.data.files import raw_batches
from halo_forge.data.files.json_rows import parse_json
from halo_forge.data.files.raw_batches import RawBatch
from halo_forge.data.files.rows import Row
from halo_forge.data.files.sources import expand_paths, read_batches, read_rows, rows_of
from halo_forge.data.files.stdin import spooled_stdin
from halo_forge.errors import DataError, RowError
from timing import times_as_long

GSM8K = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gsm8k_train.jsonl"


def zstd(data: bytes) -> bytes:
    import pyarrow

    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd,
}  # fmt: skip
ROWS = "".join(json.dumps({"question": f"What is {n}?", "answer": f"Number {n} é 👍."}) + "\n" for n in range(3000))


def said_nothing(text: str) -> None:
    raise AssertionError(text)


def values(path: Path) -> list[dict[str, Any] | None]:
    return [row.value for row in read_rows(path, said_nothing)]


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", ["rows.jsonl.{}", "rows.jsonl", "rows.{}"])
def test_packed_files_are_read_whatever_their_name(tmp_path: Path, ending: str, name: str) -> None:
    path = tmp_path / name.format(ending)
    path.write_bytes(PACKERS[ending](ROWS.encode()))
    rows = values(path)
    assert len(rows) == 3000
    assert rows[-1] == {"question": "What is 2999?", "answer": "Number 2999 é 👍."}


@pytest.mark.parametrize("ending", PACKERS)
def test_two_packed_pieces_are_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](ROWS[:1000].encode()) + PACKERS[ending](ROWS[1000:].encode()))
    assert len(values(path)) == 3000


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_that_are_damaged_or_bombs(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](ROWS.encode())[:-30])
    with pytest.raises(DataError, match="file is damaged"):
        values(path)
    path.write_bytes(PACKERS[ending](b'{"a": 1}\n' * 4 + b"a" * 100_000_000))
    with pytest.raises(DataError, match="more than 200 times its size"):
        values(path)


def test_packed_tables_and_directories_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(b"question,answer\na,b\n"))
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"one\n---\ntwo\n"))
    (tmp_path / "c.json.zst").write_bytes(zstd(b'\xef\xbb\xbf[{"text": "x"}]'))
    assert [path.name for path in expand_paths([str(tmp_path)])] == ["a.csv.xz", "b.txt.bz2", "c.json.zst"]
    assert [values(path) for path in expand_paths([str(tmp_path)])] == [
        [{"question": "a", "answer": "b"}], [{"text": "one"}, {"text": "two"}], [{"text": "x"}],
    ]  # fmt: skip


def test_a_tar_archive_is_told(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "rows.jsonl.gz", "w:gz") as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"{}\n\n"))
    with pytest.raises(DataError, match="tar archive"):
        values(tmp_path / "rows.jsonl.gz")


# ------------------------------------------------------------------------------------------- standard input


def test_standard_input_is_kept_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_FORGE_CACHE", str(tmp_path))
    first, second = (spooled_stdin(io.BytesIO(ROWS.encode())) for _ in range(2))
    assert first == second
    assert first.parent == tmp_path / "stdin"
    rows = list(read_rows(first, said_nothing))
    assert len(rows) == 3000
    assert {row.path for row in rows} == {"stdin"}
    assert spooled_stdin(io.BytesIO(b"{}")) != first
    assert sorted(path.name[:6] for path in first.parent.iterdir()) == ["stdin-", "stdin-"]


def test_standard_input_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_FORGE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="standard input holds more than") as caught:
        spooled_stdin(io.BytesIO(b"a" * 5000), max_bytes=4999)
    assert "file" in str(caught.value.fix)
    assert list((tmp_path / "stdin").iterdir()) == []
    with pytest.raises(DataError, match="the file is empty") as caught:
        values(spooled_stdin(io.BytesIO(b"")))
    assert caught.value.where == "stdin"


def test_standard_input_through_a_pipe(tmp_path: Path) -> None:
    code = (
        "from halo_forge.data.files.sources import expand_paths, read_rows\n"
        "paths = expand_paths(['-'])\n"
        "print(len(list(read_rows(paths[0], print))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=ROWS, capture_output=True, text=True, check=True,
        env={"HALO_FORGE_CACHE": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "3000\n"


# ------------------------------------------------------------------------------------------- Arrow


def test_arrow_files_and_saved_data_sets(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.ipc

    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(700)]
    table = pyarrow.Table.from_pylist(rows)
    for name, new in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with new(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
        assert values(tmp_path / name) == rows
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "one"), num_shards=3)
    files = expand_paths([str(tmp_path / "one")])
    assert len(files) == 3
    assert [value for file in files for value in values(file)] == rows
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "two"))
    assert [path.parent.name for path in expand_paths([str(tmp_path / "two")])] == ["train"]
    datasets.DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(DataError, match="no split called train") as caught:
        expand_paths([str(tmp_path / "three")])
    assert "test" in str(caught.value.fix)
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "file.arrow").read_bytes()[:-300])
    with pytest.raises(DataError, match="Arrow file cannot be read"):
        values(tmp_path / "cut.arrow")
    (tmp_path / "junk.arrow").write_bytes(b"not arrow at all")
    with pytest.raises(DataError, match="not an Arrow file"):
        values(tmp_path / "junk.arrow")


def test_typed_columns_do_not_add_nulls_to_tools(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"b": [None, 2]}}]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]}],
         "tools": [{"name": "f", "parameters": {"p": {"type": "int"}} if number else {"q": {"type": "str"}}}]}
        for number, call in enumerate(calls)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    notes: list[str] = []
    read = [row.value for row in read_rows(tmp_path / "rows.parquet", notes.append)]
    assert [row["messages"][1]["tool_calls"] for row in read if row] == [[call] for call in calls]
    assert [row["tools"] for row in read if row] == [row["tools"] for row in rows]
    assert len(notes) == 1
    assert "absent" in notes[0]


# ------------------------------------------------------------------------------------------- batches


def flat(batches: list[RawBatch]) -> list[Row]:
    """As a worker sees them: through a pickle."""
    return [row for batch in batches for row in rows_of(pickle.loads(pickle.dumps(batch)))[0]]


def signature(row: Row) -> tuple[Any, ...]:
    problem = (row.problem.code, row.problem.reason) if row.problem else None
    return row.path, row.line, row.value, problem, row.raw, row.fixes


FILES = {
    "plain": ROWS.encode(),
    "bom, blanks and bad lines": b"\xef\xbb\xbf"
    + ROWS[:400].encode()
    + b"\n \n[]\n{oops}\n\xff\n"
    + ROWS[400:900].encode(),
    "returns": ROWS.replace("\n", "\r").encode(),
    "windows": ROWS.replace("\n", "\r\n").encode(),
    "no last line end": ROWS.encode()[:-1],
    "cut off": ROWS.encode()[:-9],
    "blank end": ROWS.encode() + b"\n\n\t",
    "one line": b'{"text": "x"}',
    "array": json.dumps([{"text": "x"}] * 30).encode(),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_batches_hold_exactly_the_rows(tmp_path: Path, content: bytes) -> None:
    """Against the lines as Python's own text reader counts them, for every size of batch."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    notes: list[str] = []
    whole = [signature(row) for row in read_rows(path, notes.append)]
    for size in (1, 3, 1000, 10**6):
        batches = list(read_batches(path, lambda text: None, rows_per_batch=size))
        assert [signature(row) for row in flat(batches)] == whole
        assert all(len(rows_of(batch)[0]) <= size for batch in batches)
        assert all(batch.data.count(b"\n") <= size for batch in batches)
    if content[:1] != b"[":
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = dict(enumerate(file, start=1))
        assert [row[1] for row in whole] == [number for number, line in lines.items() if line.strip()]
        assert all(json.loads(lines[line]) == value for _, line, value, *_ in whole if value is not None)
        num_blank = sum(not line.strip() for line in lines.values())
        assert [note for note in notes if "blank" in note] == (
            [f"{path}: passed over {num_blank} blank line{'s' if num_blank > 1 else ''}"] if num_blank else []
        )


def test_lines_at_the_borders_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and a small limit, so that every line end, \\r\\n included, falls onto a border once."""
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(raw_batches, "MAX_LINE_BYTES", 64)
    lines = ['{"text": "a"}', "", '{"text": "' + "b" * 30 + '"}', '{"text": "' + "c" * 200 + '"}', '{"text": "d"}']
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(end.join(lines).encode())
        for block_bytes in range(1, 40):
            monkeypatch.setattr(raw_batches, "BLOCK_BYTES", block_bytes)
            rows = list(read_rows(path, lambda text: None))
            assert [row.line for row in rows] == [1, 3, 4, 5]
            assert [row.problem.code if row.problem else None for row in rows] == [None, None, "line_too_long", None]
            assert rows[3].value == {"text": "d"}


def test_row_errors_cross_process_borders() -> None:
    error = pickle.loads(pickle.dumps(RowError("bad_json", "column 3")))
    assert (error.code, error.reason, str(error)) == ("bad_json", "column 3", "column 3")


def test_reading_lines_is_cheap_for_the_process_that_feeds_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"text": "x" * 500}) + "\n") * 50_000)

    def read() -> None:
        assert sum(batch.data.count(b"\n") for batch in read_batches(path, said_nothing)) == 50_000

    def only_read() -> None:
        with path.open("rb") as file:
            assert sum(1 for _ in file) == 50_000

    assert times_as_long(read, only_read) < 15, "6 where it was measured"


MEASURE = """
import resource, sys
from pathlib import Path
from halo_forge.data.files.sources import read_batches, read_rows, rows_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(len(rows_of(batch)[0]) for batch in read_batches(Path(sys.argv[1]), print))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.zst", "rows.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    line = json.dumps({"question": "q" * 1000, "answer": "a" * 2000}) + "\n"
    if name.endswith(".csv"):
        line = "q" * 1000 + "," + "a" * 2000 + "\n"
    block = line * 1000
    num_blocks = 100 if name == "rows.jsonl" else 30
    if name.endswith(".zst"):
        import pyarrow

        noise = random.Random(0)
        with pyarrow.CompressedOutputStream(str(path), "zstd") as packed:
            for _ in range(num_blocks):
                for _ in range(1000):
                    text = noise.randbytes(1400).hex()
                    packed.write((json.dumps({"question": text[:800], "answer": text[800:]}) + "\n").encode())
    else:
        with open(path, "w") as file:
            if name.endswith(".csv"):
                file.write("question,answer\n")
            for _ in range(num_blocks):
                file.write(block)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    count, grown_mib = map(int, done.stdout.split())
    assert count == num_blocks * 1000
    assert grown_mib < 80, "a few batches, not the 90 to 300 MB of the file"


# ------------------------------------------------------------------------------------------- speed


def test_strict_json_is_parsed_within_its_budget() -> None:
    if not GSM8K.exists():
        pytest.skip("the shared GSM8K rows are not here")
    lines = GSM8K.read_text().splitlines()[:2000]
    ratio = times_as_long(lambda: [parse_json(line) for line in lines], lambda: [json.loads(line) for line in lines])
    assert ratio < 4, "1.5 where it was measured"
