"""A folder of sounds with their transcripts as rows `{"audio", "text"}`, one JSONL in the cache.

    x.wav beside x.txt          the text is the whole of x.txt
    LibriSpeech's A-B.trans.txt a line `A-B-0000 THE WORDS` for A-B-0000.flac beside it
A table of the folder (metadata.csv, metadata.jsonl, any other rows) goes before both: such a folder is read as files.
A sound without a transcript is a row without text, and a transcript without a sound a row whose sound is missing: both
are counted like any other bad row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halo_forge.media.sounds import SUFFIXES
from halo_forge.runs import cache_directory, write_atomic

LINES_OF = ".trans.txt"
MAX_TEXT_BYTES = 2**20


def gathered_transcripts(directory: Path) -> Path | None:
    """The rows of a folder of sounds as a file, or None where the folder holds none or they have no transcripts."""
    rows = list(_rows(directory))
    if not rows or not any("text" in row for row in rows):
        return None
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    name = f"transcripts-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jsonl"
    path = cache_directory() / "transcripts" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode("utf-8", "surrogateescape"))
    return path


def _rows(directory: Path) -> Iterator[dict[str, Any]]:
    files = sorted(path for path in directory.resolve().rglob("*") if not _is_hidden(path, directory.resolve()))
    sounds = {path: path for path in files if path.name.lower().endswith(SUFFIXES) and path.is_file()}
    if not sounds:
        return
    told: set[Path] = set()
    for path in files:
        if path.name.endswith(LINES_OF):
            for sound, text in _lines(path, sounds):
                told.add(sound)
                yield {"audio": str(sound), "text": text}
    for sound in sounds:
        if sound in told:
            continue
        beside = sound.with_suffix(".txt")
        yield {"audio": str(sound), **({"text": _text(beside)} if beside.is_file() else {})}


def _lines(path: Path, sounds: dict[Path, Path]) -> Iterator[tuple[Path, str]]:
    for line in _text(path).splitlines():
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        stems = (path.with_name(name + suffix) for suffix in SUFFIXES)
        yield next((found for found in stems if found in sounds), path.with_name(f"{name}.flac")), text.strip()


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(MAX_TEXT_BYTES).decode("utf-8-sig", "replace").strip()


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
