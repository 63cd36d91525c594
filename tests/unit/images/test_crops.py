"""Random crops of a collection: what each is cut from, and what `brics pack --crops` writes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import brics, error_line
from image_files import read_all
from PIL import Image

from brics_cli.cli.app import run
from brics_cli.images import open_collection
from brics_cli.images.crops import CropCollection, Crops, draw_crop
from brics_cli.images.pixels import decode_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture in which every pixel says where it is, one smaller than a crop, and a text."""
    root = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:120, :200].astype(np.uint8)
    Image.fromarray(np.stack([y, x, np.zeros_like(x)], axis=-1)).save(root / "places.png")
    Image.fromarray(np.stack([y, x, x], axis=-1)[:20, :20]).save(root / "small.png")
    (root / "text.png").write_text("not an image")
    return root


def test_at_scale_1_a_crop_is_the_pixels_of_its_place(folder: Path) -> None:
    whole = Image.open(folder / "places.png")
    for seed in range(20):
        crop = np.asarray(draw_crop(whole, Crops(1, 32, (1.0, 1.0)), np.random.default_rng(seed)))
        top, left = crop[0, 0, :2]
        assert (crop == np.asarray(whole)[top : top + 32, left : left + 32]).all()


def test_scales_stay_in_their_range_and_fill_it(folder: Path) -> None:
    whole = Image.open(folder / "places.png")
    scales = []
    for seed in range(200):
        crop = np.asarray(draw_crop(whole, Crops(1, 32, (0.3, 1.0)), np.random.default_rng(seed))).astype(float)
        scales.append(30 / (crop[16, 31, 1] - crop[16, 1, 1]))
    assert 0.28 < min(scales) < 0.36 and 0.9 < max(scales) < 1.1
    assert 0.45 < np.median(scales) < 0.65  # log-uniform: the median is the geometric mean, 0.55


def test_a_small_image_is_continued_by_its_mirror_image(folder: Path) -> None:
    crop = np.asarray(draw_crop(Image.open(folder / "small.png"), Crops(1, 32), np.random.default_rng(0)))
    small = np.asarray(Image.open(folder / "small.png"))
    assert crop.shape == (32, 32, 3)
    assert (crop[:20, :20] == small).all() and (crop[20:, :20] == small[:-13:-1]).all()


def test_a_crop_depends_on_the_seed_its_image_and_its_number_alone(folder: Path) -> None:
    crops = Crops(5, 32, jitter=0.2)
    straight, again = (CropCollection(open_collection(folder), crops) for _ in range(2))
    other = CropCollection(open_collection(folder), crops._replace(seed=1))
    forward = [straight.read(0, index).data for index in range(10)]
    backward = [again.read(0, index).data for index in reversed(range(10))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 10 and not set(forward) & {other.read(0, index).data for index in range(10)}
    assert straight.layout == again.layout != other.layout
    assert decode_image(forward[0]).size == (32, 32)


def test_pack_writes_crops_and_says_what_failed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = ["pack", str(folder), "--out", str(out), "--size", "32", "--crops", "3", "--shard-size", "4"]
    assert run([*arguments, "--seed", "7"]) == 5  # three crops of the text
    keys = [raw.key for raw in read_all(open_collection(out))]
    assert len(keys) == 6 and all("-crop-0000" in key for key in keys)
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert run([*arguments, "--seed", "7"]) == 5
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before
    assert run([*arguments, "--seed", "8"]) == 4  # another seed would be other images


def test_crops_of_images_that_have_changed_are_refused_as_whole_images_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(folder / "places.png", images)
    arguments = ["pack", str(images), "--out", str(tmp_path / "shards"), "--size", "32", "--crops", "3"]
    assert run(arguments) == 0
    shutil.copy(folder / "small.png", images)
    assert run(arguments) == 3
    assert f"{images} has changed since {tmp_path / 'shards'} was made from it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--crop-scale", "0.5:1"), "--crop-scale is about crops"),
        (("--crops", "2", "--crop-scale", "0.5"), "--crop-scale 0.5 is not a range"),
        (("--crops", "2", "--crop-scale", "0.5:2"), "--crop-scale 0.5:2 is not a range"),
        (("--crops", "2", "--crop-scale", "nan:1"), "--crop-scale nan:1 is not a range"),
    ],
)
def test_what_is_no_crop_is_refused(folder: Path, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    finished = brics("pack", folder, "--out", tmp_path / "out", *flags, cwd=tmp_path)
    assert finished.returncode == 2 and said in error_line(finished)
