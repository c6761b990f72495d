"""Conversation trees as OpenAssistant keeps them: one row a tree, or one row a message.

Of a tree one conversation is trained: from the prompt, always on to the best-ranked reply, to the last assistant turn.
Message rows are gathered to trees over the whole file; the tree stands at the row of its prompt, and its other rows
end as `part_of_tree`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from halo_forge.data.files.rows import Row
from halo_forge.errors import DataError, RowError

ROLES = {"prompter": "user", "assistant": "assistant", "user": "user"}
MAX_GATHERED_CHARS = 512 * 2**20
FLAT_COLUMNS = frozenset({"message_id", "parent_id", "text", "role"})
FLAT_HEAD = re.compile(rb'"message_id"\s*:')


def holds_tree_rows(head: bytes) -> bool:
    """Whether the first line of a JSONL file may be a message of a tree."""
    line = head.split(b"\n", 1)[0]
    return b'"parent_id"' in line and FLAT_HEAD.search(line) is not None


def is_tree_message(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= FLAT_COLUMNS and "messages" not in value


def tree_turns(value: dict[str, Any]) -> list[dict[str, Any]]:
    """{"message_tree_id", "prompt": {"text", "role", "replies": [...]}} -> its best-ranked conversation.

    Raises RowError where the tree cannot be read or nobody answers.
    """
    thread = value["thread"] if isinstance(value.get("thread"), list) else best_thread(value.get("prompt"))
    turns: list[dict[str, Any]] = []
    for number, node in enumerate(thread, start=1):
        if not isinstance(node, dict) or not isinstance(node.get("text"), str):
            raise RowError("bad_messages", f"message {number} of the tree has no text")
        role = node.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RowError("bad_role", f"message {number} of the tree: the role is prompter or assistant")
        turns.append({"role": ROLES[role], "content": node["text"]})
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise RowError("no_assistant_turn", "no assistant answers the prompt of this tree")
    return turns


def best_thread(node: Any) -> list[Any]:
    """The messages from a prompt on, always the best-ranked reply next."""
    thread: list[Any] = []
    while node is not None:
        thread.append(node)
        node = _best(node.get("replies")) if isinstance(node, dict) else None
    return thread


def _best(replies: Any) -> Any:
    """The reply of the lowest rank; unranked ones come after, in the order of the file. Deleted ones do not count."""
    if not isinstance(replies, list):
        return None
    live = [reply for reply in replies if isinstance(reply, dict) and reply.get("deleted") is not True]
    approved = [reply for reply in live if reply.get("review_result") is not False]
    return min(approved, key=_rank, default=None)


def _rank(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) and rank == rank else 1e9


def gathered_trees(path: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they are, unless the first readable one is a message of a tree: then every message row becomes its
    tree or a part of one. These rows, and no others, are held in memory at once: DataError beyond 512 MiB of text."""
    stream = iter(rows)
    head: list[Row] = []
    for row in stream:
        head.append(row)
        if row.value is not None:
            break
    if not head or not is_tree_message(head[-1].value):
        yield from chain(head, stream)
        return
    held: list[Row] = []
    size = 0
    for row in chain(head, stream):
        held.append(row)
        size += len(str((row.value or {}).get("text") or "")) + 200
        if size > MAX_GATHERED_CHARS:
            raise DataError(
                "messages of trees fill more than 512 MiB, and a tree may stand anywhere among them",
                where=path,
                fix="take the file with one tree per line (trees.jsonl), or split the file by message_tree_id",
            )
    yield from _as_trees(held)


def _as_trees(rows: list[Row]) -> Iterator[Row]:
    nodes: dict[str, dict[str, Any]] = {}
    for row in rows:
        value = row.value
        if is_tree_message(value) and value is not None and isinstance(value["message_id"], str):
            nodes.setdefault(value["message_id"], {**value, "replies": []})
    for node in nodes.values():
        parent = nodes.get(node["parent_id"]) if isinstance(node["parent_id"], str) else None
        if parent is not None and parent is not node:
            parent["replies"].append(node)
    seen: set[str] = set()
    in_trees = _reachable(nodes)
    for row in rows:
        yield _tree_row(row, nodes, in_trees, seen)


def _reachable(nodes: dict[str, dict[str, Any]]) -> set[str]:
    """Messages that a prompt leads to. Others hang on a message that is not in the file, or on one another."""
    waiting = [node for node in nodes.values() if node["parent_id"] is None]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node["message_id"] not in found:
            found.add(node["message_id"])
            waiting.extend(node["replies"])
    return found


def _tree_row(row: Row, nodes: dict[str, dict[str, Any]], in_trees: set[str], seen: set[str]) -> Row:
    value = row.value
    if value is None or not is_tree_message(value):
        return row
    message_id, problem = value["message_id"], None
    if not isinstance(message_id, str):
        problem = RowError("bad_messages", "message_id is not a string")
    elif message_id in seen:
        problem = RowError("duplicate", f"the message {message_id[:40]!a} stands in the file already")
    elif message_id not in in_trees:
        problem = RowError("orphan_message", "no prompt in this file leads to this message")
    elif value["parent_id"] is not None:
        problem = RowError("part_of_tree", "a message of a tree that is told at the row of its prompt")
    if isinstance(message_id, str):
        seen.add(message_id)
    if problem:
        return Row(path=row.path, line=row.line, problem=problem, raw=row.excerpt(), fixes=row.fixes)
    other = {name: held for name, held in value.items() if name not in FLAT_COLUMNS}
    tree = {**other, "prompt": {"text": value["text"], "role": value["role"]}, "thread": _thread(nodes[message_id])}
    tree.setdefault("message_tree_id", message_id)
    return Row(path=row.path, line=row.line, value=tree, raw=row.excerpt(), fixes=row.fixes)


def _thread(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The best conversation as a flat list: nested, a long one would be deeper than what pickles."""
    return [{"text": turn["text"], "role": turn["role"]} for turn in best_thread(node)]
