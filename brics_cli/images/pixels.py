"""From a file's bytes to square uint8 RGB: the Pillow reference of every transform.

Each kind of file that others trip over has one defined result: EXIF orientation is applied, `modes` says what becomes
of each mode and bit depth; a truncated file, a decompression bomb and a format outside the list are an `ImageError`.
Shapes: (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.images.fast_pixels import CUDA, FAST, ORIENTATION, crop_bicubic_fast, load_fast
from brics_cli.images.modes import ImageError, before_loading, to_rgb, why_unidentified

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""The decoders that may touch a user's bytes: no EPS (runs Ghostscript), nothing exotic."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit, 256 MiB of RGB; beyond it Pillow warns, and we refuse."""

TRANSFORM_VERSIONS: dict[str, str] = {
    "crop-bicubic": "pillow-1",
    "adm": "pillow-1",
    "edm-lanczos": "pillow-1",
    "none": "pillow-1",
    FAST: "torchvision-1",
    CUDA: "nvjpeg-1",
}
"""Transform -> version, backend included; both are stored in every artefact."""

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"P4", b"P5", b"P6")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright."""

# Process-wide on purpose: warnings.catch_warnings is not safe in the loader's threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def is_image_file(first: bytes) -> bool:
    """Whether a file that begins with `first` (12 bytes or more) is of a format that is read."""
    return first.startswith(_SIGNATURES) or (first[:4] == b"RIFF" and first[8:12] == b"WEBP")


def decode_image(data: bytes) -> Image.Image:
    """A file's bytes as an upright RGB image; of several pages or frames, the first.

    Raises ImageError (not an image, truncated, a bomb, pixels without a defined range).
    """
    try:
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"decompression bomb: {image.width} x {image.height} pixels")
            before_loading(image, data)
            image.load()
            turn = _turn(image)
            rgb = to_rgb(image, data)
            return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(why_unidentified(data)) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError("decompression bomb") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ImageError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about orientation; the pixels are fine
        return None


def apply_transform(image: Image.Image, name: str, size: int) -> np.ndarray:
    """An RGB image as a uint8 array (size, size, 3) by the transform `name`.

    Raises ImageError (`none` on an image of another size), UsageError for an unknown name.
    """
    if name == "crop-bicubic":
        square = _resize(_centre_square(image), (size, size), Image.Resampling.BICUBIC)
    elif name == "edm-lanczos":
        square = _resize(_centre_square(image), (size, size), Image.Resampling.LANCZOS)
    elif name == "adm":
        square = _adm(image, size)
    elif name in (FAST, CUDA):
        return crop_bicubic_fast(image, size)
    elif name == "none":
        if image.size != (size, size):
            raise ImageError(f"{image.width} x {image.height} pixels, and transform 'none' needs {size} x {size}")
        square = image
    else:
        raise UsageError(f"no transform {name!r}{did_you_mean(name, TRANSFORM_VERSIONS)}")
    return np.array(square)  # (size, size, 3)


def load_pixels(data: bytes, *, transform: str, size: int) -> np.ndarray:
    """A file's bytes as a uint8 array (size, size, 3). Raises ImageError; UsageError for an unknown name."""
    return load_with_side(data, transform=transform, size=size)[0]


def load_with_side(data: bytes, *, transform: str, size: int) -> tuple[np.ndarray, int]:
    """The same, and the shorter side of the image as it was, in pixels: one below `size` was enlarged."""
    if transform in (FAST, CUDA):
        fast = load_fast(data, transform=transform, size=size, max_pixels=MAX_PIXELS)
        if fast is not None:
            return fast
    image = decode_image(data)
    return apply_transform(image, transform, size), min(image.size)


def load_all(files: Sequence[bytes], out: np.ndarray, *, transform: str) -> list[str | int]:
    """N files' pixels into `out` (N, S, S, 3): for each the reason why it cannot be used, or its shorter side."""
    outcomes: list[str | int] = []
    for data, pixels in zip(files, out, strict=True):
        try:
            pixels[:], side = load_with_side(data, transform=transform, size=out.shape[1])
            outcomes.append(side)
        except ImageError as error:
            outcomes.append(str(error))
    return outcomes


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)


def _adm(image: Image.Image, size: int) -> Image.Image:
    """Halve with a box filter while twice the size fits, then bicubic to the short side, then crop the centre.

    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), released data loader.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = _resize(image, (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
