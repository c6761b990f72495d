"""M67 to M100: CSV, Parquet, Arrow, directories, names, other formats and media, as data; and the cases that a file
alone cannot show, with the test that shows them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malformed.malformed_rows import ANSWER, SENTENCES, Case, asked, file_case, good, row_case, sound_case, written

NOT_MEASURED = "not measured"
CSV = "question,answer\n" + "".join(f'"{question}","{answer}"\n' for question, answer in SENTENCES[:2])


def parquet_of(values: list[dict[str, Any]], **options: Any) -> Callable[[Path], str]:
    def build(directory: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), directory / "rows.parquet", **options)
        return "rows.parquet"

    return build


def cut_parquet(directory: Path) -> str:
    parquet_of([json.loads(good(0))])(directory)
    data = (directory / "rows.parquet").read_bytes()
    (directory / "rows.parquet").write_bytes(data[:-40])
    return "rows.parquet"


def empty_parquet(directory: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.ParquetWriter(directory / "rows.parquet", pyarrow.schema([("text", "string")])).close()
    return "rows.parquet"


def null_lists(directory: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    rows = [json.loads(good(0))["messages"], None, [], [None], [{"role": None, "content": None}]]
    column = pyarrow.array(rows, pyarrow.list_(turn))
    pyarrow.parquet.write_table(pyarrow.table({"messages": column}), directory / "rows.parquet")
    return "rows.parquet"


def parquet_bomb(directory: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array(["a" * 2**20] * 64)
    pyarrow.parquet.write_table(
        pyarrow.table({"text": column}), directory / "rows.parquet", compression="zstd", use_dictionary=False
    )
    return "rows.parquet"


def arrow_with_objects(directory: Path) -> str:
    import pyarrow
    import pyarrow.ipc

    class Marker:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(directory / "opened"),))  # what a careless reader would run

    table = pyarrow.table({"text": pyarrow.array([pickle.dumps(Marker())] * 2, pyarrow.binary())})
    extended = pyarrow.uuid().wrap_array(pyarrow.array([b"0" * 16] * 2, pyarrow.binary(16)))
    table = table.append_column("id", extended)
    with pyarrow.ipc.new_file(str(directory / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    return "rows.arrow"


def two_schemas(directory: Path) -> str:
    (directory / "a.jsonl").write_text(good(0) + "\n")
    (directory / "b.csv").write_text(
        "question,answer\n" + "Which bird cannot fly?,The ostrich is the largest of them.\n"
    )
    return "."


def many_shards(directory: Path) -> str:
    for number in range(10_000):
        (directory / f"{number:05}.jsonl").write_text(
            f'{{"text": "document {number * 7919 % 10_007} of the shards"}}\n'
        )
    return "."


def link_outside(directory: Path) -> str:
    outside = directory.parent / f"{directory.name}-outside.jsonl"
    outside.write_text(good(0) + "\n")
    (directory / "rows.jsonl").symlink_to(outside)
    return "rows.jsonl"


def with_media(id: str, what: str, *parts: dict[str, Any]) -> Case:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return row_case(id, what, asked(("user", content), ANSWER), "media_unsupported", NOT_MEASURED)


TABLES: tuple[Case, ...] = (
    Case(id="M67", what="CSV, line end in a cell without quotes", peers=NOT_MEASURED, kept=2,
         build=written("rows.csv", CSV + "What is\nthis?,A stone.\n"),
         lines={4: ("dropped", "ragged_row"), 5: ("dropped", "ragged_row")}),
    Case(id="M68", what="CSV, too few and too many cells", peers=NOT_MEASURED, kept=2,
         build=written("rows.csv", CSV + "a,b,c\nd\n"), lines={4: ("dropped", "ragged_row"), 5: ("dropped",
             "ragged_row")}),
    sound_case("M69", "CSV with semicolons", "rows.csv",
        "question;answer\nWhat, is it?;This, that\nWho?;He, perhaps\n", 2,
               NOT_MEASURED),
    sound_case("M70", "CSV, a cell that a spreadsheet would run", "rows.csv",
        "question,answer\n=cmd|' /C calc'!A0,It is text.\n",
               1, NOT_MEASURED),
    sound_case("M71", "CSV cell of 200 kB", "rows.csv", "question,answer\nWhat?," + "word " * 40_000 + "\n", 1,
        NOT_MEASURED),
    file_case("M72", "CSV header names a column twice", "rows.csv", "question,question\n1,2\n", "twice", NOT_MEASURED),
    Case(id="M73", what="Parquet without its end", peers=NOT_MEASURED, build=cut_parquet,
        error="Parquet file cannot be read"),
    Case(id="M74", what="Parquet without row groups", peers=NOT_MEASURED, build=empty_parquet, error="no rows"),
    Case(id="M75", what="Parquet, nulls for lists, messages and contents", peers=NOT_MEASURED, build=null_lists, kept=1,
         lines={2: ("dropped", "bad_messages"), 3: ("dropped", "bad_messages"), 4: ("dropped", "bad_messages"),
                5: ("dropped", "bad_role")}),
    Case(id="M76", what="Parquet that expands 1000 times", peers=NOT_MEASURED, build=parquet_bomb,
        error="times its size"),
    Case(id="M77", what="Arrow, pickled objects and an extension type", peers=NOT_MEASURED, build=arrow_with_objects,
         lines={1: ("dropped", "bad_content_type"), 2: ("dropped", "bad_content_type")}),
)  # fmt: skip
PLACES: tuple[Case, ...] = (
    Case(id="M78", what="two shards with different columns", peers="a cast error for the whole set",
        build=two_schemas, kept=2),
    Case(id="M79", what="10 000 shards", peers=NOT_MEASURED, build=many_shards, kept=10_000),
    Case(id="M80", what="a directory instead of a file", peers=NOT_MEASURED,
         build=lambda directory: (written("rows.jsonl", good(0) + "\n")(directory), ".")[1], kept=1),
    Case(id="M82", what="a link that leads out of the data directory", peers=NOT_MEASURED, build=link_outside, kept=1),
)  # fmt: skip
OTHER: tuple[Case, ...] = (
    Case(id="M87", what="Alpaca, instruction and input empty", peers=NOT_MEASURED, kept=1, lines={2: ("dropped",
        "empty_content")},
         build=written("rows.jsonl", json.dumps({"instruction": "Name a tree.", "input": "",
             "output": "The common oak."}) + "\n"
                       + json.dumps({"instruction": "", "input": "", "output": "A"}) + "\n")),
    Case(id="M88", what="Alpaca, output a list", peers=NOT_MEASURED, kept=1, lines={2: ("dropped", "bad_content_type")},
         build=written("rows.jsonl", json.dumps({"instruction": "Name a tree.", "input": "",
             "output": "The common oak."}) + "\n"
                       + json.dumps({"instruction": "Q", "input": "", "output": ["A"]}) + "\n")),
    sound_case("M89", "the prompt holds the completion", "rows.jsonl",
               json.dumps({"prompt": "Repeat after me: the sea is calm.", "completion": "the sea is calm."}) + "\n", 1,
               "trains a mask that may be off"),
    Case(id="M91", what="one row", peers=NOT_MEASURED, kept=1, build=written("rows.jsonl", good(0) + "\n")),
    with_media("M93", "image path that leads nowhere", {"type": "image_url", "image_url": {"url": "nowhere.jpg"}}),
    with_media("M94", "truncated JPEG", {"type": "image", "path": "cut.jpg"}),
    with_media("M95", "PNG bomb", {"type": "image", "image": "bomb.png"}),
    with_media("M96", "image of no or absurd size", {"type": "input_image", "image_url": "wide.png"}),
    row_case("M97", "more image markers than images",
             json.dumps({**json.loads(asked(("user", "<image><image> What is this?"), ANSWER)), "images": ["one.png"]}),
             "media_unsupported", NOT_MEASURED),
    with_media("M98", "audio without samples", {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
    with_media("M99", "audio at an internal address", {"type": "audio",
        "audio": "http://169.254.169.254/latest/meta-data"}),
    row_case("M100", "a row of 100 000 messages", json.dumps({"messages": [{"role": "user",
        "content": "a"}] * 100_000}),
             "bad_messages", NOT_MEASURED),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A case that more than a file is needed for: what is answered, and the test that shows it."""

    id: str
    what: str
    peers: str
    answer: str
    test: str


SHOWN: tuple[Shown, ...] = (
    Shown(id="M52", what="special tokens inside a user's text", peers="becomes a real assistant turn, silently",
          answer="`special_tokens_neutralised` (fixed): encoded as ordinary text",
              test="test_special_tokens_in_a_text_stay_text"),
    Shown(id="M53", what="prompt longer than the limit", peers="the row vanishes without a count",
          answer="`too_long` (dropped), counted and listed", test="test_a_row_that_is_too_long_is_refused_by_name"),
    Shown(id="M54", what="every row longer than the limit", peers="num_samples=0 ValueError",
          answer="each row `too_long`; the run stops with the count",
              test="test_a_row_that_is_too_long_is_refused_by_name"),
    Shown(id="M55", what="answer cut at the limit, end token lost", peers="trains an answer without an end, silently",
          answer="data.overlong: drop (default), truncate (told as `truncated`) or fail",
              test="test_a_cut_answer_is_told"),
    Shown(id="M81", what="a pipe or /dev/zero as a file", peers=NOT_MEASURED,
          answer="DataError: this is a device, pipe or socket, not a file", test="test_devices_and_pipes_are_refused"),
    Shown(id="M83", what="file changed while it is read", peers=NOT_MEASURED,
          answer="DataError: the file changed while it was read",
              test="test_a_file_that_changes_or_goes_while_it_is_read"),
    Shown(id="M84", what="file that may not be read", peers=NOT_MEASURED, answer="DataError: this file may not be read",
          test="test_a_file_that_may_not_be_read"),
    Shown(id="M85", what="file deleted while it is read", peers=NOT_MEASURED,
          answer="DataError: the file changed while it was read",
              test="test_a_file_that_changes_or_goes_while_it_is_read"),
    Shown(id="M86", what="names with line ends, dashes, foreign bytes, 255+ bytes", peers=NOT_MEASURED,
          answer="read, and printed escaped; an impossible name is a DataError", test="test_odd_names"),
    Shown(id="M90", what="the same row in training and holdout", peers="both are used, silently",
          answer="`in_holdout` (dropped from training)", test="test_a_row_of_the_holdout_is_not_trained"),
    Shown(id="M92", what="fewer rows than ranks", peers=NOT_MEASURED,
          answer="the data room keeps every row; the training engine shares them out",
              test="test_one_row_is_enough_to_check"),
)  # fmt: skip
CASES = (*TABLES, *PLACES, *OTHER)
