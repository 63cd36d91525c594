"""`brics reconstruct`: images -> codes, quantised as a store keeps them -> images, side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import load_autoencoder
from brics_cli.autoencoder.tiling import Tiling, padded, tiling_of
from brics_cli.codes import dequantise, quantise
from brics_cli.codes.encoding import encoding_network
from brics_cli.config.names import DEFAULT_QUANTISATIONS, Precision, Quantisation
from brics_cli.errors import TooManyFailuresError, UsageError
from brics_cli.evaluation.reconstruction import psnr
from brics_cli.images import ImageError, contact_sheet
from brics_cli.images.pixels import decode_image, load_pixels
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.precision import computing, precision_on
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace, check_output
from brics_cli.workspace.naming import PICTURE, form_of_output

OUT, BATCH_SIZE = Path("sheet.png"), 64


@dataclass(frozen=True)
class Reconstruction:
    """One image: its path, the shape of its codes, and the PSNR of its reconstruction in dB (infinite where they are
    equal). `num_tiles`: 1 where it went through the networks in one pass."""

    path: Path
    psnr_db: float
    code_shape: tuple[int, ...]
    num_tiles: int


@dataclass(frozen=True)
class ReconstructResult:
    """The sheet, and what is on it in order; `failures` are (path, reason) of images that could not be read."""

    path: Path
    reconstructions: list[Reconstruction]
    mean_psnr_db: float
    quantisation: Quantisation
    autoencoder: str
    failures: list[tuple[str, str]]


def reconstruct(
    images: Sequence[Path],
    *,
    autoencoder: Path | None = None,
    out: Path | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    workspace: Workspace,
    reporter: Reporter,
) -> ReconstructResult:
    """Write a sheet of originals beside their reconstructions: at their own size and shape where the autoencoder is
    fully convolutional, in tiles where there is no memory for all at once; else as its transform makes them square.

    `autoencoder` None is the newest in the workspace, `out` None `OUT`, `precision` None bf16 on CUDA and fp32
    elsewhere. Raises UsageError for a path that is not a file, WouldOverwriteError when `out` is there,
    TooManyFailuresError when no file is an image.
    """
    out, on, batch_size = out or OUT, resolve_device(device), batch_size or BATCH_SIZE
    for path in images:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is missing"
            raise UsageError(f"{path} {what}", next="Give image files: brics reconstruct photos/*.jpg --out sheet.png")
    form_of_output(out, PICTURE)
    check_output(out, overwrite=overwrite, what="the sheet", inputs=images)
    autoencoder = workspace.resolve("autoencoder", autoencoder, argument="--ae", reporter=reporter)
    model = load_autoencoder(autoencoder, device=on)
    originals: list[np.ndarray] = []
    read: list[Path] = []
    failures: list[tuple[str, str]] = []
    for path in images:
        try:
            if model.config.is_local:
                pixels = np.array(decode_image(path.read_bytes()))  # (H, W, 3)
            else:
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
    precision = precision_on(on, precision)
    network = encoding_network(model, precision=precision)
    made = list[Reconstruction]()
    decoded = list[np.ndarray]()
    tiling = tiling_of(model) if model.config.is_local else Tiling.none(model.config)
    batches = _alike(originals, tiling, batch_size)
    total = sum(2 * tiling.num_tiles(*originals[batch.start].shape[:2]) for batch in batches)
    with torch.inference_mode(), reporter.task("reconstruct", total=total, unit="tile") as task:
        for batch in batches:
            pixels = np.stack(originals[batch.start : batch.stop])  # (B, H, W, 3)
            height, width = pixels.shape[1:3]
            codes = tiling.encode(network, padded(pixels, tiling.downsampling), device=on, task=task)  # (B, C, h, w)
            stored = dequantise(quantise(codes, quantisation), quantisation)  # as a store keeps them
            with computing(precision, on):
                found = tiling.decode(model, stored, device=on, task=task)[:, :height, :width]
            num_tiles = tiling.num_tiles(height, width)
            for number, image, db in zip(batch, found, psnr(pixels, found), strict=True):
                decoded.append(image)
                made.append(Reconstruction(read[number], float(db), codes.shape[1:], num_tiles))
    shapes = {"x".join(str(side) for side in each.code_shape) for each in made}
    contact_sheet(
        list(zip(originals, decoded, strict=True)),
        path=out,
        row_labels=[f"{each.path.name}  {each.psnr_db:.2f} dB" for each in made],
        title=f"original, from codes {shapes.pop() if len(shapes) == 1 else 'of its size'} {quantisation}",
    )
    return ReconstructResult(
        path=out,
        reconstructions=made,
        mean_psnr_db=float(np.mean([each.psnr_db for each in made])),
        quantisation=quantisation,
        autoencoder=model.reference,
        failures=failures,
    )


def _alike(images: Sequence[np.ndarray], tiling: Tiling, most: int) -> list[range]:
    """The places of neighbours of one shape: `most` together at most, and no more than there is memory for."""
    batches = list[range]()
    for (height, width, _), alike in groupby(range(len(images)), key=lambda number: images[number].shape):
        places = list(alike)
        num = min(most, tiling.num_together(height, width))
        batches += [range(start, min(start + num, places[-1] + 1)) for start in range(places[0], places[-1] + 1, num)]
    return batches
