"""Images that are made larger, because they are smaller than what is asked for, are said with their number, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_files import noise
from random_autoencoder import make_autoencoder

from brics_cli.cli.app import run
from brics_cli.images import load_shards, open_collection

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
