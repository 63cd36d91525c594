"""Zips in StyleGAN's and EDM's layout, with and without dataset.json, and every damaged one."""

from __future__ import annotations

import json
import pickle
import zipfile
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_files import grey, holds_in_child, keys_of, noise, read_all, write_images

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import load_shards, open_collection
from brics_cli.images.collection import MAX_FILE_BYTES
from brics_cli.images.pixels import ImageError
from brics_cli.images.sinks import OutputImage


def write_zip(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_edm_layout_with_and_without_labels(tmp_path, method):
    images = {f"00000/img{number:08d}.png": noise(number) for number in range(3)}
    labels = [[name, number % 2] for number, name in enumerate(images)]
    for listing, expected in (({"labels": labels}, [0, 1, 0]), ({"labels": None}, [None] * 3), (None, [None] * 3)):
        extra = {} if listing is None else {"dataset.json": json.dumps(listing).encode()}
        collection = open_collection(write_zip(tmp_path / "x.zip", {**images, **extra}, method=method))
        read = read_all(collection)
        assert [raw.key for raw in read] == [f"00000/img{number:08d}" for number in range(3)]
        assert [(raw.data, raw.label) for raw in read] == list(zip(images.values(), expected, strict=True))
        said = ", labels from dataset.json: 3 of 3 labelled, 2 classes" if expected[0] == 0 else ""
        assert collection.describe() == "3 images, zip" + (
            said or ", dataset.json holds no labels" * (listing is not None)
        )


def test_order_is_sorted_and_hidden_members_are_passed_over(tmp_path):
    names = ["b.png", "a/2.jpg", "a/1.png", "__MACOSX/a/1.png", ".DS_Store", "notes.txt"]
    collection = open_collection(write_zip(tmp_path / "x.zip", {name: noise(0) for name in names}))
    assert keys_of(collection) == ["a/1", "a/2", "b"]
    assert keys_of(pickle.loads(pickle.dumps(collection))) == ["a/1", "a/2", "b"]


def test_sidecars_in_a_zip(tmp_path):
    members = {"a.png": noise(0), "a.json": b'{"n": 1}', "a.cls": b"3", "a.txt": b"text"}
    raw = open_collection(write_zip(tmp_path / "x.zip", members)).read(0, 0)
    assert (raw.label, raw.meta) == (3, {"n": 1, "txt": "text"})


def test_what_brics_decode_writes_keeps_its_keys_and_labels(tmp_path):
    keys = ["s/b", "s/a", "t/my.photo"]
    images = [OutputImage(key, np.full((4, 4, 3), number, np.uint8), number) for number, key in enumerate(keys)]
    write_images(tmp_path / "x.zip", images)
    assert [(raw.key, raw.label) for raw in read_all(open_collection(tmp_path / "x.zip"))] == [
        ("s/b", 0), ("s/a", 1), ("t/my.photo", 2),
    ]  # fmt: skip


def test_keys_that_leave_the_folder_are_refused(tmp_path):
    listing = {"labels": None, "keys": [["0.png", "../../evil"], ["1.png", "fine"]]}
    members = {"0.png": noise(0), "1.png": noise(1), "dataset.json": json.dumps(listing).encode()}
    with pytest.raises(ArtefactError, match="leaves its folder"):
        open_collection(write_zip(tmp_path / "x.zip", members))


def test_a_zip_is_seen_in_its_bytes(tmp_path):
    assert len(open_collection(write_zip(tmp_path / "dataset", {"a.png": noise(0)}))) == 1


def test_zips_that_cannot_be_read_say_why(tmp_path):
    for name, members, error, said in [
        ("none.zip", {"a.txt": b"x"}, UsageError, "no images in the zip"),
        ("evil.zip", {"../a.png": grey()}, ArtefactError, "leaves its folder"),
        ("church_lmdb.zip", {"church_lmdb/data.mdb": b"x"}, UsageError, r"zipped LMDB.*Unzip it: unzip"),
        ("broken.zip", {"a.png": grey(), "dataset.json": b"{"}, ArtefactError, r"dataset\.json is damaged"),
    ]:
        with pytest.raises(error, match=said):
            open_collection(write_zip(tmp_path / name, members))
    with pytest.raises(UsageError, match="method 14"):
        open_collection(write_zip(tmp_path / "lzma.zip", {"a.png": grey()}, method=zipfile.ZIP_LZMA))
    whole = write_zip(tmp_path / "cut.zip", {"a.png": grey()}).read_bytes()
    for cut in (len(whole) - 5, len(whole) // 2, 30):
        (tmp_path / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(ArtefactError, match=r"cut\.zip is truncated or damaged"):
            open_collection(tmp_path / "cut.zip")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.png", grey())
        archive.writestr("a.png", grey(1))
    with pytest.raises(ArtefactError, match=r"'a\.png' twice"):
        open_collection(tmp_path / "twice.zip")


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": grey()})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1  # general purpose bit 0
    path.write_bytes(data)
    with pytest.raises(UsageError, match="encrypted"):
        open_collection(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_one_failure(tmp_path, method):
    members = {f"{number}.png": noise(number) for number in range(3)}
    path = write_zip(tmp_path / "x.zip", members, method=method)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("1.png").header_offset + 200
    data[place] ^= 0xFF
    path.write_bytes(data)
    (batch,) = load_shards(open_collection(path), transform="none", size=16)
    assert batch.keys == ["0", "2"]
    assert [failure.key for failure in batch.failures] == ["1"] and "damaged" in batch.failures[0].reason


def test_a_bomb_is_not_unpacked(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"\0" * 100_000}, method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (MAX_FILE_BYTES + 1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ImageError, match="too large for an image"):
        open_collection(path).read(0, 0)
    data[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")  # says less than it unpacks to
    path.write_bytes(data)
    with pytest.raises(ImageError, match="checksum"):
        open_collection(path).read(0, 0)


def test_two_processes_read_one_zip(tmp_path):
    collection = open_collection(write_zip(tmp_path / "x.zip", {f"{n:02d}.png": noise(n) for n in range(50)}))
    collection.read(0, 0)
    for reader in (holds_in_child, lambda check: check()):
        assert reader(lambda: all(collection.read(0, n).data == noise(n) for n in range(50)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6), st.integers(0, 1500))
@example([(461, 2)], 0)  # a directory that begins before the file
def test_a_mutated_zip_opens_right_or_says_why(tmp_path_factory, changes, cut):
    path = tmp_path_factory.mktemp("fuzz") / "x.zip"
    members = {"a.png": grey(1), "b.png": grey(2), "dataset.json": b'{"labels": [["a.png", 1]]}'}
    data = bytearray(write_zip(path, members, method=zipfile.ZIP_DEFLATED).read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data[: max(len(data) - cut, 0)])
    try:
        collection = open_collection(path)
        batches = list(load_shards(collection, transform="crop-bicubic", size=4))
    except BricsError:
        return
    for batch in batches:  # what is read is right: the checksum holds
        assert all((image == image[0, 0]).all() and image[0, 0, 0] in (1, 2) for image in batch.images)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("num", [2, 1000])
def test_members_that_overlap_are_refused(tmp_path, method, num):
    """One image that stands for `num`: what makes a zip of megabytes one of petabytes."""
    path = write_zip(tmp_path / "x.zip", {"0.png": noise(0)}, method=method)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(1, num):
            info = copy(archive.infolist()[0])
            info.filename = info.orig_filename = f"{number}.png"
            archive.filelist.append(info)
            archive._didModify = True
    with pytest.raises(ArtefactError, match="overlaps"):
        open_collection(path)
