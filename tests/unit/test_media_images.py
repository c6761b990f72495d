"""Images of strangers: what is read, what is done to it, and what is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pil

from halo_forge.errors import RowError
from halo_forge.media import images
from halo_forge.media.images import read_image, thumbnail_uri


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, body=b""):
    """A PNG that claims a size, with any body: a few bytes whatever the claim."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


RED = Pil.new("RGB", (6, 4), (250, 10, 20))
WHOLE = encoded(Pil.effect_noise((64, 64), 90).convert("RGB"), "JPEG")

REFUSED = {
    "empty": (b"", "image_broken"),
    "text": (b"this is no image at all", "image_format"),
    "html": (b"<html><body>404 Not Found</body></html>", "image_format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image_format"),
    "cut JPEG": (WHOLE[: len(WHOLE) // 2], "image_broken"),
    "cut PNG": (encoded(Pil.effect_noise((64, 64), 90))[:900], "image_broken"),
    "header alone": (WHOLE[:20], "image_format"),
    "nothing behind the PNG's header": (png(8, 8), "image_broken"),
    "0 x 0": (png(0, 0), "image_format"),
    "0 x 5": (png(0, 5), "image_format"),
    "bomb": (png(20_000, 20_000), "image_bomb"),
    "a bomb under Pillow's limit": (png(9_000, 9_000), "image_bomb"),
    "huge and flat": (png(2**31 - 1, 1), "image_bomb"),
    "TIFF is not on the list": (encoded(RED, "TIFF"), "image_format"),
    "bytes beyond the limit": (b"\x89PNG" + bytes(images.MAX_IMAGE_BYTES), "image_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_image_is_refused_by_code_and_names_its_place(name):
    data, code = REFUSED[name]
    with pytest.raises(RowError) as refused:
        read_image(data, "photos/7.png")
    assert refused.value.code == code
    assert "photos/7.png" in refused.value.reason


def test_a_bomb_is_never_decoded(monkeypatch):
    monkeypatch.setattr(Pil.Image, "load", lambda self: pytest.fail("the pixels were asked for"))
    with pytest.raises(RowError, match="not decoded"):
        read_image(png(9_000, 9_000), "bomb.png")


def test_every_allowed_format_gives_the_same_pixels():
    for kind in ("PNG", "BMP", "GIF"):
        assert (read_image(encoded(RED, kind), kind).pixels == np.asarray(RED)).all(), kind
    for kind, options in (("JPEG", {"quality": 98}), ("WEBP", {"lossless": True})):
        assert np.abs(read_image(encoded(RED, kind, **options), kind).pixels.astype(int) - np.asarray(RED)).max() <= 4


@pytest.mark.parametrize(
    ("picture", "expected", "notes"),
    [
        (Pil.new("L", (2, 2), 77), (77, 77, 77), ()),
        (Pil.new("1", (2, 2), 1), (255, 255, 255), ()),
        (Pil.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255), ("image_flattened",)),
        (Pil.new("RGBA", (2, 2), (200, 0, 0, 255)), (200, 0, 0), ("image_flattened",)),
        (Pil.new("LA", (2, 2), (0, 128)), (127, 127, 127), ("image_flattened",)),
        (RED.convert("P", palette=Pil.Palette.ADAPTIVE), (250, 10, 20), ()),
        (Pil.fromarray(np.full((2, 2), 40_000, np.uint16)), (156, 156, 156), ("image_8_bit",)),
    ],
)
def test_every_mode_becomes_rgb_in_the_stated_way(picture, expected, notes):
    image = read_image(encoded(picture), "x")
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape[2] == 3
    assert tuple(image.pixels[0, 0]) == expected
    assert image.notes == notes


def test_cmyk_becomes_rgb():
    image = read_image(encoded(Pil.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "x")
    assert image.pixels[0, 0, 0] > 240
    assert image.pixels[0, 0, 1:].max() < 15


def test_an_image_is_turned_as_its_camera_says():
    picture = Pil.new("RGB", (8, 16))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Pil.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = read_image(encoded(picture, "PNG", exif=exif), "x")
    assert image.pixels.shape == (8, 16, 3)
    assert image.notes == ("image_turned",)
    assert image.pixels[0, -1, 0] == 255
    assert image.pixels[0, 0, 0] == 0


def test_the_first_frame_of_an_animation():
    frames = [Pil.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    image = read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert tuple(image.pixels[0, 0]) == (255, 0, 0)
    assert image.notes == ("image_first_frame",)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (3000, 1), (64, 64)])
def test_a_larger_image_is_made_smaller_in_proportion(size):
    for kind in ("PNG", "JPEG"):
        image = read_image(encoded(Pil.new("RGB", size), kind), "x", max_pixels=2_500)
        height, width, _ = image.pixels.shape
        assert width * height <= 2_500
        assert min(width, height) >= 1
        if size != (3000, 1):
            assert abs(width / height - size[0] / size[1]) < 0.15 * size[0] / size[1]
    assert read_image(encoded(Pil.new("RGB", (10, 10))), "x", max_pixels=2_500).pixels.shape == (10, 10, 3)


def test_a_thumbnail_is_a_png_in_its_address():
    address = thumbnail_uri(encoded(Pil.new("RGB", (900, 300))), "x")
    assert address.startswith("data:image/png;base64,iVBOR")
    assert len(address) < 2_000
