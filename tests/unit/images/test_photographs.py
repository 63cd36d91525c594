"""Squares and crops of the bundled photographs: always the same, and the held-out blocks in none that train."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from brics_cli.images import photographs
from brics_cli.images.photographs import photograph_crops, photograph_squares


def test_squares_are_the_same_every_time() -> None:
    first, again = (np.stack(list(islice(photograph_squares(16, num_per_block=4), 40))) for _ in range(2))
    assert first.shape == (40, 16, 16, 3) and first.dtype == np.uint8
    assert (first == again).all()
    assert len({square.tobytes() for square in first}) == 40


def test_no_pixel_of_a_held_out_block_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (photographs.BLOCK, photographs.BLOCK)
    blocks = [("a", Image.new("RGB", size, "black"), False), ("b", Image.new("RGB", size, "white"), True)]
    monkeypatch.setattr(photographs, "_blocks", lambda: iter(blocks))
    squares = list(photograph_squares(8, num_per_block=5))
    assert len(squares) == 5 and not np.any(squares)
    assert all((crop.pixels == 255).all() == crop.held_out for crop in photograph_crops())


def test_an_eighth_of_the_blocks_is_held_out() -> None:
    held_out = [block[2] for block in photographs._blocks()]
    assert 0.1 < np.mean(held_out) < 0.15
