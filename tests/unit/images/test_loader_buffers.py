"""The loader uses memory again: never while anybody holds a batch, or a view of one, that is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import grey, write_tar

from brics_cli.images import load_shards, open_collection
from brics_cli.images.decoders import Buffers

NUM_IMAGES = 90


def loading(folder: Path):
    path = folder / "x.tar"
    if not path.exists():
        write_tar(path, [(f"{number:03d}.png", grey(number)) for number in range(NUM_IMAGES)])
    return load_shards(open_collection(path), transform="crop-bicubic", size=4, batch_size=2, num_workers=2)


def test_batches_larger_than_all_memory_can_be_asked_for():
    shape, num = (2**34, 8, 8, 3), 2**10  # 3 PiB
    buffers = Buffers(shape, num=num)
    first, second = buffers.take(2), buffers.take(1)
    first[:], second[:] = 1, 2
    assert first.shape == (2, 8, 8, 3) and (first == 1).all() and (second == 2).all()
    with pytest.raises(OSError, match=r"memory|large"):
        Buffers(shape, num=num, shared=True)


def test_what_is_held_is_not_overwritten(tmp_path):
    held = list(loading(tmp_path))
    rows = [batch.images[1, :1] for batch in loading(tmp_path)]  # a view alone
    for number in range(NUM_IMAGES // 2):
        assert (held[number].images[0] == 2 * number).all() and (rows[number] == 2 * number + 1).all()


def test_memory_is_used_again_when_nothing_is_held(tmp_path):
    places = {batch.images.__array_interface__["data"][0] for batch in loading(tmp_path)}
    assert len(places) <= 10 < NUM_IMAGES // 2
    assert isinstance(next(loading(tmp_path)).images, np.ndarray)
