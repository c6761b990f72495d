"""Speech of our own sentences, spoken by espeak-ng: WAV files and one JSONL of rows `{"audio", "text", "slices"}`.

    python examples/audio/make_speech.py DIRECTORY --num 300 --seed 1

The sentences come from the templates below, each combination at most once. Needs espeak-ng (Debian: apt-get install
espeak-ng). The same arguments give the same sentences, voices and, with the same espeak-ng, the same samples.
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
PEOPLE = ("The gardener", "My cousin", "An old sailor", "The librarian", "A tired nurse", "The young baker",
          "Our teacher", "The postman", "A quiet farmer", "The station master")  # fmt: skip
DEEDS = ("carried", "repaired", "painted", "found", "forgot", "borrowed", "weighed", "washed", "measured", "sold")
THINGS = ("a ladder", "two copper kettles", "the broken lantern", "a basket of plums", "wool blankets",
          "the toolbox", "a jar of honey", "the brass telescope", "an empty bucket", "three leather boots")  # fmt: skip
PLACES = ("behind the mill", "near the lighthouse", "under the bridge", "at the market", "beside the orchard",
          "in the cellar", "on the platform", "along the canal")  # fmt: skip
TIMES = ("before sunrise", "on Tuesday", "after the storm", "last winter", "during the festival", "in the evening")


def sentences(num: int, seed: int) -> list[str]:
    """`num` different sentences, in an order that `seed` draws."""
    numbers = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < num:
        person, deed, thing, place, time = (numbers.choice(part) for part in (PEOPLE, DEEDS, THINGS, PLACES, TIMES))
        end = numbers.choice((f"{place} {time}", place, time))
        found[f"{person} {deed} {thing} {end}."] = None
    return list(found)


def speak(text: str, voice: str, words_per_minute: int, path: Path) -> None:
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-w", str(path), text], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    numbers = random.Random(f"voices {asked.seed}")
    (asked.directory / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, text in enumerate(sentences(asked.num, asked.seed)):
        voice, speed = numbers.choice(VOICES), numbers.randrange(150, 190)
        name = f"wav/{number:05d}.wav"
        speak(text, voice, speed, asked.directory / name)
        rows.append({"audio": name, "text": text, "slices": {"voice": voice}})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (asked.directory / "speech.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(rows)} sentences in {asked.directory / 'speech.jsonl'}")


if __name__ == "__main__":
    main()
