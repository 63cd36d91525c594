"""ADM's sample batches: an .npz with `arr_0`, uint8 (N, H, W, 3), and `arr_1`, int64 (N,), the labels.

What `numpy.savez` writes (stored, not deflated), so that ADM's evaluator reads it in batches; written image by image,
so that no more than one is in memory. Beyond ADM: `keys`, UTF-8 in fixed-length bytes (N,), which name the images.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brics_cli.errors import UsageError
from brics_cli.images.sinks.base import Encoding
from brics_cli.images.sinks.pieces import PiecewiseSink, samples
from brics_cli.workspace import MARK


class NpzSink(PiecewiseSink):
    """Pieces keep pixels as they are behind a header (PPM): they are read once more, and never shown."""

    format, ending, labels, keeps_metas = "npz", ".npz", "all or none", False
    piece_encoding = Encoding("pixels", "ppm", "PPM", {})

    def _join(self, pieces: Sequence[Path], path: Path) -> None:
        # read first, since the number of images is written before them
        known = [(sample.key, sample.label) for sample in samples(pieces, {"cls", "json"})]
        arrays = {"keys": np.array([key.encode() for key, _ in known], np.bytes_)}
        labels = [label for _, label in known if label is not None]
        if known and len(labels) == len(known):
            arrays = {"arr_1": np.array(labels, np.int64), **arrays}
        images = (_pixels(sample.files["ppm"]) for sample in samples(pieces, {"ppm"}))
        size, first = next(images, ((0, 0), b""))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = MARK.encode()
            with archive.open(_member("arr_0"), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(known), *size, 3)}
                np.lib.format.write_array_header_1_0(member, header)
                member.write(first)
                for other, pixels in images:
                    if other != size:
                        raise UsageError(f"an .npz holds images of one size, and there are {size} and {other}")
                    member.write(pixels)
            for name, array in arrays.items():
                with archive.open(_member(name), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _pixels(ppm: bytes) -> tuple[tuple[int, int], bytes]:
    """((height, width), the pixels) of a PPM."""
    _, width, height, _ = ppm[:64].split(maxsplit=4)[:4]  # P6, width, height, 255
    size = int(height), int(width)
    return size, ppm[len(ppm) - 3 * size[0] * size[1] :]


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that bytes repeat
