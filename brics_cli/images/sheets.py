"""Contact sheets: rows of images in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brics_cli.images.sinks.base import SIGNED
from brics_cli.workspace import atomic_path

GAP = 2
"""Pixels between images."""
CAPTION_HEIGHT = 16
TITLE_HEIGHT = 24
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    path: Path | str,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: int = 1,
) -> Path:
    """Write `rows` of uint8 images (H, W, 3) as a PNG; returns its path. Columns are as wide as their widest image,
    rows as high as their highest.

    Each row has its label above it. `scale` enlarges by whole pixels, so that small images can be judged.
    """
    images = [image for row in rows for image in row]
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    caption = CAPTION_HEIGHT if row_labels else 0
    head = TITLE_HEIGHT if title else 0
    columns = zip_longest(*rows)
    widths = [scale * max(image.shape[1] for image in column if image is not None) for column in columns]
    heights = [scale * max((image.shape[0] for image in row), default=0) for row in rows]
    sheet_width = sum(widths) + len(widths) * GAP + GAP
    sheet_height = head + sum(heights) + len(rows) * (caption + GAP) + GAP
    texts = [title or "", *(row_labels or ())]
    small, large = ImageFont.load_default(size=11), ImageFont.load_default(size=14)
    text_width = max(int((large if text == title else small).getlength(text)) for text in texts) + 2 * GAP
    sheet = Image.new("RGB", (max(sheet_width, text_width), sheet_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, 3), title, fill=INK, font=large)
    top = head + GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if row_labels:
            draw.text((GAP, top), row_labels[number], fill=INK, font=small)
        left = GAP
        for image, width in zip(row, widths, strict=False):
            tile = Image.fromarray(np.ascontiguousarray(image))
            if scale != 1:
                tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top + caption))
            left += width + GAP
        top += height + caption + GAP
    final = Path(path)
    with atomic_path(final) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=SIGNED)
    return final
