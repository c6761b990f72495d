"""M01 to M66: JSON files and rows that are wrong, as data.

A case builds its file and says what must be answered: per line an action and a code, or words of the one error. `peers`
says what TRL 1.16 with datasets 5.2 did with the same file when it was measured.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Outcome = Mapping[int, tuple[str, str]]
SENTENCES = (
    ("Which river flows through Vienna?", "The Danube runs through the city from north-west to south-east."),
    ("How do bees find their way home?", "They remember landmarks and read the position of the sun."),
    ("What is a sonnet?", "A poem of fourteen lines, often with a turn before its end."),
    ("Why does bread rise?", "Yeast eats sugar and gives off gas, which the dough holds in bubbles."),
    ("Name a prime between twenty and thirty.", "Both 23 and 29 are prime."),
    ("Who wrote Middlemarch?", "George Eliot, whose real name was Mary Ann Evans."),
    ("What keeps a ship afloat?", "It displaces water that weighs as much as the whole ship."),
    ("How long is a marathon?", "A little more than forty-two kilometres."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`build` writes into an empty directory and returns what to check. `lines` are the rows that are not simply
    kept; `kept` counts the kept ones. `error` is a pattern of the DataError where the file as a whole is refused."""

    id: str
    what: str
    peers: str
    build: Callable[[Path], str]
    lines: Outcome = field(default_factory=dict)
    kept: int = 0
    error: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def chat(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def good(number: int) -> str:
    question, answer = SENTENCES[number]
    return json.dumps(chat(("user", question), ("assistant", answer)))


def asked(*turns: tuple[Any, Any]) -> str:
    return json.dumps(chat(*turns))


def written(name: str, content: str | bytes) -> Callable[[Path], str]:
    def build(directory: Path) -> str:
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return build


def row_case(id: str, what: str, line: str | bytes, code: str, peers: str, action: str = "dropped") -> Case:
    """A bad third line among three good ones: nothing but that line may be touched."""
    bad = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    content = b"\n".join([good(0).encode(), good(1).encode(), bad, good(2).encode(), b""])
    kept = 3 if action == "dropped" else 4
    return Case(
        id=id, what=what, peers=peers, build=written("rows.jsonl", content), lines={3: (action, code)}, kept=kept
    )


def file_case(id: str, what: str, name: str, content: str | bytes, error: str, peers: str) -> Case:
    return Case(id=id, what=what, peers=peers, build=written(name, content), error=error)


def sound_case(id: str, what: str, name: str, content: str | bytes, kept: int, peers: str) -> Case:
    return Case(id=id, what=what, peers=peers, build=written(name, content), kept=kept)


def endless_line(directory: Path) -> str:
    with open(directory / "rows.jsonl", "w") as file:
        file.write(good(0) + "\n" + '{"messages": "')
        for _ in range(30):
            file.write("a" * 2**20)
        file.write('"}\n' + good(1) + "\n")
    return "rows.jsonl"


CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
TRACE, SILENT, TAKEN = "traceback for the whole run", "accepted, silently", "accepted"
LINES = "\n".join(good(number) for number in range(3)) + "\n"
ROW_TEXT = good(3)
FILES: tuple[Case, ...] = (
    file_case("M01", "empty file", "rows.jsonl", b"", "the file is empty", "StopIteration traceback"),
    file_case("M02", "only blank lines", "rows.jsonl", "\n\n  \n\n", "blank lines", "ValueError traceback"),
    Case(id="M03", what="UTF-8 byte order mark", peers=TAKEN, kept=3, lines={1: ("fixed", "bom_removed")},
         build=written("rows.jsonl", b"\xef\xbb\xbf" + LINES.encode())),
    file_case("M04", "UTF-16 file", "rows.jsonl", LINES.encode("utf-16"), "UTF-16", TRACE),
    row_case("M05", "Latin-1 bytes in a row", b'{"messages": "caf\xe9"}', "bad_encoding", "UnicodeDecodeError, late"),
    row_case("M06", "NUL escape in a text", asked(("user", "a\0b?"), ("assistant", "Yes, that is so.")),
        "nul_removed", SILENT,
             "fixed"),
    row_case("M07", "raw NUL byte", '{"messages": \0[]}', "nul_byte", TRACE),
    row_case("M08", "lone surrogate", asked(("user", "\ud83d"), ("assistant", "b")), "lone_surrogate", TRACE),
    Case(id="M09", what="last line cut off", peers=TRACE, kept=3, lines={4: ("dropped", "truncated_line")},
         build=written("rows.jsonl", LINES + ROW_TEXT[:-20])),
    row_case("M10", "line cut off in the middle of the file", ROW_TEXT[:-20], "bad_json", TRACE),
    sound_case("M11", "line ends of three kinds", "rows.jsonl",
               good(0) + "\r\n" + good(1) + "\r" + good(2) + "\n", 3, TAKEN),
    sound_case("M12", "blank lines between rows", "rows.jsonl", LINES.replace("\n", "\n\n \n"), 3, TAKEN),
    row_case("M13", "trailing comma", ROW_TEXT[:-1] + ",}", "bad_json", TRACE),
    row_case("M14", "NaN literal", ROW_TEXT[:-1] + ', "score": NaN}', "bad_number", SILENT),
    row_case("M15", "duplicate key", ROW_TEXT[:-1] + ', "messages": []}', "duplicate_key",
             "traceback with a misleading reason"),
    row_case("M16", "5000 levels of nesting", '{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "too_deep",
             "ValueError traceback"),
    sound_case("M17", "JSON array named .jsonl", "rows.jsonl", f"[{good(0)},\n{good(1)}, {good(2)}]", 3, TAKEN),
    Case(id="M18", what="one line of 30 MB", peers="hangs for more than 100 s", build=endless_line, kept=2,
         lines={2: ("dropped", "line_too_long")}),
    row_case("M19", "a string as a row", '"just text"', "not_an_object", TRACE),
    row_case("M20", "a number as a row", "42", "not_an_object", TRACE),
    sound_case("M21", "gzip under the name of a plain file", "rows.jsonl", gzip.compress(LINES.encode()), 3, TAKEN),
    file_case("M21b", "gzip bomb", "rows.jsonl.gz", gzip.compress(b"a" * 100_000_000), "times its size",
              "expands without limit"),
    file_case("M22", "text named .parquet", "rows.parquet", "not parquet at all", "not a Parquet file", TRACE),
    file_case("M23", "HTML error page", "rows.jsonl", "<!DOCTYPE html><html><body>404</body></html>", "HTML page",
        TRACE),
    file_case("M24", "git-lfs pointer", "rows.jsonl",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
              "git-lfs pointer", TRACE),
    file_case("M25", "no column of any format", "rows.jsonl", '{"promt": "a", "completions": "b"}\n',
              "nearest is prompt_completion", "ValueError with another reason"),
)  # fmt: skip

TURN = ("user", "Where do storks winter?")
ANSWER = ("assistant", "Most of them fly to Africa, some stay in Spain.")
ROWS: tuple[Case, ...] = (
    row_case("M26", "one row without messages", '{"dialogue": []}', "missing_columns", "KeyError: 'text'"),
    row_case("M27", "messages null", '{"messages": null}', "bad_messages", "KeyError: 'text'"),
    row_case("M28", "messages empty", '{"messages": []}', "bad_messages", "IndexError traceback"),
    row_case("M29", "messages a string", '{"messages": "hello"}', "bad_messages", "KeyError traceback"),
    row_case("M30", "messages an object", '{"messages": {"role": "user"}}', "bad_messages", "KeyError traceback"),
    row_case("M31", "message without role", json.dumps({"messages": [{"content": "a"}, {"role": "assistant",
        "content": "b"}]}),
             "bad_role", "KeyError: 'text'"),
    row_case("M32", "message without content", json.dumps({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant"}]}),
             "missing_content", "UndefinedError traceback"),
    row_case("M33", "content null", asked(TURN, ("assistant", None)), "null_content", "UndefinedError traceback"),
    row_case("M34", "empty answer", asked(TURN, ("assistant", "")), "empty_content", "trains silence, silently"),
    row_case("M35", "answer of white space", asked(TURN, ("assistant", " \n\t")), "empty_content",
        "trains it, silently"),
    row_case("M36", "content a number", asked(TURN, ("assistant", 7)), "bad_content_type", "TypeError traceback"),
    row_case("M37", "image part in a text run", asked(("user", [{"type": "image", "image": "a.png"}]), ANSWER),
             "media_unsupported", "TypeError traceback"),
    row_case("M38", "content an object", asked(("user", {"text": "a"}), ANSWER), "bad_content_type",
        "TypeError traceback"),
    row_case("M39", "role bot", asked(TURN, ("bot", "b")), "bad_role", "RuntimeError that blames the template"),
    row_case("M40", "role in capitals", asked(TURN, ("Assistant", ANSWER[1])), "role_normalised",
             "RuntimeError that blames the template", "fixed"),
    Case(id="M41", what="ShareGPT keys", peers="ValueError traceback", kept=2,
         build=written("rows.jsonl", "".join(json.dumps({"conversations": [
             {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}) + "\n"
             for question, answer in SENTENCES[:2]))),
    row_case("M42", "only a system message", asked(("system", "Be brief.")), "no_assistant_turn",
        "RuntimeError for the whole run"),
    row_case("M43", "only a user message", asked(TURN), "no_assistant_turn", "RuntimeError for the whole run"),
    row_case("M44", "only an assistant message", asked(ANSWER), "no_user_turn", SILENT),
    row_case("M45", "the assistant speaks first", asked(("assistant", "Hello!"), TURN, ANSWER),
        "leading_assistant_dropped",
             SILENT, "fixed"),
    row_case("M46", "two user turns in a row", asked(("user", "One question."), TURN, ANSWER), "turns_joined", SILENT,
        "fixed"),
    row_case("M46b", "two answers in a row", asked(TURN, ANSWER, ("assistant", "c")), "consecutive_assistant", SILENT),
    row_case("M47", "the user speaks last", asked(TURN, ANSWER, ("user", "Thanks!")), "trailing_turn_dropped", SILENT,
        "fixed"),
    row_case("M48", "system message in the middle", asked(TURN, ("system", "s"), ANSWER), "system_not_first", SILENT),
    row_case("M49", "tool call without its result", json.dumps({"messages": [
        {"role": "user", "content": "a"}, CALL, {"role": "user", "content": "b"}, {"role": "assistant",
            "content": "c"}]}),
             "tool_call_without_result", "silent; some templates drop the call"),
    row_case("M50", "tool result without a call", asked(TURN, ("tool", "1"), ANSWER), "tool_result_without_call",
        SILENT),
    row_case("M51", "tool arguments that are not JSON", json.dumps({"messages": [{"role": "user", "content": "a"},
             {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}]}),
                 "bad_tool_call",
             "UndefinedError traceback"),
    row_case("M57", "control and direction characters", asked(("user", "Is \x1b[31mthis\u202e red?"), ANSWER),
             "control_characters", SILENT, "kept"),
    row_case("M58", "decomposed characters (NFD)", asked(("user", "Where is the Cafe\u0301 Central?"), ANSWER),
        "not_nfc", SILENT,
             "kept"),
    sound_case("M59", "id a number, then a string", "rows.jsonl",
               "".join(json.dumps({**json.loads(good(n)), "id": value}) + "\n" for n, value in enumerate([1, "b"])),
                   2, TAKEN),
    sound_case("M60", "an integer of 2^70", "rows.jsonl",
               "".join(json.dumps({**json.loads(good(n)), "n": 2**70}) + "\n" for n in range(2)), 2,
                   "column becomes float64"),
    row_case("M61", "the number 1e999", ROW_TEXT[:-1] + ', "score": 1e999}', "bad_number", TRACE),
    row_case("M62", "columns named input_ids and labels", ROW_TEXT[:-1] + ', "input_ids": [1], "labels": [1]}',
             "reserved_columns", "ignores the messages and trains the file's numbers, silently"),
    row_case("M63", "two objects on one line", good(3) + good(4), "glued_objects", TAKEN),
    row_case("M64", "quotes as Python prints them", "{'messages': []}", "bad_json", TRACE),
    row_case("M65", "a comment", "// the first row", "bad_json", TRACE),
    sound_case("M66", "joined emoji and characters beyond 16 bits", "rows.jsonl",
               "".join(asked(("user", f"👩‍👩‍👧 𝔘 {n} {SENTENCES[n][0]}"), ("assistant",
                   "🏳️‍🌈 " + SENTENCES[n][1])) + "\n"
                       for n in range(3)), 3, TAKEN),
)  # fmt: skip
COPIES = Case(
    id="M56", what="exact duplicates", peers=SILENT, kept=2, lines={3: ("dropped", "duplicate")},
    build=written("rows.jsonl", f"{good(0)}\n{good(1)}\n{good(0)}\n"),
)  # fmt: skip
CASES = (*FILES, *ROWS, COPIES)
