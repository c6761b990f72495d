"""Speech of our own sentences, spoken by espeak-ng: WAV files, train.jsonl and holdout.jsonl.

    python examples/audio/make_speech.py DIRECTORY --num 240 --held-out 60 --new-words 40 --seed 1

The sentences come from the templates below. Those of holdout.jsonl stand nowhere in train.jsonl: `known` ones join
trained words in other ways, `new` ones are made of words that no training sentence has. Rows are
`{"audio", "text", "slices": {"voice", "words"}}`. Needs espeak-ng (Debian: apt-get install espeak-ng). The same
arguments give the same sentences, voices and, with the same espeak-ng, the same samples.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")
KNOWN = (
    ("The gardener", "My cousin", "An old sailor", "The librarian", "A tired nurse", "The young baker", "Our teacher",
     "The postman", "A quiet farmer", "The station master"),
    ("carried", "repaired", "painted", "found", "forgot", "borrowed", "weighed", "washed", "measured", "sold"),
    ("a ladder", "two copper kettles", "the broken lantern", "a basket of plums", "wool blankets", "the toolbox",
     "a jar of honey", "the brass telescope", "an empty bucket", "three leather boots"),
    ("behind the mill", "near the lighthouse", "under the bridge", "at the market", "beside the orchard",
     "in the cellar", "on the platform", "along the canal"),
    ("before sunrise", "on Tuesday", "after the storm", "last winter", "during the festival", "in the evening"),
)  # fmt: skip
NEW = (
    ("Her uncle", "Some students", "This engineer", "Every customer", "Their doctor", "One clever child"),
    ("drew", "bought", "hid", "photographed", "opened", "tasted"),
    ("four yellow maps", "cold soup", "silver coins", "his diary", "several warm pies", "that wide umbrella"),
    ("inside our garage", "by that window", "across town", "below deck"),
    ("this morning", "while it rained", "for once", "until midnight"),
)
"""Who, does, what, where, when."""


def sentences(parts: tuple[tuple[str, ...], ...], num: int, numbers: random.Random) -> list[str]:
    """`num` different sentences, in an order that `numbers` draws."""
    found: dict[str, None] = {}
    while len(found) < num:
        person, deed, thing, place, time = (numbers.choice(part) for part in parts)
        end = numbers.choice((f"{place} {time}", place, time))
        found[f"{person} {deed} {thing} {end}."] = None
    return list(found)


def speak(text: str, voice: str, words_per_minute: int, path: Path) -> None:
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-w", str(path), text], check=True)


def write_rows(directory: Path, name: str, texts: list[tuple[str, str]], numbers: random.Random) -> None:
    """Speak (text, words) and write directory/NAME.jsonl, directory/NAME/*.wav."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (text, words) in enumerate(texts):
        voice, speed = numbers.choice(VOICES), numbers.randrange(150, 190)
        sound = f"{name}/{number:05d}.wav"
        speak(text, voice, speed, directory / sound)
        rows.append({"audio": sound, "text": text, "slices": {"voice": voice, "words": words}})
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} sentences in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--num", type=int, default=240, help="sentences to train on")
    parser.add_argument("--held-out", type=int, default=60, help="unseen sentences of the same words")
    parser.add_argument("--new-words", type=int, default=40, help="unseen sentences of other words")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    numbers = random.Random(asked.seed)
    known = [(text, "known") for text in sentences(KNOWN, asked.num + asked.held_out, numbers)]
    new = [(text, "new") for text in sentences(NEW, asked.new_words, numbers)]
    write_rows(asked.directory, "train", known[: asked.num], numbers)
    write_rows(asked.directory, "holdout", known[asked.num :] + new, numbers)


if __name__ == "__main__":
    main()
