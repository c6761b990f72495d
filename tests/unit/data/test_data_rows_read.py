"""Bad files and bad rows: every one ends as a code at a place, or as a DataError in words; fast, without a traceback.

The numbers are those of the catalogue of malformed inputs that the reader is held against (M01 to M66 and some more).
"""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from halo_forge.data import CheckReport, check_file
from halo_forge.data.files.rows import MAX_ROW_CHARS
from halo_forge.data.files.sources import read_rows
from halo_forge.errors import DataError, ExitCode


def good(number: int = 0) -> str:
    turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    return json.dumps({"messages": turns})


def messages(*turns: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


def row(value: object) -> str:
    return json.dumps(value)


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., CheckReport]:
    """Write bytes to a file and check it; a hang shows as a failed limit."""

    def run(content: str | bytes, name: str = "rows.jsonl") -> CheckReport:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        start = time.monotonic()
        try:
            return check_file(str(path))
        finally:
            assert time.monotonic() - start < 20

    return run


def reported(report: CheckReport) -> dict[int, tuple[str, str]]:
    return {row["line"]: (row["action"], row["code"]) for row in report.rows}


BAD_ROWS = {
    "M07 raw NUL": ('{"messages": \0[]}', "nul_byte"),
    "M08 lone surrogate": (
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}]}',
        "lone_surrogate",
    ),
    "M10 truncated line": (good()[:-9], "bad_json"),
    "M13 trailing comma": ('{"messages": [],}', "bad_json"),
    "M14 NaN": ('{"messages": [], "weight": NaN}', "bad_number"),
    "M15 duplicate key": ('{"messages": [], "messages": []}', "duplicate_key"),
    "M16 deep": ('{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "too_deep"),
    "M16b depth 65": ('{"messages": [], "x": ' + "[" * 65 + "]" * 65 + "}", "too_deep"),
    "M19 string": ('"just text"', "not_an_object"),
    "M20 number": ("42", "not_an_object"),
    "M26 column missing": ('{"dialogue": []}', "missing_columns"),
    "M27 messages null": ('{"messages": null}', "bad_messages"),
    "M28 messages empty": ('{"messages": []}', "bad_messages"),
    "M29 messages string": ('{"messages": "hello"}', "bad_messages"),
    "M30 messages object": ('{"messages": {"role": "user"}}', "bad_messages"),
    "M30b message is a string": ('{"messages": ["hello"]}', "bad_messages"),
    "M31 role missing": (row({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}), "bad_role"),
    "M32 content missing": (row({"messages": [{"role": "user"}, {"role": "assistant"}]}), "missing_content"),
    "M33 content null": (messages(("user", "a"), ("assistant", None)), "null_content"),
    "M34 empty answer": (messages(("user", "a"), ("assistant", "")), "empty_content"),
    "M35 white space": (messages(("user", "a"), ("assistant", " \n\t")), "empty_content"),
    "M35b empty question": (messages(("user", ""), ("assistant", "b")), "empty_content"),
    "M36 content number": (messages(("user", "a"), ("assistant", 7)), "bad_content_type"),
    "M37 image part": (
        messages(("user", [{"type": "image", "image": "a.png"}]), ("assistant", "b")),
        "media_unsupported",
    ),
    "M38 content object": (messages(("user", {"text": "a"}), ("assistant", "b")), "bad_content_type"),
    "M39 role bot": (messages(("user", "a"), ("bot", "b")), "bad_role"),
    "M39b role number": (messages(("user", "a"), (3, "b")), "bad_role"),  # type: ignore[arg-type]
    "M42 only system": (messages(("system", "a")), "no_assistant_turn"),
    "M43 only user": (messages(("user", "a")), "no_assistant_turn"),
    "M44 only assistant": (messages(("assistant", "a")), "no_user_turn"),
    "M46b two assistants": (messages(("user", "a"), ("assistant", "b"), ("assistant", "c")), "consecutive_assistant"),
    "M48 system in the middle": (messages(("user", "a"), ("system", "s"), ("assistant", "b")), "system_not_first"),
    "M49 call without result": (
        row(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
                    {"role": "user", "content": "b"},
                    {"role": "assistant", "content": "c"},
                ]
            }
        ),
        "tool_call_without_result",
    ),
    "M50 result without call": (messages(("user", "a"), ("tool", "1"), ("assistant", "b")), "tool_result_without_call"),
    "M51 arguments not JSON": (
        row(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]},
                ]
            }
        ),
        "bad_tool_call",
    ),
    "M61 1e999": ('{"messages": [], "score": 1e999}', "bad_number"),
    "M61b 5000 digits": ('{"messages": [], "score": ' + "9" * 5000 + "}", "bad_number"),
    "M62 token columns": (row({**json.loads(good(5)), "input_ids": [1], "labels": [1]}), "reserved_columns"),
    "M63 glued objects": (good(1) + good(2), "glued_objects"),
    "M64 Python repr": ("{'messages': []}", "bad_json"),
    "M65 comment": ("// the first row", "bad_json"),
    "M05 Latin-1": (b'{"messages": "caf\xe9"}', "bad_encoding"),
    "M87 row weight": (row({**json.loads(good(6)), "weight": -1}), "bad_weight"),
    "M100 many messages": (row({"messages": [{"role": "user", "content": "a"}] * 100_000}), "bad_messages"),
}


@pytest.mark.parametrize(("line", "code"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_dropped_with_its_code_and_line(
    checked: Callable[..., CheckReport], line: str | bytes, code: str
) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    report = checked(b"\n".join([good(10).encode(), good(11).encode(), bad, good(12).encode(), b""]))
    assert reported(report) == {3: ("dropped", code)}
    assert (report.read, report.kept, report.dropped) == (4, 3, 1)
    assert report.rows[0]["file"].endswith("rows.jsonl")
    assert report.rows[0]["reason"]
    assert len(report.rows[0]["excerpt"]) <= 120


MENDED_ROWS = {
    "M06 NUL in text": (messages(("user", "a\0b"), ("assistant", "c")), "nul_removed"),
    "M40 role case": (messages(("User", "a"), ("ASSISTANT", "c")), "role_normalised"),
    "developer": (messages(("developer", "s"), ("user", "a"), ("assistant", "c")), "role_normalised"),
    "M45 assistant first": (
        messages(("assistant", "hi"), ("user", "a"), ("assistant", "b")),
        "leading_assistant_dropped",
    ),
    "M46 two users": (messages(("user", "a"), ("user", "b"), ("assistant", "c")), "turns_joined"),
    "M47 ends with user": (messages(("user", "a"), ("assistant", "b"), ("user", "c")), "trailing_turn_dropped"),
    "empty system": (messages(("system", " "), ("user", "a"), ("assistant", "b")), "empty_system_dropped"),
    "messages as text": (row({"messages": json.dumps(json.loads(good(3))["messages"])}), "json_text_parsed"),
}


@pytest.mark.parametrize(("line", "code"), MENDED_ROWS.values(), ids=MENDED_ROWS.keys())
def test_a_mended_row_is_kept_and_counted(checked: Callable[..., CheckReport], line: str, code: str) -> None:
    report = checked(f"{good(1)}\n{line}\n")
    assert reported(report) == {2: ("fixed", code)}
    assert (report.kept, report.fixed, report.dropped) == (2, 1, 0)
    assert report.reasons == {code: 1}


SOUND_FILES = {
    "M11 line ends of all kinds": good(1).encode() + b"\r\n" + good(2).encode() + b"\r" + good(3).encode() + b"\n",
    "M12 blank lines": f"{good(1)}\n\n   \n{good(2)}\n{good(3)}",
    "M17 array named jsonl": f"[{good(1)},\n{good(2)}, {good(3)}]",
    "M21 gzip": gzip.compress(f"{good(1)}\n{good(2)}\n{good(3)}\n".encode()),
    "M66 emoji": "\n".join(messages(("user", f"👩‍👩‍👧 𝔘 {n}"), ("assistant", "🏳️‍🌈")) for n in range(3)),
    "U+2028 is no line end": "\n".join(messages(("user", f"a {n}"), ("assistant", "b")) for n in range(3)),
}


@pytest.mark.parametrize("content", SOUND_FILES.values(), ids=SOUND_FILES.keys())
def test_unusual_files_are_read_whole(checked: Callable[..., CheckReport], content: str | bytes) -> None:
    report = checked(content)
    assert (report.read, report.kept, report.fixed, report.dropped) == (3, 3, 0, 0)


def test_line_numbers_are_those_of_the_file(checked: Callable[..., CheckReport]) -> None:
    """Blank lines and every kind of line end count, as in an editor."""
    report = checked(f"\n\r\n{good(1)}\r\r\n\n[]\n{good(2)}\n\n[]")
    assert reported(report) == {6: ("dropped", "not_an_object"), 9: ("dropped", "not_an_object")}
    text = checked("\n\none\n\n\ntwo\n---\n" + "three\n" + "x\0\n", "rows.txt")
    assert [(row["line"], row["code"]) for row in text.rows] == [(8, "nul_removed")]


def test_what_was_unusual_is_said(checked: Callable[..., CheckReport]) -> None:
    assert any("2 blank lines" in note for note in checked(f"{good(1)}\n\n\n{good(2)}").notes)
    assert any("one JSON array" in note for note in checked(f"[{good(1)}]").notes)


def test_bom_is_removed_and_counted(checked: Callable[..., CheckReport]) -> None:
    report = checked(b"\xef\xbb\xbf" + good(1).encode() + b"\n" + good(2).encode())
    assert reported(report) == {1: ("fixed", "bom_removed")}


def test_a_cut_off_last_line_is_told_from_other_damage(checked: Callable[..., CheckReport]) -> None:
    report = checked(f"{good(1)}\n{good(2)[:-20]}")
    assert reported(report) == {2: ("dropped", "truncated_line")}


def test_an_endless_line_costs_neither_time_nor_the_rest(checked: Callable[..., CheckReport]) -> None:
    huge = '{"messages": "' + "a" * (30 * 2**20) + '"}'
    report = checked(f"{good(1)}\n{huge}\n{good(2)}\n")
    assert reported(report) == {2: ("dropped", "line_too_long")}
    assert len(huge) > MAX_ROW_CHARS


def test_flags_are_kept_rows(checked: Callable[..., CheckReport]) -> None:
    report = checked(
        messages(("user", "a\x1b[31m red"), ("assistant", "b"))
        + "\n"
        + messages(("user", "Cafe\u0301"), ("assistant", "b"))
        + "\n"
        + messages(("user", "\u202eevil"), ("assistant", "b"))
    )
    assert reported(report) == {
        1: ("kept", "control_characters"),
        2: ("kept", "not_nfc"),
        3: ("kept", "control_characters"),
    }
    assert (report.kept, report.fixed) == (3, 0)


FILE_ERRORS = {
    "M01 empty": (b"", "rows.jsonl", "empty"),
    "M02 blank": (b"\n\n  \n", "rows.jsonl", "blank lines"),
    "M04 UTF-16 with mark": (good().encode("utf-16"), "rows.jsonl", "UTF-16"),
    "M04b UTF-16 without": (good().encode("utf-16-le"), "rows.jsonl", "UTF-16"),
    "M22 junk Parquet": (b"not parquet at all", "rows.parquet", "not a Parquet file"),
    "M73 cut Parquet": (b"PAR1" + b"\0" * 100, "rows.parquet", "Parquet file cannot be read"),
    "M23 HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "rows.jsonl", "HTML"),
    "M24 git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "rows.jsonl", "git-lfs"),
    "M25 no known column": (b'{"foo": 1, "bar": 2}\n', "rows.jsonl", "foo, bar"),
    "M25b near miss": (b'{"promt": "a", "completions": "b"}\n', "rows.jsonl", "nearest is prompt_completion"),
    "zip": (b"PK\x03\x04junk", "rows.json", "zip archive"),
    "pickle": (b"\x80\x04\x95junk", "rows.jsonl", "pickle"),
    "unknown kind": (b"hello there", "rows.dat", "not clear"),
    "broken array": (f"[{good(1)}, {good(2)} {good(3)}]".encode(), "rows.json", "comma"),
    "cut array": (f"[{good(1)}, {good(2)[:-10]}".encode(), "rows.json", "cut off"),
    "array with comma": (f"[{good(1)},]".encode(), "rows.json", "comma before"),
    "text after array": (f"[{good(1)}] {good(2)}".encode(), "rows.json", "more text"),
    "cut object": (b'{\n "data": [\n', "rows.json", "not JSON: the file looks cut off"),
    "broken object": (b'{\n "data": [\n {"a" 1}]}', "rows.json", r"not JSON: column 7[^$]*rows\.json:3"),
    "Latin-1 object": (b'{"data": [\n{"text": "caf\xe9"}]}', "rows.json", "not UTF-8"),
    "deep object": (b'{\n "data": ' + b"[" * 9999 + b"]" * 9999 + b"}", "rows.json", "nested deeper"),
    "duplicate key": (b'{\n "data": 1,\n "data": 2\n}', "rows.json", "twice in one object"),
    "deep array": (b"[" * 9999 + b"]" * 9999, "rows.json", "nested deeper"),
    "damaged gzip": (gzip.compress(good().encode() * 99)[:-20], "rows.jsonl.gz", "gzip file is damaged"),
    "CSV header twice": (b"question,question\n1,2\n", "rows.csv", "twice"),
    "empty array": (b"[ ]", "rows.json", "no rows"),
    "header only": (b"question,answer\n", "rows.csv", "no rows"),
}


@pytest.mark.parametrize(("content", "name", "words"), FILE_ERRORS.values(), ids=FILE_ERRORS.keys())
def test_a_file_that_cannot_be_rows_is_refused_in_words(
    checked: Callable[..., CheckReport], content: bytes, name: str, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        checked(content, name)
    assert name in str(caught.value.where)
    assert caught.value.exit_code == ExitCode.DATA


def test_a_gzip_bomb_is_stopped(checked: Callable[..., CheckReport]) -> None:
    with pytest.raises(DataError, match="times its size"):
        checked(gzip.compress(good().encode() + b"\n" + b"a" * 100_000_000, compresslevel=6), "rows.jsonl.gz")


def test_pretty_printed_jsonl_is_explained(checked: Callable[..., CheckReport]) -> None:
    report = checked(json.dumps(json.loads(good()), indent=1))
    assert report.kept == 0
    assert "one object per line" in report.rows[0]["reason"]


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(good())
    with pytest.raises(DataError, match=r"train\.jsonl") as caught:
        check_file(str(tmp_path / "trian.jsonl"))
    assert "did you mean" in str(caught.value.fix)
    with pytest.raises(DataError, match="no directory"):
        check_file(str(tmp_path / "nowhere" / "a.jsonl"))


def test_directories_patterns_and_lists(tmp_path: Path) -> None:
    for number, name in enumerate(["b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden.jsonl", "notes.pdf"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(good(number))
    assert [Path(source["path"]).name for source in check_file(str(tmp_path)).sources] == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
    ]
    assert check_file(str(tmp_path / "*.jsonl")).read == 2
    assert check_file([str(tmp_path / "a.jsonl"), str(tmp_path)]).read == 3, "a file named twice is read once"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files"):
        check_file(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no file matches"):
        check_file(str(tmp_path / "*.parquet"))


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        check_file("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a file"):
        check_file(str(tmp_path / "pipe.jsonl"))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="link to nowhere"):
        check_file(str(tmp_path / "link.jsonl"))
    with pytest.raises(DataError, match="cannot be opened"):
        check_file("a" * 300 + ".jsonl")


def test_odd_file_names(tmp_path: Path) -> None:
    for name in (b"a\nb.jsonl", b"-rf.jsonl", b"caf\xe9.jsonl", b"\x1b[31m.jsonl"):
        path = tmp_path / os.fsdecode(name)
        path.write_text(good() + "\n[]\n")
        report = check_file(str(path))
        assert reported(report) == {2: ("dropped", "not_an_object")}
        assert report.sources[0]["path"].isprintable()
        assert report.sources[0]["path"].encode()


def test_a_file_that_changes_or_goes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for spoil in (lambda: path.write_text("changed"), path.unlink):
        path.write_text("\n".join(good(number) for number in range(5000)))
        rows = read_rows(path, lambda text: None)
        next(rows)
        spoil()
        with pytest.raises(DataError, match="changed while it was read"):
            list(rows)


def test_memory_stays_within_the_limit_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        for _ in range(6):
            file.write("a" * (20 * 2**20))
        file.write("\n" + good())
    tracemalloc.start()
    try:
        assert check_file(str(path)).kept == 1
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * MAX_ROW_CHARS


def test_json_arrays_are_read_in_pieces(checked: Callable[..., CheckReport]) -> None:
    """More elements than one window of text, with bad ones among them that do not end the reading."""
    rows = [good(number) for number in range(2000)]
    rows[700] = '{"messages": [], "messages": []}'
    rows[1500] = "17"
    report = checked("[\n" + ",\n".join(rows) + "\n]\n", "rows.json")
    assert report.read == 2000
    assert reported(report) == {701: ("dropped", "duplicate_key"), 1501: ("dropped", "not_an_object")}


def test_json_objects_and_lines_in_a_json_file(checked: Callable[..., CheckReport]) -> None:
    assert checked('{"version": 1, "data": [' + good(1) + "," + good(2) + "]}", "rows.json").read == 2
    assert checked(f"{good(1)}\n{good(2)}\n", "rows.json").read == 2
    assert checked(good(1), "rows.json").read == 1
    assert reported(checked(f"{good(1)[:-5]}\n{good(2)}\n", "rows.json")) == {1: ("dropped", "bad_json")}


LONG_CELL = " ".join(f"word{number}" for number in range(20_000)).encode()
CSV_CASES = {
    "semicolon": (b"question;answer\nWhat, is it?;This\n", 1, {}),
    "tab": (b"question\tanswer\nWhat, is it?\tThis\n", 1, {}),
    "quoted line end": (b'question,answer\n"a\nb",c\nd,e\n', 2, {}),
    "one column": (b"text\nhello there\nsecond document\n", 2, {}),
    "BOM": (b"\xef\xbb\xbfquestion,answer\na,b\n", 1, {2: ("fixed", "bom_removed")}),
    "M68 ragged": (
        b"question,answer\na,b\nc,d,e\nf\ng,h\ni,j\n",
        5,
        {3: ("dropped", "ragged_row"), 4: ("dropped", "ragged_row"), 5: ("dropped", "ragged_row")},
    ),
    "M71 long cell": (b"question,answer\na," + LONG_CELL + b"\n", 1, {}),
    "M67 open quote": (b'question,answer\na,b\n"c,d\n', 2, {3: ("dropped", "bad_csv")}),
    "Latin-1": (b"question,answer\na,b\ncaf\xe9,d\n", 2, {3: ("dropped", "bad_encoding")}),
    "M70 formula": (b"question,answer\n=cmd|' /C calc'!A0,b\n", 1, {}),
    "empty cell": (b"question,answer\na,\nb,c\n", 2, {2: ("dropped", "empty_content")}),
}


@pytest.mark.parametrize(("content", "num_read", "expected"), CSV_CASES.values(), ids=CSV_CASES.keys())
def test_csv(
    checked: Callable[..., CheckReport], content: bytes, num_read: int, expected: dict[int, tuple[str, str]]
) -> None:
    report = checked(content, "rows.csv")
    assert report.read == num_read
    assert reported(report) == expected


def test_csv_line_numbers_follow_quoted_line_ends(checked: Callable[..., CheckReport]) -> None:
    report = checked(b'question,answer\n"a\nb\nc",d\n,x\n', "rows.csv")
    assert reported(report) == {5: ("dropped", "empty_content")}


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    values = [json.loads(good(number)) for number in range(600)]
    values[300] = {"messages": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    report = check_file(str(path))
    assert report.read == 600
    assert reported(report) == {301: ("dropped", "bad_messages")}
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(values[:0], schema=pyarrow.schema([("text", "string")])), path
    )
    with pytest.raises(DataError, match="no rows"):
        check_file(str(path))
    broken = pyarrow.array([b"caf\xe9"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(DataError, match="cannot be read"):
        check_file(str(path))
