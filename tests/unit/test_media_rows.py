"""Rows with images, in every spelling: where they land in the messages, and which are refused."""

import base64
import json

import pytest

from halo_forge.chat.records import MediaPart, TextPart
from halo_forge.data.conversion.formats import convert, format_of
from halo_forge.data.files.rows import Row
from halo_forge.errors import RowError
from halo_forge.media.store import media_parts, read_medium, settle_media
from vision_models import draw

PNG = draw(1)
B64 = base64.b64encode(PNG).decode()
ANSWER = {"role": "assistant", "content": "A box."}


def converted(value, **options):
    row = Row(path="rows/rows.jsonl", line=1, value=value)
    return convert(row, format_of(value), media=True, **options)


def shown(conversation):
    """The first message: texts as they are, images as (path,)."""
    return [part.text if isinstance(part, TextPart) else (part.path,) for part in conversation.messages[0].parts]


def asked(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


SPELLINGS = {
    "LLaVA": (
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A box."}],
        },
        [("a.png",), "\nWhat?"],
    ),
    "markers in a column's order": (
        {"images": ["a.png", "b.png"], **asked("First <image> then <image>.")},
        ["First ", ("a.png",), " then ", ("b.png",), "."],
    ),
    "parts without a path": (
        {"images": ["a.png"], **asked({"type": "image"}, {"type": "text", "text": "What?"})},
        [("a.png",), "What?"],
    ),
    "a column alone": (
        {"image": "a.png", "prompt": "What?", "completion": "A box."},
        [("a.png",), "What?"],
    ),
    "a question and its image": (
        {"image": {"path": "a.png"}, "question": "What?", "answer": "A box."}, [("a.png",), "What?"],
    ),
    "path": (asked({"type": "image", "path": "a.png"}, "What?"), [("a.png",), "What?"]),
    "image": (asked("What?", {"type": "image", "image": "a.png"}), ["What?", ("a.png",)]),
    "OpenAI": (asked({"type": "image_url", "image_url": {"url": "a.png"}}, "?"), [("a.png",), "?"]),
    "OpenAI responses": (asked({"type": "input_image", "image_url": "a.png"}, "?"), [("a.png",), "?"]),
    "Anthropic": (
        asked({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}}, "?"),
        [(f"data:;base64,{B64}",), "?"],
    ),
    "bytes of Parquet": (
        {"images": [{"bytes": PNG, "path": "x.png"}], **asked({"type": "image"}, "?")},
        [(f"data:;base64,{B64}",), "?"],
    ),
    "a marker in words, and an image of its own": (
        asked({"type": "image", "path": "a.png"}, "What does <image> mean?"), [("a.png",), "What does <image> mean?"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_puts_the_image_at_its_place(name):
    value, expected = SPELLINGS[name]
    assert shown(converted(value).conversation) == expected


def test_an_image_without_a_place_is_told():
    assert "media_placed_first" in converted(SPELLINGS["a column alone"][0]).fixes
    assert "media_placed_first" not in converted(SPELLINGS["LLaVA"][0]).fixes


REFUSED = {
    "more markers than images": (
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image> <image>?"}, ANSWER]},
        "media_count_mismatch",
    ),
    "fewer markers": (
        {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "<image>?"}, ANSWER]},
        "media_count_mismatch",
    ),
    "more parts than images": (
        {"images": ["a.png"], **asked({"type": "image"}, {"type": "image"}, "?")}, "media_count_mismatch",
    ),
    "a part that names nothing": (asked({"type": "image"}, "?"), "media_count_mismatch"),
    "a column beside parts of their own": (
        {"images": ["a.png", "b.png"], **asked({"type": "image", "path": "c.png"}, "?")}, "media_count_mismatch",
    ),
    "an empty entry": ({"images": ["a.png", None], **asked({"type": "image"}, "?")}, "media_missing"),
    "video": ({"video": "a.mp4", **asked("?")}, "media_unsupported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_come_out_even_is_refused(name):
    value, code = REFUSED[name]
    with pytest.raises(RowError) as refused:
        converted(value)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("https://example.org/a.png", "url_refused"),
        ("http://127.0.0.1/a.png", "url_refused"),
        ("ftp://example.org/a.png", "url_refused"),
        ("gone.png", "media_missing"),
        (".", "media_missing"),
        ("nul\0byte.png", "media_missing"),
        ("x" * 5000, "media_missing"),
        ("data:image/png;base64,@@@", "media_missing"),
        ("data:image/png", "media_missing"),
    ],
)
def test_a_name_that_is_no_file_is_refused(name, code, tmp_path):
    conversation = converted(asked({"type": "image", "path": name}, "?")).conversation
    with pytest.raises(RowError) as refused:
        settle_media(conversation, tmp_path)
    assert refused.value.code == code
    assert len(refused.value.reason) < 400


def test_a_file_beside_the_rows_is_found_and_pinned_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HALO_FORGE_MEDIA", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(PNG)
    for value in (SPELLINGS["path"][0], SPELLINGS["Anthropic"][0], SPELLINGS["bytes of Parquet"][0]):
        (part,) = media_parts(settle_media(converted(value).conversation, tmp_path).messages)
        assert isinstance(part, MediaPart)
        assert read_medium(part) == PNG


def test_a_text_model_still_refuses_what_it_cannot_read():
    for value, _ in SPELLINGS.values():
        with pytest.raises(RowError) as refused:
            convert(Row(path="rows.jsonl", line=1, value=value), format_of(value))
        assert refused.value.code == "media_unsupported"


def test_rows_of_the_example_hold_their_images():
    with open("examples/vlm/shapes.jsonl") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 400
    assert all(shown(converted(row).conversation)[0][0].startswith("data:image/png;base64,") for row in rows[:40])
