"""ADM's sample batches: an .npz with `arr_0`, uint8 (N, H, W, 3), and `arr_1`, int64 (N,), the labels.

What `numpy.savez` writes (stored, not deflated), so that ADM's evaluator reads it in batches; written image by image,
so that no more than one is in memory. Beyond ADM: `keys`, UTF-8 in fixed-length bytes (N,), which name the images.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from brics_cli.workspace import MARK


def write_npz(
    path: Path,
    images: Iterable[bytes],
    *,
    size: tuple[int, int],
    keys: Sequence[str],
    labels: Sequence[int] | None,
) -> None:
    """Write `images`, the pixels of one for each key, all of `size` (height, width); `labels` None: no classes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = MARK.encode()
        with archive.open(_member("arr_0"), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(keys), *size, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for pixels in images:
                member.write(pixels)
        rest = {} if labels is None else {"arr_1": np.array(labels, np.int64)}
        for name, array in {**rest, "keys": np.array([key.encode() for key in keys], np.bytes_)}.items():
            with archive.open(_member(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that bytes repeat
