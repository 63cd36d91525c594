"""How an image becomes the bytes of a file: PNG, lossless WebP, or JPEG. (H, W, 3) uint8 RGB in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from brics_cli.workspace import MARK


@dataclass(frozen=True)
class Encoding:
    """A file format and its settings. The same pixels give the same bytes with the same version of Pillow.

    `name` goes into artefacts: it says all that the bytes depend on. Picklable, so that processes can encode.
    """

    name: str
    extension: str
    pillow_format: str
    settings: Mapping[str, Any]

    def encode(self, image: np.ndarray) -> bytes:
        """The bytes of the file."""
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, format=self.pillow_format, **self.settings)
        return buffer.getvalue()


SIGNED = PngInfo()
"""What says in a PNG that brics made it."""
SIGNED.add_text("Software", MARK)
PNG = Encoding("png", "png", "PNG", {"compress_level": 3, "pnginfo": SIGNED})
"""Level 3 of zlib is about twice as fast as Pillow's default 6."""
WEBP = Encoding("webp", "webp", "WEBP", {"lossless": True, "quality": 0, "method": 1})
"""Lossless; `quality` and `method` are effort here."""
PIXELS = Encoding("pixels", "ppm", "PPM", {})
"""A header and the pixels as they are, for what is read once more before it is done."""


def pixels_of(ppm: bytes) -> tuple[tuple[int, int], bytes]:
    """((height, width), the pixels) of what `PIXELS` wrote."""
    _, width, height, _ = ppm[:64].split(maxsplit=4)[:4]  # P6, width, height, 255
    size = int(height), int(width)
    return size, ppm[len(ppm) - 3 * size[0] * size[1] :]


def jpeg(quality: int) -> Encoding:
    """JPEG of `quality` 1 to 100, with full-resolution colour (4:4:4)."""
    return Encoding(f"jpeg-{quality}", "jpg", "JPEG", {"quality": quality, "subsampling": 0})
