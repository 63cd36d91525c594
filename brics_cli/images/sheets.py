"""Contact sheets: rows of images in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from brics_cli.images.sinks.base import SIGNED
from brics_cli.runtime.reporting import printable
from brics_cli.workspace import atomic_path

GAP = 2
"""Pixels between images."""
SHOWN_SIDE = 128
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
    captions: Sequence[Sequence[str]] | None = None,
) -> Path:
    """Write `rows` of uint8 images (H, W, 3) as a PNG; returns its path. Columns are as wide as their widest image,
    rows as high as their highest.

    Each row has its label above it, and each image its caption, cut to its width. Small images are enlarged by whole
    pixels, the longest side to at least `SHOWN_SIDE`, so that they can be judged.
    """
    images = [image for row in rows for image in row]
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    scale = max(1, -(-SHOWN_SIDE // max(max(image.shape[:2]) for image in images)))
    row_head = CAPTION_HEIGHT if row_labels else 0
    caption = row_head + (CAPTION_HEIGHT if captions else 0)
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
        for column, (image, width) in enumerate(zip(row, widths, strict=False)):
            tile = Image.fromarray(np.ascontiguousarray(image))
            if scale != 1:
                tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top + caption))
            if captions:
                text = _fitting(captions[number][column], small, width)
                draw.text((left, top + row_head), text, fill=INK, font=small)
            left += width + GAP
        top += height + caption + GAP
    final = Path(path)
    with atomic_path(final) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=SIGNED)
    return final


def _fitting(text: str, font: Any, width: int) -> str:
    """As much of `text` as is `width` pixels wide at most."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def seed_captions(seeds: Sequence[int], class_names: Sequence[str] | None, *, num_columns: int) -> list[list[str]]:
    """Captions of samples in rows of `num_columns`: `seed 3  cat`. `class_names` are of each, None: no classes."""
    texts = [f"seed {seed}" for seed in seeds]
    if class_names is not None:
        texts = [f"{text}  {printable(name)}" for text, name in zip(texts, class_names, strict=True)]
    return [texts[first : first + num_columns] for first in range(0, len(texts), num_columns)]
