"""Bytes of an image -> RGB pixels, or the reason why not.

An image comes from a stranger. Its header is read first and judged by it alone: what has too many pixels is never
decoded. Only the formats of `FORMATS` are tried, so that no rare decoder ever sees the bytes. Whatever a decoder raises
is one refused row.

    turned by its EXIF orientation                         noted image_turned
    more frames than one (GIF, APNG, WebP): the first      noted image_first_frame
    transparent: laid on white                             noted image_flattened
    16 bits a channel: the upper 8                         noted image_8_bit
    palette, grey, CMYK, YCbCr, one bit                    converted to RGB; nothing to tell
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halo_forge.chat.records import Medium
from halo_forge.errors import DataError, RowError, UsageError
from halo_forge.media.store import read_medium

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_IMAGE_BYTES = 64 * 2**20
MAX_DECODED_PIXELS = 50_000_000
"""More than any camera's picture; 150 MB of RGB."""
INSTALL = "pip install 'halo-forge[vlm]'"


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """pixels  uint8 [height, width, 3], RGB. `notes` are codes of what was done to them."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def read_image(data: bytes, where: str, *, max_pixels: int | None = None) -> Image:
    """The pixels of an image file's bytes; `where` names it in messages.

    max_pixels  a larger picture is made smaller to that many, its sides in proportion (what the model sees)
    Raises RowError image_broken, image_format, image_too_large, image_bomb; UsageError where Pillow is missing.
    """
    pil = _pillow()
    if len(data) > MAX_IMAGE_BYTES:
        raise RowError("image_too_large", f"{where}: {len(data)} bytes; an image has at most {MAX_IMAGE_BYTES}")
    if not data:
        raise RowError("image_broken", f"{where}: the image is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what is judged here
        image = _opened(pil, data, where)
        try:
            return _decoded(pil, image, where, max_pixels)
        except RowError:
            raise
        except Exception as error:  # decoders raise anything
            raise RowError("image_broken", f"{where}: the image cannot be decoded ({_words(error)})") from None
        finally:
            image.close()


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise UsageError("images are read by Pillow, which is not installed", fix=INSTALL) from None
    return PIL


def _opened(pil: Any, data: bytes, where: str) -> Any:
    """The image with its header read; nothing is decoded yet."""
    try:
        image = pil.Image.open(io.BytesIO(data), formats=FORMATS)
    except pil.Image.DecompressionBombError:
        raise _bomb(where, "more than twice Pillow's own limit") from None
    except pil.UnidentifiedImageError:
        raise RowError(
            "image_format", f"{where}: no image that is read here ({', '.join(FORMATS)}); it begins with {data[:8]!r}"
        ) from None
    except Exception as error:  # a damaged header may break a reader anywhere
        raise RowError("image_broken", f"{where}: the image's header cannot be read ({_words(error)})") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise RowError("image_broken", f"{where}: the image is {width} x {height} pixels")
    if width * height > MAX_DECODED_PIXELS:
        raise _bomb(where, f"{width} x {height} pixels")
    return image


def _bomb(where: str, found: str) -> RowError:
    return RowError("image_bomb", f"{where}: {found}; an image has at most {MAX_DECODED_PIXELS}, so it was not decoded")


def _decoded(pil: Any, image: Any, where: str, max_pixels: int | None) -> Image:
    import numpy as np

    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("image_first_frame")
        image.seek(0)
    if image.format == "JPEG" and max_pixels is not None and image.width * image.height > max_pixels:
        image.draft("RGB", _fitting(image.width, image.height, max_pixels))  # decodes no more than is needed
    image.load()
    turned = pil.ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) != 1:
        notes.append("image_turned")
    image = turned
    if image.mode.startswith("I;16") or image.mode == "I":
        notes.append("image_8_bit")
        wide = np.asarray(image).astype(np.int64)
        image = pil.Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise RowError("image_format", f"{where}: pixels in floating point have no agreed range")
    if image.has_transparency_data:
        notes.append("image_flattened")
        image = image.convert("RGBA")
        white = pil.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = pil.Image.alpha_composite(white, image)
    image = image.convert("RGB")
    if max_pixels is not None and image.width * image.height > max_pixels:
        image = image.resize(_fitting(image.width, image.height, max_pixels), pil.Image.Resampling.LANCZOS)
    return Image(np.asarray(image).copy(), tuple(notes))


def _fitting(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The largest (width, height) of the same proportions with at most `max_pixels`, each side at least 1."""
    scale = (max_pixels / (width * height)) ** 0.5
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    return min(wide, max(1, max_pixels // high)), min(high, max(1, max_pixels // wide))


def thumbnail_uri(data: bytes, where: str, side: int = 96) -> str:
    """A small PNG of an image as a data: URI, for pages; RowError as `read_image`."""
    import base64

    pil = _pillow()
    picture = pil.Image.fromarray(read_image(data, where, max_pixels=side * side).pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(media: Sequence[Medium]) -> list[str]:
    """Small copies of the images among media; one that cannot be read any more, or not here, is left out."""
    found = []
    for medium in media:
        if medium.kind == "image":
            with suppress(DataError, RowError, UsageError):
                found.append(thumbnail_uri(read_medium(medium), medium.path))
    return found


def _words(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
