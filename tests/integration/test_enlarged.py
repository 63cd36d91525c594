"""Images that are made larger, because they are smaller than what is asked for, are said with their number, once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, noise
from PIL import Image
from random_autoencoder import make_autoencoder

from brics_cli.cli.app import run
from brics_cli.images import load_shards, open_collection
from brics_cli.images.pixels import num_frames

SIDES = (16, 31, 32, 33, 64, 16)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number, side in enumerate(SIDES):
        (tmp_path / "photographs").mkdir(exist_ok=True)
        (tmp_path / "photographs" / f"{number}.jpg").write_bytes(noise(number, side, format="JPEG"))
    (tmp_path / "photographs" / "broken.jpg").write_bytes(b"")
    return tmp_path / "photographs"


@pytest.mark.parametrize("transform", ["crop-bicubic", "crop-bicubic-fast", "adm", "edm-lanczos"])
@pytest.mark.parametrize("size", [16, 32, 65])
def test_every_transform_counts_them(photographs, transform, size):
    batches = list(load_shards(open_collection(photographs), transform=transform, size=size, batch_size=4))
    assert [image.short_side for batch in batches for image in batch.good] == list(SIDES)
    found = [image.index for batch in batches for image in batch.enlarged]
    assert found == [index for index, side in enumerate(SIDES) if side < size]


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if "enlarged" in line]


def test_pack_and_its_resumption_say_it(photographs, tmp_path, capsys):
    words = ["pack", str(photographs), "--out", str(tmp_path / "s"), "--size", "32", "--json"]
    assert run(words) == 5
    streams = capsys.readouterr()
    assert said(streams.err) == ["3 of 6 images were enlarged: smaller than 32 px"]
    assert json.loads(streams.out)["num_enlarged"] == 3
    assert run([*words, "--overwrite", "--quiet"]) == 5
    assert not said(capsys.readouterr().err)
    assert run([*words[:-2], "8", "--overwrite"]) == 5
    assert not said(capsys.readouterr().err)


def test_encode_dataset_says_it(photographs, tmp_path, capsys):
    autoencoder = make_autoencoder(tmp_path / "ae", seed=0)
    assert run(["encode-dataset", str(photographs), "--ae", str(autoencoder), "--out", str(tmp_path / "c.h5"),
                "--device", "cpu", "--json"]) == 5  # fmt: skip
    streams = capsys.readouterr()
    assert said(streams.err) == ["5 of 6 images were enlarged: smaller than 64 px"]
    assert json.loads(streams.out)["num_enlarged"] == 5


@pytest.mark.parametrize("cache_gib", ["1", "0"])
def test_training_says_it_once(photographs, tmp_path, capsys, cache_gib):
    words = ["train-ae", str(photographs), "--recipe", "tiny", "--steps", "2", "--device", "cpu"]
    settings = ["--set", "training.batch_size=4", "--set", f"data.cache_gib={cache_gib}"]
    assert run([*words, *settings, "--out", str(tmp_path / "run")]) == 5
    (line,) = said(capsys.readouterr().err)
    assert line.endswith(" px") and " of 6 images were enlarged: smaller than " in line


@pytest.fixture
def animations(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / "photographs").mkdir(exist_ok=True)
        frames = [Image.new("RGB", (64, 64), (number, 80 * frame, 0)) for frame in range(4)]
        form, several = ["png", "webp", "tiff"][number % 3], number < 3
        more = {"save_all": True, "append_images": frames[1:]} if several else {}
        data = encoded(frames[0], form.upper(), **more)
        assert num_frames(data) == (4 if several else 1)
        (tmp_path / "photographs" / f"{number}.{form}").write_bytes(data)
    return tmp_path / "photographs"


def test_frames_and_pages_that_are_not_read_are_said_once(animations, tmp_path, capsys):
    autoencoder = make_autoencoder(tmp_path / "ae", seed=0)
    data, out = str(animations), str(tmp_path / "out")
    tiny = ["--recipe", "tiny", "--steps", "2", "--set", "training.batch_size=4"]
    for words in (
        ["pack", data, "--size", "32", "--out", f"{out}/shards"],
        ["encode-dataset", data, "--ae", str(autoencoder), "--device", "cpu", "--out", f"{out}.h5"],
        ["train-ae", data, *tiny, "--device", "cpu", "--out", f"{out}/run"],
        ["eval", "--metric", "psnr", "--real", data, "--fake", f"{out}.h5", "--device", "cpu"],
    ):
        assert run(words) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "several frames" in line]
        assert "3 of 6 images have several frames or pages: the first of each is read" in line


def test_frames_of_damaged_files(animations):
    """Whatever is cut off or changed, a number comes out, and never nothing."""
    random = np.random.default_rng(0)
    for path in animations.iterdir():
        data = path.read_bytes()
        for _ in range(100):
            changed = bytearray(data[: random.integers(0, len(data) + 1)])
            for place in random.integers(0, max(len(changed), 1), 3):
                if changed:
                    changed[place] = random.integers(256)
            assert num_frames(bytes(changed)) >= 1
