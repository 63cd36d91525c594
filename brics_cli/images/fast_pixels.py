"""The fast forms of transform `crop-bicubic`: torchvision's JPEG decoder and torch's antialiased bicubic.

`crop-bicubic-fast` runs on the CPU; `crop-bicubic-cuda` decodes on the GPU (nvJPEG). torchvision is given plain
JPEGs alone: RGB or grey, upright. Pillow decodes everything else (CMYK, rotated, damaged, other formats) as `pixels`
defines it, PNG too: torchvision 0.29's `decode_png` ends the process on damaged files, and is hardly faster. They
agree with the reference to 60 dB or more (tests/unit/images/test_fast_pixels.py; with nvJPEG's own inverse DCT:
tests/gpu/test_data.py), and are other transforms with other names in every artefact.
Shapes: (3, H, W) uint8 RGB tensors inside, (S, S, 3) uint8 RGB arrays out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from brics_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FAST, CUDA = "crop-bicubic-fast", "crop-bicubic-cuda"
_JPEG, _END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
ORIENTATION = 0x0112


def load_fast(data: bytes, *, transform: str, size: int, max_pixels: int) -> tuple[np.ndarray, int] | None:
    """A plain JPEG's bytes as uint8 (size, size, 3), and its shorter side; None for a file that Pillow must decode.

    Raises UsageError for `crop-bicubic-cuda` without a CUDA device.
    """
    if transform == CUDA:
        _require_cuda()
    if not _is_plain_jpeg(data, max_pixels=max_pixels):
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    device = "cuda" if transform == CUDA else "cpu"
    try:
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)  # (3, H, W)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None  # damaged, or of a kind that this decoder does not know: the reference says which
    return square(decoded, size), min(decoded.shape[-2:])


def crop_bicubic_fast(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as uint8 (size, size, 3), by the arithmetic of `crop-bicubic-fast`."""
    import torch

    return square(torch.from_numpy(np.array(image)).permute(2, 0, 1), size)


def square(image: Tensor, size: int) -> np.ndarray:
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


def _is_plain_jpeg(data: bytes, *, max_pixels: int) -> bool:
    """Whether the headers say that this is a JPEG whose pixels need no interpretation."""
    if not (data.startswith(_JPEG) and data.endswith(_END_OF_IMAGE)):  # libjpeg would fill up a short end in silence
        return False
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            upright = image.getexif().get(ORIENTATION, 1) == 1
            kept_rgb = image.info.get("adobe_transform") == 0 or image.layer[0][0] == ord("R")  # type: ignore[attr-defined]
            plain = image.mode == "L" or (image.mode == "RGB" and not kept_rgb)  # nvJPEG takes all colour for YCbCr
            return upright and plain and image.width * image.height <= max_pixels
    except Exception:  # Pillow's parsers raise nearly anything on damaged bytes; the reference names what it is
        return False


def device_of_threads(transform: str) -> Callable[[], None] | None:
    """What a thread that decodes is to do first: take the caller's CUDA device, which CUDA keeps for each thread."""
    if transform != CUDA:
        return None
    _require_cuda()
    import torch

    return partial(torch.cuda.set_device, torch.cuda.current_device())


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"transform {CUDA!r} needs a CUDA device, and there is none", next=f"Use {FAST!r}, or 'crop-bicubic'."
        )
