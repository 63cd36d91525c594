"""JPEG decoding on the GPU agrees with the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import encoded
from PIL import Image
from skimage import data as photographs

from brics_cli.images import load_shards, open_collection
from brics_cli.images.pixels import load_pixels

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
def test_nvjpeg_agrees_with_pillow(name: str) -> None:
    data = encoded(Image.fromarray(getattr(photographs, name)()), "JPEG", quality=92)
    on_gpu = load_pixels(data, transform="crop-bicubic-cuda", size=256)
    reference = load_pixels(data, transform="crop-bicubic", size=256)
    assert on_gpu.shape == (256, 256, 3) and on_gpu.dtype == np.uint8
    # nvJPEG has an inverse DCT and a chroma upsampling of its own
    mean_square = np.mean((on_gpu.astype(float) - reference.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / mean_square) >= 38


def test_threads_decode_a_folder_of_mixed_files(tmp_path) -> None:
    photo = Image.fromarray(photographs.astronaut())
    for number in range(24):
        photo.rotate(number).save(tmp_path / f"{number:02d}.{('jpg', 'png')[number % 2]}")
    (tmp_path / "99.jpg").write_bytes((tmp_path / "00.jpg").read_bytes()[:2000])
    batches = list(load_shards(open_collection(tmp_path), transform="crop-bicubic-cuda", size=64, num_workers=4))
    assert [len(batch.keys) for batch in batches] == [24]
    assert [failure.key for failure in batches[0].failures] == ["99"]
    expected = load_pixels((tmp_path / "02.jpg").read_bytes(), transform="crop-bicubic", size=64)
    assert np.abs(batches[0].images[2].astype(int) - expected).mean() < 3
