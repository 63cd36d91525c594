"""What EDM's dataset_tool.py (NVlabs/edm) does with a folder of photographs, to compare `brics pack` with.

It decodes with Pillow, crops the centre, resizes by Lanczos, and stores uncompressed PNG files in a zip, in one thread.

    python -m brics_cli.bench.dataset_tool FOLDER SIZE OUT.zip
"""

from __future__ import annotations

import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def as_dataset_tool(folder: Path, out: Path, *, size: int) -> None:
    """Pack the JPEG files in `folder` into the zip `out` as EDM's dataset_tool.py would."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(sorted(folder.glob("*.jpg"))):
            pixels = np.array(Image.open(path).convert("RGB"))
            side = min(pixels.shape[:2])
            top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
            square = Image.fromarray(pixels[top : top + side, left : left + side])
            resized = square.resize((size, size), Image.Resampling.LANCZOS)
            buffer = BytesIO()
            resized.save(buffer, "PNG", compress_level=0, optimize=False)
            archive.writestr(f"{number // 1000:05d}/img{number:08d}.png", buffer.getbuffer())


if __name__ == "__main__":
    as_dataset_tool(Path(sys.argv[1]), Path(sys.argv[3]), size=int(sys.argv[2]))
