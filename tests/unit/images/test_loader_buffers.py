"""The loader uses memory again: never while anybody holds a batch, or a view of one, that is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from image_files import grey, write_tar

from brics_cli.images import load_shards, open_collection

NUM_IMAGES = 90


def loading(folder: Path):
    path = folder / "x.tar"
    if not path.exists():
        write_tar(path, [(f"{number:03d}.png", grey(number)) for number in range(NUM_IMAGES)])
    return load_shards(open_collection(path), transform="crop-bicubic", size=4, batch_size=2, num_workers=2)


def test_what_is_held_is_not_overwritten(tmp_path):
    held = list(loading(tmp_path))
    rows = [batch.images[1, :1] for batch in loading(tmp_path)]  # a view alone
    for number in range(NUM_IMAGES // 2):
        assert (held[number].images[0] == 2 * number).all() and (rows[number] == 2 * number + 1).all()


def test_memory_is_used_again_when_nothing_is_held(tmp_path):
    places = {batch.images.__array_interface__["data"][0] for batch in loading(tmp_path)}
    assert len(places) <= 10 < NUM_IMAGES // 2
    assert isinstance(next(loading(tmp_path)).images, np.ndarray)
