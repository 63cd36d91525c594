"""`brics bench codecs` gives every method the same images, and JPEG and WebP no more bytes than the codes have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, error_line
from PIL import Image
from random_autoencoder import make_autoencoder
from skimage import data

from brics_cli.bench.codecs import bench_codecs


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "cat.png"
    Image.fromarray(data.chelsea()[:256, 100:356]).save(path)
    return path


def test_every_method_is_scored_and_keeps_to_its_bytes(picture: Path, tmp_path: Path) -> None:
    run = make_autoencoder(tmp_path / "run", seed=0)
    value = bench_codecs([picture], autoencoder=run, size=64, device=torch.device("cpu")).value
    ours, _, noised, jpeg, webp, bicubic, dct = (np.array(value["psnr_db"][name])[0] for name in value["psnr_db"])
    assert min(jpeg, webp, bicubic, dct) > 20 > ours  # an untrained autoencoder is worse than any of them
    assert noised != ours
    assert all(-1 <= score <= 1 for scores in value["ssim"].values() for score in scores)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("gone.png",), "No such file"), (("cat.png", "--size", 65), "not a multiple"), (("text.png",), "cannot be read")],
)
def test_what_cannot_be_measured_is_one_line(
    picture: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    (tmp_path / "cat.png").symlink_to(picture)
    (tmp_path / "text.png").write_text("no image")
    make_autoencoder(tmp_path / "run", seed=0)
    failed = brics("bench", "codecs", *arguments, "--ae", "run", "--device", "cpu", cwd=tmp_path)
    assert failed.returncode == 2 and said in error_line(failed)
