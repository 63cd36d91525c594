"""`brics reconstruct`: images -> codes, quantised as a store keeps them -> images, side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import load_autoencoder, to_uint8
from brics_cli.codes import dequantise, quantise
from brics_cli.codes.encoding import encoding_network
from brics_cli.config.names import DEFAULT_QUANTISATIONS, Quantisation
from brics_cli.errors import TooManyFailuresError, UsageError
from brics_cli.evaluation.reconstruction import psnr
from brics_cli.images import ImageError, contact_sheet
from brics_cli.images.pixels import load_pixels
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.precision import default_precision
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace, check_output
from brics_cli.workspace.naming import PICTURE, form_of_output

OUT, BATCH_SIZE = Path("sheet.png"), 64
SHOWN_SIDE = 256
"""Smaller images are enlarged by whole pixels up to about this, so that they can be judged."""


@dataclass(frozen=True)
class Reconstruction:
    """One image: its path, and the PSNR of its reconstruction in dB (infinite where they are equal)."""

    path: Path
    psnr_db: float


@dataclass(frozen=True)
class ReconstructResult:
    """The sheet, and what is on it in order; `failures` are (path, reason) of images that could not be read."""

    path: Path
    reconstructions: list[Reconstruction]
    mean_psnr_db: float
    code_shape: tuple[int, int, int]
    quantisation: Quantisation
    autoencoder: str
    failures: list[tuple[str, str]]


def reconstruct(
    images: Sequence[Path],
    *,
    autoencoder: Path | None = None,
    out: Path | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    workspace: Workspace,
    reporter: Reporter,
) -> ReconstructResult:
    """Write a sheet of originals (as the autoencoder's transform makes them square) beside their reconstructions.

    `autoencoder` None is the newest in the workspace, `out` None `OUT`, `precision` None bf16 on CUDA and fp32
    elsewhere. Raises UsageError for a path that is not a file, WouldOverwriteError when `out` is there,
    TooManyFailuresError when no file is an image.
    """
    out, on, batch_size = out or OUT, resolve_device(device), batch_size or BATCH_SIZE
    if autoencoder is None:
        autoencoder = workspace.resolve("autoencoder", argument="--ae", reporter=reporter).path
    for path in images:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is missing"
            raise UsageError(f"{path} {what}", next="Give image files: brics reconstruct photos/*.jpg --out sheet.png")
    form_of_output(out, PICTURE)
    check_output(out, overwrite=overwrite, what="the sheet", inputs=images)
    model = load_autoencoder(autoencoder, device=on)
    originals: list[np.ndarray] = []
    read: list[Path] = []
    failures: list[tuple[str, str]] = []
    for path in images:
        try:
            pixels = load_pixels(path.read_bytes(), transform=model.transform, size=model.config.image_size)
        except ImageError as error:
            failures.append((str(path), str(error)))
        else:
            originals.append(pixels)
            read.append(path)
    if not read:
        raise TooManyFailuresError(
            f"none of {len(images)} files can be read as an image; the first, {failures[0][0]}: {failures[0][1]}"
        )

    quantisation = DEFAULT_QUANTISATIONS[model.config.code_kind]
    network = encoding_network(model, precision=precision or default_precision(on))
    decoded: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(originals), batch_size):
            batch = torch.from_numpy(np.stack(originals[start : start + batch_size])).to(on)  # (B, H, W, 3)
            rows = quantise(network(batch), quantisation)  # (B, C, h, w), as a store keeps them
            codes = torch.from_numpy(dequantise(rows, quantisation)).to(on)
            decoded.extend(to_uint8(model.decode(codes)))  # (H, W, 3) each
    quality = psnr(np.stack(originals), np.stack(decoded))
    shape = "x".join(str(side) for side in model.config.code_shape)
    contact_sheet(
        list(zip(originals, decoded, strict=True)),
        path=out,
        row_labels=[f"{path.name}  {db:.2f} dB" for path, db in zip(read, quality, strict=True)],
        title=f"original, from codes {shape} {quantisation}",
        scale=max(1, SHOWN_SIDE // model.config.image_size),
    )
    return ReconstructResult(
        path=out,
        reconstructions=[Reconstruction(path, float(db)) for path, db in zip(read, quality, strict=True)],
        mean_psnr_db=float(quality.mean()),
        code_shape=model.config.code_shape,
        quantisation=quantisation,
        autoencoder=model.reference,
        failures=failures,
    )
