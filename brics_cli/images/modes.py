"""From what Pillow opened to 8-bit RGB: each mode and bit depth has one defined result, or is refused by name.

Pillow's own `convert("RGB")` clips 16 bits to white, takes 12 for 16 (black), and compares the transparent colour of a
PNG with values of another depth. Here: grey of 12 and 16 bits is scaled and rounded, colour of 16 bits keeps its high
byte; transparency is composited on white; CMYK, YCbCr, LAB and palettes become RGB; pixels without a defined range
(signed, floating-point, 32-bit) are refused. ICC profiles and gAMA are not applied, as in every peer's loader. Of
several frames or pages the first is the image.
Tests: tests/unit/images/test_modes.py, a table of files beside what they show. Shapes: (H, W), (H, W, 3).
"""

from __future__ import annotations

import struct
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

_DEEP_GREY = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_SCALED_TO_16 = frozenset({"PNG", "PPM"})
"""Formats whose grey in Pillow's 32-bit mode `I` has 16 bits: the format states the range, or Pillow has scaled it."""
_BITS, _PHOTOMETRIC, _COLOURS, _INKS, _SUBSAMPLING, _SAMPLES = 258, 262, 320, 332, 530, 339  # tags of TIFF
MOST_PAGES = 10_000
"""A longer chain of TIFF directories goes in circles, perhaps."""
_TIFF = {b"II*\0": ("<", "I", "H", 12), b"MM\0*": (">", "I", "H", 12),
         b"II+\0": ("<", "Q", "Q", 20), b"MM\0+": (">", "Q", "Q", 20)}  # fmt: skip
"""By the first bytes: order, offsets, numbers of entries, and bytes per entry; the last two are BigTIFF's."""
_WHITE_IS_ZERO = 0
_SIGNED, _FLOAT = 2, 3


class ImageError(Exception):
    """One image that cannot be used, and why. Counted and listed by the loader, never fatal by itself."""


def before_loading(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse, or mend, what Pillow would read as other pixels. `image` has been opened, not loaded."""
    if image.format == "BMP" and image.mode in ("1", "L") and image.tile[0][0] == "raw":
        bits = data[24 if data[14] == 12 else 28]  # where the oldest header, of 12 bytes, has it, and all others
        if bits != (1 if image.mode == "1" else 8):  # Pillow has taken the number of greys for the depth
            levels = (0, 255) if image.mode == "1" else range(1 << bits)
            image._mode = "P"
            image.palette = ImagePalette.raw("RGB", bytes(level for level in levels for _ in range(3)))
            codec, box, offset, arguments = image.tile[0]
            assert isinstance(arguments, tuple)
            _set_tile(image, (codec, box, offset, ("P" if bits == 8 else f"P;{bits}", *arguments[1:])))
    if image.format == "TIFF" and image.mode == "YCbCr" and image.tile[0][0] == "raw":
        tags: Any = getattr(image, "tag_v2", {})
        subsampling = tags.get(_SUBSAMPLING, (2, 2))
        if subsampling != (1, 1):
            raise ImageError(f"YCbCr pixels subsampled {subsampling[0]} x {subsampling[1]} without compression")


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """A loaded `image` of the file `data` as RGB. Raises ImageError for pixels without a defined range."""
    tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
    _refuse_undefined(image, tags)
    clear = _clear_pixels(image, data)
    if image.mode in _DEEP_GREY:
        image = _scaled(image, tags)
    elif image.mode in ("P", "PA"):
        _mend_palette(image, tags)
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image = image.convert("RGB")  # the fourth byte is padding, not alpha: it would hide the whole picture
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if clear is not None:
        image.paste((255, 255, 255), mask=Image.fromarray(clear))
    return image


def _refuse_undefined(image: Image.Image, tags: Any) -> None:
    samples = tags.get(_SAMPLES, (1,))
    if image.mode == "F" or _FLOAT in samples:
        raise ImageError(f"floating-point pixels (mode {image.mode}) have no defined range")
    if _SIGNED in samples:
        raise ImageError(f"signed pixels (mode {image.mode}) have no defined range")
    if image.mode == "I" and image.format not in _SCALED_TO_16:
        raise ImageError("32-bit pixels (mode I) have no defined range")
    if image.mode == "CMYK" and tags.get(_INKS, 1) != 1:
        raise ImageError("four inks that are not cyan, magenta, yellow and black have no defined colours")


def _clear_pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Where a PNG without alpha has its one transparent colour, (H, W) bool; None where it has none."""
    if image.format != "PNG" or image.mode == "P" or "transparency" not in image.info:
        return None
    depth = data[24]  # of the header, which comes first
    top = (1 << depth) - 1
    colour = np.asarray(image.info.pop("transparency")) & (255 if depth == 1 else top)  # higher bits mean nothing
    values = np.asarray(image)
    if image.mode == "1":
        return np.asarray(values == (colour > 0))
    if image.mode == "L":
        return np.asarray(values == colour * (255 // top))  # Pillow has scaled 2 and 4 bits to 8
    if image.mode == "RGB":
        if depth == 16:
            values = values.astype(np.int64) << 8 | _low_bytes(data)
        return np.asarray((values == colour).all(axis=-1))
    return np.asarray(values == colour)


def _low_bytes(data: bytes) -> np.ndarray:
    """The low bytes of a 16-bit RGB PNG (H, W, 3): Pillow keeps the high ones, unless told that they come second."""
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        _set_tile(image, (*image.tile[0][:3], "RGB;16L"))
        return np.array(image)


def _set_tile(image: ImageFile.ImageFile, tile: tuple[Any, ...]) -> None:
    """Tell Pillow how the pixels are packed: codec, box, offset, arguments (a named tuple in new versions of it)."""
    image.tile = [tile]  # type: ignore[list-item]


def _scaled(image: Image.Image, tags: Any) -> Image.Image:
    """Grey of 12 or 16 bits as 8, rounded, black at zero."""
    top = (1 << tags.get(_BITS, (16,))[0]) - 1
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > top):
        raise ImageError(f"pixels beyond the range of their depth (mode {image.mode})")
    scaled = ((values * 255 + top // 2) // top).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def _mend_palette(image: Image.Image, tags: Any) -> None:
    """Rescale a TIFF palette of 8 bits; refuse pixels whose colour the palette lacks."""
    colours = tags.get(_COLOURS)
    if colours is not None and max(colours) < 256:  # 8 bits where the format wants 16: all would be black
        image.putpalette(bytes(colours), "RGB;L")
    assert image.palette is not None
    num_colours = len(image.palette.palette) // len(image.palette.mode)
    highest = int(np.asarray(image.getchannel("P")).max())
    if highest >= num_colours:
        raise ImageError(f"damaged: palette index {highest} of {num_colours} colours (mode {image.mode})")


def why_unidentified(data: bytes) -> str:
    """What is known of a file that Pillow opens as nothing: a layout it does not know, or no image at all."""
    if not data:
        return "empty file"
    if data.startswith(b"MM\0+"):
        return "a big-endian BigTIFF, which Pillow does not read"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0")):
        with suppress(Exception):  # as with every parser, given damaged bytes
            return _tiff_layout(data)
    for signature, name in ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG")):
        if data.startswith(signature):
            try:
                Image.OPEN[name][0](BytesIO(data), "")
            except Exception as error:
                return f"a {name} that cannot be read: {error}"
    return "not an image of a format that is read"


def _tiff_layout(data: bytes) -> str:
    """The pixels of a TIFF in the words of its tags."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    kind = {1: "unsigned", _SIGNED: "signed", _FLOAT: "floating-point"}.get(tags.get(_SAMPLES, (1,))[0], "unknown")
    bits = ", ".join(map(str, tags[_BITS]))
    return f"a TIFF of a mode that cannot be read: {kind}, {bits} bits, photometric {tags.get(_PHOTOMETRIC)}"


def num_frames(data: bytes) -> int:
    """The number of frames of a PNG (APNG) or WebP, or of pages of a TIFF; 1 for anything else."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _num_of_png(data)
        if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and data[20] & 2:
            return max(1, _num_of_webp(data))
        if data[:4] in _TIFF:
            return _num_of_tiff(data)
    except (struct.error, IndexError):
        pass
    return 1


def _num_of_png(data: bytes) -> int:
    """By `acTL`, which is before the first `IDAT`."""
    place = 8
    while data[place + 4 : place + 8] not in (b"IDAT", b""):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"acTL":
            return max(1, int(struct.unpack_from(">I", data, place + 8)[0]))
        place += 12 + length
    return 1


def _num_of_webp(data: bytes) -> int:
    num, place = 0, 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        num += kind == b"ANMF"
        place += 8 + length + length % 2
    return num


def _num_of_tiff(data: bytes) -> int:
    """By the chain of directories, as far as it goes."""
    order, offset, number, entry = _TIFF[data[:4]]
    place, pages = struct.unpack_from(order + offset, data, 4 if offset == "I" else 8)[0], 0
    try:
        while place and pages < MOST_PAGES:
            (num_entries,) = struct.unpack_from(order + number, data, place)
            place += struct.calcsize(number) + num_entries * entry
            (place,) = struct.unpack_from(order + offset, data, place)
            pages += 1
    except struct.error:
        pass
    return max(1, pages)
