"""`brics bench codecs`: what comes back of images from an autoencoder's codes, beside JPEG and WebP of the same bytes
and bicubic and DCT of as many numbers.

Every method sees the same square uint8 images. JPEG and WebP take the highest quality that fits into the codes' bytes;
codes are for generation, not for storage, so this says what their being learnable costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from brics_cli.autoencoder.autoencoder import load_autoencoder, to_tensor, to_uint8
from brics_cli.autoencoder.linear_start import basis, leading_coefficients
from brics_cli.bench.timing import Report, Table
from brics_cli.codes import dequantise, quantise
from brics_cli.config.names import DEFAULT_QUANTISATIONS, DEFAULT_TRANSFORM, Precision
from brics_cli.errors import UsageError
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.evaluation.reconstruction import ssim
from brics_cli.images.photographs import bicubic_round_trip
from brics_cli.images.pixels import ImageError, load_pixels
from brics_cli.runtime.precision import computing, precision_on

NOISE = 0.02
"""Standard deviation of the noise that codes have to bear."""

Codec = Callable[[np.ndarray], np.ndarray]
"""An image (S, S, 3) uint8 -> what comes back of it."""


def bench_codecs(
    images: Sequence[Path],
    *,
    autoencoder: str | Path,
    size: int,
    precision: Precision | None = None,
    device: torch.device,
) -> Report:
    """PSNR (dB) and SSIM of every image, (size, size, 3), by each method, and their means. Raises UsageError for a size
    that is not a multiple of f, and for a file that is no image."""
    precision = precision_on(device, precision)
    model = load_autoencoder(autoencoder, device=device)
    block, (channels, _, _) = model.config.downsampling, model.config.code_shape
    if size % block:
        raise UsageError(f"--size {size} is not a multiple of the autoencoder's {block}")
    quantisation = DEFAULT_QUANTISATIONS[model.config.code_kind]
    originals = np.stack([_square(path, size) for path in images])  # (N, S, S, 3)

    @torch.inference_mode()
    def encode(image: np.ndarray) -> np.ndarray:
        with computing(precision, device):
            return model.encode(to_tensor(image[None], device)).cpu().numpy()

    @torch.inference_mode()
    def decode(codes: np.ndarray) -> np.ndarray:
        admissible = model.bottleneck.admissible(torch.from_numpy(codes).to(device))
        with computing(precision, device):
            return to_uint8(model.decode(admissible))[0]

    codes = [encode(image) for image in originals]  # (1, C, h, w) each
    stored = [quantise(each, quantisation) for each in codes]
    num_numbers, num_bytes = stored[0].size, stored[0].nbytes
    side = round(math.sqrt(num_numbers / 3))
    noisy = np.random.default_rng(0)
    own = f"codes {channels} x {size // block} x {size // block}, {quantisation}"
    unrounded, noised = "codes, not rounded", f"codes, noise of {NOISE:g}"
    found = {
        own: [decode(dequantise(each, quantisation)) for each in stored],
        unrounded: [decode(each) for each in codes],
        noised: [decode(each + NOISE * noisy.standard_normal(each.shape, np.float32)) for each in codes],
        f"JPEG of {num_bytes:,} bytes": [_within(image, "JPEG", num_bytes) for image in originals],
        f"WebP of {num_bytes:,} bytes": [_within(image, "WEBP", num_bytes) for image in originals],
        f"bicubic, {side} x {side} px": [bicubic_round_trip(image, side=side) for image in originals],
        f"DCT, {channels} numbers per {block} x {block} px": [_dct(image, channels, block) for image in originals],
    }
    scores = {name: _scores(originals, np.stack(results)) for name, results in found.items()}
    by_image = Table(f"PSNR in dB / SSIM at {size} px", ["image", *found])
    for number, path in enumerate(images):
        by_image.rows.append([path.name, *(f"{db[number]:.2f} / {like[number]:.4f}" for db, like in scores.values())])
    by_image.rows.append(["mean", *(f"{db.mean():.2f} / {like.mean():.4f}" for db, like in scores.values())])
    value = {
        "autoencoder": {"name": str(autoencoder), "sha256": model.weights_sha256},
        "size": size,
        "precision": precision,
        "num_bytes": num_bytes,
        "images": [path.name for path in images],
        "psnr_db": {name: db.tolist() for name, (db, _) in scores.items()},
        "ssim": {name: like.tolist() for name, (_, like) in scores.items()},
    }
    return Report(value, [by_image])


def _square(path: Path, size: int) -> np.ndarray:
    try:
        return load_pixels(path.read_bytes(), transform=DEFAULT_TRANSFORM, size=size)
    except (OSError, ImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read as an image: {reason}") from None


def _scores(originals: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return capped_psnr(originals, found), ssim(originals, found)


def _within(image: np.ndarray, format: str, num_bytes: int) -> np.ndarray:
    """The image from a file of at most so many bytes, at the highest quality that fits (the lowest, if none does)."""
    for quality in range(100, 0, -1):
        file = BytesIO()
        Image.fromarray(image).save(file, format, quality=quality)
        if file.tell() <= num_bytes:
            break
    return np.asarray(Image.open(file).convert("RGB"))


def _dct(image: np.ndarray, channels: int, block: int) -> np.ndarray:
    rows = basis(leading_coefficients(channels, block=block), block=block)
    blocks = F.pixel_unshuffle(to_tensor(image[None]), block)  # (1, 3 f², h, w)
    return to_uint8(F.pixel_shuffle(torch.einsum("kc,kd,bdyx->bcyx", rows, rows, blocks), block))[0]
