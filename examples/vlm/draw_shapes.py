"""Draw coloured shapes and ask about them: rows with the image inside, as a data: address.

    python examples/vlm/draw_shapes.py 400 > examples/vlm/shapes.jsonl

Every image is another one (place, size, shade); of each kind of question the answers are about equally frequent, so
that no answer is a safe guess for one who does not look.
"""

from __future__ import annotations

import base64
import io
import json
import sys

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = {
    "red": (215, 40, 40), "green": (40, 170, 60), "blue": (45, 80, 215), "yellow": (235, 205, 40),
    "black": (25, 25, 25), "purple": (140, 50, 170),
}  # fmt: skip


def draw(shape: str, colour: str, random: np.random.Generator) -> Image.Image:
    """One shape on a light ground."""
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(shade) for shade in random.integers(215, 256, 3)))
    fill = tuple(int(value) for value in np.clip(np.array(COLOURS[colour]) + random.integers(-15, 16, 3), 0, 255))
    half = int(random.integers(10, 22))
    x, y = (int(place) for place in random.integers(half + 2, SIZE - half - 2, 2))
    box = (x - half, y - half, x + half, y + half)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "rectangle":
        pen.rectangle((x - half, y - half * 2 // 3, x + half, y + half * 2 // 3), fill)
    else:
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill)
    return picture


def question(number: int, shape: str, colour: str, random: np.random.Generator) -> tuple[str, str]:
    """A question about the image and its answer."""
    if number % 3 == 0:
        return "What color is the shape?", colour
    if number % 3 == 1:
        return "What shape is in the image?", shape
    named = shape if random.random() < 0.5 else str(random.choice([other for other in SHAPES if other != shape]))
    return f"Is there a {named}?", "yes" if named == shape else "no"


def address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def main(num_rows: int) -> None:
    random = np.random.default_rng(0)
    for number in range(num_rows):
        shape, colour = str(random.choice(SHAPES)), str(random.choice(list(COLOURS)))
        asked, answer = question(number, shape, colour, random)
        row = {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]},
                {"role": "assistant", "content": answer},
            ],
            "images": [address(draw(shape, colour, random))],
            "slices": {"question": ("color", "shape", "yes or no")[number % 3]},
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
