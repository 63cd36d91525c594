"""From a file's bytes to square uint8 RGB, by one of the transforms that `config` names.

Pillow decodes and resizes; that is the reference, with one result for each kind of file: EXIF orientation is applied,
`modes` defines each mode and bit depth, and a truncated file, a decompression bomb or a format outside the list is an
`ImageError`. The fast forms of `crop-bicubic` resize with torch's antialiased bicubic and decode plain JPEGs (RGB or
grey, upright) with torchvision (`-fast`) or on the GPU with nvJPEG (`-cuda`); Pillow decodes what is not plain, and
PNG: torchvision 0.29's `decode_png` ends the process on damaged files, and is hardly faster. They agree with the
reference to 60 dB or more (tests/unit/images/test_fast_pixels.py, tests/gpu/test_data.py).
Shapes: (H, W, 3) uint8 RGB arrays; tensors of the fast forms are (3, H, W).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from brics_cli.config import Transform
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.images.modes import ImageError, before_loading, to_rgb, why_unidentified

if TYPE_CHECKING:
    from torch import Tensor

PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""The decoders that may touch a user's bytes: no EPS (runs Ghostscript), nothing exotic."""
MAX_PIXELS = 89_478_485
"""Pillow's own limit, 256 MiB of RGB; beyond it Pillow warns, and we refuse."""
FAST: Final = "crop-bicubic-fast"
CUDA: Final = "crop-bicubic-cuda"
_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", _JPEG, b"BM", b"II*\0", b"MM\0*", b"II+\0", b"P4", b"P5", b"P6")
_ORIENTATION = 0x0112
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


def load_pixels(data: bytes, *, transform: str, size: int) -> np.ndarray:
    """A file's bytes as a uint8 array (size, size, 3).

    Raises ImageError; UsageError for an unknown transform, or for `crop-bicubic-cuda` without a CUDA device.
    """
    return load_with_side(data, transform=transform, size=size)[0]


def load_with_side(data: bytes, *, transform: str, size: int) -> tuple[np.ndarray, int]:
    """The same, and the shorter side of the image as it was, in pixels: one below `size` was enlarged."""
    if transform in (FAST, CUDA) and (decoded := decode_plain_jpeg(data, transform=transform)) is not None:
        return _square_by_torch(decoded, size), min(decoded.shape[-2:])
    image = decode_image(data)
    return apply_transform(image, transform, size), min(image.size)


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
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about orientation; the pixels are fine
        return None


def apply_transform(image: Image.Image, name: str, size: int) -> np.ndarray:
    """An RGB image as a uint8 array (size, size, 3) by the transform `name`.

    Raises ImageError (`none` on an image of another size), UsageError for an unknown name.
    """
    if name not in TRANSFORM_VERSIONS:
        raise UsageError(f"no transform {name!r}{did_you_mean(name, TRANSFORM_VERSIONS)}")
    return np.array(_TRANSFORMS[name][1](image, size))  # (size, size, 3)


def _unchanged(image: Image.Image, size: int) -> Image.Image:
    if image.size != (size, size):
        raise ImageError(f"{image.width} x {image.height} pixels, and transform 'none' needs {size} x {size}")
    return image


def _crop(image: Image.Image, size: int, *, resampling: Image.Resampling) -> Image.Image:
    return _resize(_centre(image, min(image.size)), (size, size), resampling)


def _centre(image: Image.Image, side: int) -> Image.Image:
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
    return _centre(image, size)


def _crop_by_torch(image: Image.Image, size: int) -> np.ndarray:
    import torch

    return _square_by_torch(torch.from_numpy(np.array(image)).permute(2, 0, 1), size)


_TRANSFORMS: dict[Transform | str, tuple[str, Callable[[Image.Image, int], Image.Image | np.ndarray]]] = {
    "crop-bicubic": ("pillow-1", partial(_crop, resampling=Image.Resampling.BICUBIC)),
    "adm": ("pillow-1", _adm),
    "edm-lanczos": ("pillow-1", partial(_crop, resampling=Image.Resampling.LANCZOS)),
    "none": ("pillow-1", _unchanged),
    FAST: ("torchvision-1", _crop_by_torch),
    CUDA: ("nvjpeg-1", _crop_by_torch),
}
TRANSFORM_VERSIONS: dict[str, str] = {name: version for name, (version, _) in _TRANSFORMS.items()}
"""Transform -> version, backend included."""


def versioned(transform: str) -> str:
    """`crop-bicubic/pillow-1`: a transform and its version, as every artefact states it."""
    return f"{transform}/{TRANSFORM_VERSIONS[transform]}"


def decode_plain_jpeg(data: bytes, *, transform: str, max_pixels: int = MAX_PIXELS) -> Tensor | None:
    """A plain JPEG's bytes as (3, H, W) uint8 RGB; None for a file that Pillow must decode.

    Raises UsageError for `crop-bicubic-cuda` without a CUDA device.
    """
    if transform == CUDA:
        _require_cuda()
    if not _is_plain_jpeg(data, max_pixels=max_pixels):
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        decoded: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda" if transform == CUDA else "cpu")
        return decoded
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None  # damaged, or of a kind that this decoder does not know: the reference says which


def _is_plain_jpeg(data: bytes, *, max_pixels: int) -> bool:
    """Whether the headers say that this is a JPEG whose pixels need no interpretation."""
    if not (data.startswith(_JPEG) and data.endswith(_END_OF_JPEG)):  # libjpeg would fill up a short end in silence
        return False
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            kept_rgb = image.info.get("adobe_transform") == 0 or image.layer[0][0] == ord("R")  # type: ignore[attr-defined]
            plain = image.mode == "L" or (image.mode == "RGB" and not kept_rgb)  # nvJPEG takes all colour for YCbCr
            return upright and plain and image.width * image.height <= max_pixels
    except Exception:  # Pillow's parsers raise nearly anything on damaged bytes; the reference names what it is
        return False


def _square_by_torch(image: Tensor, size: int) -> np.ndarray:
    """The centre square of (3, H, W) uint8, on any device, resized to (size, size, 3)."""
    import torch
    from torch.nn.functional import interpolate

    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = image[:, top : top + side, left : left + side][None]  # (1, 3, side, side)
    if side != size:
        if centre.device.type != "cpu":  # the CPU has a kernel for uint8, in Pillow's own fixed-point arithmetic
            centre = centre.float()
        centre = interpolate(centre, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        if centre.dtype != torch.uint8:
            centre = centre.round().clamp(0, 255).to(torch.uint8)
    return centre[0].permute(1, 2, 0).cpu().contiguous().numpy()  # (size, size, 3)


def device_of_threads(transform: str | None) -> Callable[[], None] | None:
    """What a thread that decodes must do first: take the caller's CUDA device, which CUDA keeps for each thread."""
    if transform != CUDA:
        return None
    _require_cuda()
    import torch

    return partial(torch.cuda.set_device, torch.cuda.current_device())


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"transform {CUDA!r} needs a CUDA device, and none was found", next=f"Use {FAST!r}, or 'crop-bicubic'."
        )
