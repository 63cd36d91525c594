"""Shards of every size in the hands of Hugging Face's datasets and of wids: the same images, keys and labels."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import brics, error_line
from diffusion_workspace import make_workspace
from PIL import Image

from brics_cli.images import open_collection
from brics_cli.images.pixels import decode_image

READ_WITH_DATASETS = """
import hashlib, json, sys
import datasets
read, names = {}, {}
for folder in sys.argv[1:]:
    rows = datasets.load_dataset(folder, split="train")
    column = next(name for name in rows.column_names if name in ("png", "jpg", "webp"))
    digest = lambda row: hashlib.sha256(row[column].convert("RGB").tobytes()).hexdigest()
    names[folder] = getattr(rows.features.get("cls"), "names", None)
    read[folder] = [[row["__key__"], row.get("cls"), digest(row), row.get("json")] for row in rows]
print(json.dumps([read, names]))
"""
Row = list[object]


def make_images(folder: Path, num: int, *, labels: str = "", meta: str = "", dots: bool = False) -> Path:
    """`num` images; those whose number is in `labels` have a class, in `meta` a caption of their own."""
    generator = np.random.default_rng(num)
    folder.mkdir()
    for number in range(num):
        stem = f"my.photo.{number:03d}" if dots and number % 2 else f"{number:03d}"
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{stem}.png")
        if str(number % 10) in labels:
            (folder / f"{stem}.cls").write_text(str(number % 3))
        if str(number % 10) in meta:
            (folder / f"{stem}.json").write_text(json.dumps({f"caption{number % 2}": "x" * number}))
    return folder


CLASSES = ("cat's", "dog: a", "v1.0")
CASES: dict[str, tuple[dict, tuple[str, ...]]] = {
    "one": ({"num": 1}, ()),
    "two": ({"num": 2, "labels": "0123456789"}, ()),
    "three-shards": ({"num": 7, "labels": "0123456789"}, ("--shard-size", "3")),
    "some-labels": ({"num": 30, "labels": "9"}, ("--shard-size", "10")),
    "some-metadata": ({"num": 30, "labels": "13", "meta": "789"}, ("--shard-size", "10")),
    "dots": ({"num": 12, "dots": True}, ()),
    "jpeg": ({"num": 4}, ("--codec", "jpeg")),
    "webp": ({"num": 4}, ("--codec", "webp")),
    "many": ({"num": 300, "labels": "0123456789"}, ("--shard-size", "5")),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A pack of each case, one with images that failed, one by a brics without a card, and samples, as shards."""
    root = make_workspace(tmp_path_factory.mktemp("shards"), num_classes=2)
    for name, (settings, flags) in CASES.items():
        make_images(root / f"{name}-images", **settings)
        brics("pack", f"{name}-images", "--out", name, "--size", 12, *flags, cwd=root, check=0)
    (root / "classes-images").mkdir()
    for number, name in enumerate(CLASSES):
        make_images(root / "classes-images" / name, number + 1)
    brics("pack", "classes-images", "--labels", "folder", "--out", "classes", "--size", 12, cwd=root, check=0)
    make_images(root / "failed-images", 6)
    for number in (0, 4):
        (root / "failed-images" / f"{number:03d}.png").write_bytes(b"not an image")
    brics("pack", "failed-images", "--out", "failed", "--size", 12, "--shard-size", 1, cwd=root, check=5)
    brics("sample", "--model", "runs/diffusion/d", "--steps", 2, "--n", 5, "--out", "samples", cwd=root, check=0)
    return root


FOLDERS = [*CASES, "classes", "failed", "samples"]


@pytest.fixture(scope="module")
def found_by_datasets(workspace) -> tuple[dict[str, list[Row]], dict[str, list[str] | None]]:
    """The rows, and the names of classes, of each folder."""
    environment = {**os.environ, "HF_HOME": str(workspace / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", READ_WITH_DATASETS, *FOLDERS], cwd=workspace, env=environment, capture_output=True
    )
    assert finished.returncode == 0, finished.stderr.decode()[-2000:]
    rows, names = json.loads(finished.stdout)
    return rows, names


@pytest.fixture(scope="module")
def read_with_datasets(found_by_datasets) -> dict[str, list[Row]]:
    return found_by_datasets[0]


def rows_of(folder: Path) -> list[Row]:
    """What brics reads: key in the shard, label, pixels."""
    collection = open_collection(folder)
    raws = [raw for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]
    return [[raw.key.split("/", 1)[1], raw.label, digest(raw.data)] for raw in raws]


def digest(data: bytes) -> str:
    return hashlib.sha256(decode_image(data).tobytes()).hexdigest()


@pytest.mark.parametrize("name", FOLDERS)
def test_datasets_reads_the_same_images_keys_and_labels(workspace, read_with_datasets, name):
    assert [row[:3] for row in read_with_datasets[name]] == rows_of(workspace / name)


def test_datasets_knows_the_names_of_classes(found_by_datasets):
    names = found_by_datasets[1]
    assert names["classes"] == list(CLASSES) and names["two"] is None


def test_datasets_reads_metadata_that_differ_from_image_to_image(workspace, read_with_datasets):
    captions = [meta for *_, meta in read_with_datasets["some-metadata"]]
    assert captions[:7] == [None] * 7 and captions[7:10] == [
        {f"caption{number % 2}": "x" * number} for number in (7, 8, 9)
    ]


@pytest.mark.filterwarnings("ignore:String specifications")
@pytest.mark.parametrize("name", FOLDERS)
def test_wids_reads_the_same_images_in_any_order(workspace, tmp_path, name):
    import wids

    dataset = wids.ShardListDataset(str(workspace / name / "wids.json"), cache_dir=str(tmp_path), transformations=[])
    expected = rows_of(workspace / name)
    assert len(dataset) == len(expected)
    for place in np.random.default_rng(0).permutation(len(dataset)).tolist():
        sample = dataset[place]
        data = next(sample[field].read() for field in (".png", ".jpg", ".webp") if field in sample)
        label = int(sample[".cls"].read()) if ".cls" in sample else None
        found = [sample["__key__"], label, digest(data)]
        assert found == expected[place]


@pytest.mark.parametrize("name", ["猫", "n" * 120])
def test_names_that_wids_would_mix_up_get_no_index(workspace, name):
    images = make_images(workspace / f"{name[:9]}-images", 2)
    for path in sorted(images.iterdir()):
        path.rename(images / f"{name}{path.name}")
    arguments = ("pack", images.name, "--out", name[:9], "--size", 12)
    said = brics(*arguments, cwd=workspace, check=0).stderr
    assert "no wids.json in" in said and "2 names of files are not ASCII of at most 100 bytes" in said
    assert not (workspace / name[:9] / "wids.json").exists()
    assert [row[0] for row in rows_of(workspace / name[:9])] == [f"{name}000", f"{name}001"]


def test_the_index_and_the_card_are_the_same_bytes_each_time(workspace):
    brics("pack", "three-shards-images", "--out", "again", "--size", 12, "--shard-size", 3, cwd=workspace, check=0)
    for name in ("wids.json", "README.md"):
        assert (workspace / "again" / name).read_bytes() == (workspace / "three-shards" / name).read_bytes()


def test_a_pack_without_them_is_read_and_gets_them(workspace):
    arguments = ("pack", "two-images", "--out", "old", "--size", 12)
    brics(*arguments, cwd=workspace, check=0)
    for name in ("wids.json", "README.md"):
        (workspace / "old" / name).unlink()
    assert rows_of(workspace / "old") == rows_of(workspace / "two")
    assert "complete already" in brics(*arguments, cwd=workspace, check=0).stderr
    assert (workspace / "old/README.md").read_bytes() == (workspace / "two/README.md").read_bytes()


def test_a_card_does_not_make_a_folder_ours(workspace):
    mine = workspace / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("precious")
    arguments = ("pack", "two-images", "--out", "mine", "--size", 12)
    for flags, said in (((), "already there"), (("--overwrite",), "not made by brics")):
        assert said in error_line(brics(*arguments, *flags, cwd=workspace, check=4))
    assert (mine / "README.md").read_text() == "precious"
