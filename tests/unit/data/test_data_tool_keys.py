"""Tools keep their own keys: libraries that join the schemas of rows give every tool those of all others (N16)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from halo_forge.chat.records import ToolCall
from halo_forge.data.conversion.formats import convert, format_of
from halo_forge.data.files.sources import read_rows

ARGUMENTS: list[dict[str, Any]] = [{"x": 1}, {"city": "Rome"}, {"x": 2, "deep": {"flag": False}}]


def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    kinds = {int: "integer", str: "string", dict: "object"}
    properties = {key: {"type": kinds[type(value)]} for key, value in arguments.items()}
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    parameters = {"type": "object", "properties": properties}
    return {
        "messages": [
            {"role": "user", "content": "Call it."},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "name": name, "content": "1"},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": [{"type": "function", "function": {"name": name, "parameters": parameters}}],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_tool_has_the_keys_of_its_own_row(tmp_path: Path, suffix: str) -> None:
    rows = [row(f"tool_{number}", arguments) for number, arguments in enumerate(ARGUMENTS)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(one) for one in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    said: list[str] = []
    found = [convert(one, format_of(one.value)).conversation for one in read_rows(path, said.append)]
    assert [list(conversation.tools) for conversation in found] == [one["tools"] for one in rows]
    calls = [part for c in found for m in c.messages for part in m.parts if isinstance(part, ToolCall)]
    assert [call.arguments for call in calls] == ARGUMENTS
    assert bool(said) == (suffix == "parquet"), "typed columns cannot tell a null from an absent key"
