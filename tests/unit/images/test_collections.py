"""Folders and WebDataset shards: what is found, how it is called, and what each damaged input says."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import collection as collections
from brics_cli.images import load_shards, median_side, open_collection
from brics_cli.images.opening import subset_path


def png(value: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys_of(collection) -> list[str]:
    return [raw.key for shard in range(len(collection.shards)) for raw in collection.iter_shard(shard)]


def test_folder_is_walked_sorted_and_hidden_files_are_passed_over(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.webp", ".hidden.png", ".git/x.png", "b/notes.txt", "c/d/e/f.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    collection = open_collection(tmp_path)
    assert keys_of(collection) == ["a", "b/1", "b/2", "c/d/e/f"]
    assert collection.describe() == "4 images, folder with 2 subfolders"
    assert keys_of(pickle.loads(pickle.dumps(collection))) == keys_of(collection)


def test_folder_keys_keep_extensions_that_alone_differ(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        (tmp_path / name).write_bytes(png())
    assert keys_of(open_collection(tmp_path)) == ["a.jpg", "a.png", "b"]


def test_a_link_back_to_the_folder_is_followed_once(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "loop").symlink_to(tmp_path)
    assert keys_of(open_collection(tmp_path)) == ["a"]


def test_folder_is_cut_into_virtual_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", 2)
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    collection = open_collection(tmp_path)
    assert [shard.num_images for shard in collection.shards] == [2, 2, 1]
    assert collection.read(2, 0).key == collection.key(2, 0) == "4"
    assert [shard.num_images for shard in collection.first(3).shards] == [2, 1]
    assert collection.first(3).fingerprint != collection.fingerprint


def test_fingerprint_survives_a_copy_and_sees_a_change(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
        (tmp_path / root / "a.png").write_bytes(png())
    one, two = open_collection(tmp_path / "one"), open_collection(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    (tmp_path / "two" / "b.png").write_bytes(png())
    assert open_collection(tmp_path / "two").fingerprint != one.fingerprint


def test_webdataset_splits_at_the_last_image_extension(tmp_path):
    write_tar(tmp_path / "x.tar", [("my.photo.1.png", png(1)), ("my.photo.2.png", png(2))])
    collection = open_collection(tmp_path / "x.tar")
    assert keys_of(collection) == ["x/my.photo.1", "x/my.photo.2"]
    assert collection.describe() == "2 images, WebDataset, 1 shard"


def test_sidecars_give_label_and_meta_even_when_interleaved(tmp_path):
    members = [
        ("a.png", png(1)), ("b.png", png(2)), ("a.cls", b"7\n"), ("b.json", b'{"width": 8}'),
        ("a.txt", b"a cat"), ("b.cls", b"0.5"), ("unrelated.npy", b"\x80"),
    ]  # fmt: skip
    a, b = open_collection(write_tar(tmp_path / "x.tar", members)).iter_shard(0)
    assert (a.label, a.meta) == (None, {"label_value": 7, "txt": "a cat"})  # not all are class numbers
    assert (b.label, b.meta) == (None, {"label_value": 0.5, "width": 8})
    assert a.data == png(1) and b.index == 1


def test_directory_and_braces_open_the_same_shards(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "shards" / f"x-{number:03d}.tar", [(f"{i}.png", png(i)) for i in range(2)])
    (tmp_path / "shards" / "x-000_stats.json").write_text("{}")
    from_directory = open_collection(tmp_path / "shards")
    from_braces = open_collection(f"{tmp_path}/shards/x-{{000..002}}.tar")
    assert keys_of(from_directory) == keys_of(from_braces)
    assert from_directory.fingerprint == from_braces.fingerprint
    assert keys_of(from_directory)[-1] == "x-002/1"


def test_shards_of_one_name_in_two_folders_have_different_keys(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / name / "000.tar", [("1.png", png())])
    collection = open_collection(f"{tmp_path}/{{a,b}}/000.tar")
    assert keys_of(collection) == ["a/000/1", "b/000/1"]


def test_reads_what_webdataset_writes(tmp_path):
    pattern = str(tmp_path / "w-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"k/{number}", "png": png(number), "cls": number, "json": {"n": number}})
    collection = open_collection(tmp_path)
    read = [raw for shard in range(2) for raw in collection.iter_shard(shard)]
    assert [(raw.key, raw.label, raw.meta) for raw in read] == [
        (f"w-{number // 2:03d}/k/{number}", number, {"n": number}) for number in range(3)
    ]


@pytest.mark.parametrize("cut", [1, 300, 512, 700, 1024, 1500, 2000, 2560])
def test_a_truncated_tar_names_its_shard(tmp_path, cut):
    whole = write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("b.png", png(2))]).read_bytes()
    end = 4 * 512  # two headers, two blocks of data; then the end mark
    (tmp_path / "x.tar").write_bytes(whole[: min(cut, end + 1000)])
    with pytest.raises(ArtefactError, match=r"x\.tar is truncated"):
        open_collection(tmp_path / "x.tar")


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("b.png", png(2))])
    data = bytearray(tar.read_bytes())
    data[1024 + 10] ^= 0xFF  # in the second header, which tarfile would take for the end of the file
    tar.write_bytes(data)
    with pytest.raises(ArtefactError, match="damaged"):
        open_collection(tar)


def test_a_member_that_leaves_the_folder_is_refused(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("../../etc/passwd.png", png())])
    with pytest.raises(ArtefactError, match="leaves its folder"):
        open_collection(tar)


def test_a_member_that_stands_twice_is_refused(tmp_path):
    tar = write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("a.png", png(2))])
    with pytest.raises(ArtefactError, match="twice"):
        open_collection(tar)


def test_inputs_that_cannot_be_meant(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hi")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.png").write_bytes(png())
    write_tar(tmp_path / "both" / "a.tar", [("a.png", png())])
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"x")
    write_tar(tmp_path / "none.tar", [("a.txt", b"hi")])
    for name in ("a.zip", "a.parquet", "a.txt", "a.png", "a.mdb"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "renamed.tar").write_bytes(gzip.compress((tmp_path / "none.tar").read_bytes()))
    for name, said in [
        ("nowhere", "no such file"), ("empty", "is empty"), ("notes", r"1 \.txt"), ("both", "which are meant"),
        ("lmdb", "an LMDB"), ("none.tar", "no images"), ("a.zip", "a zip file"), ("a.parquet", "a parquet table"),
        ("a.h5", "HDF5"), ("a.txt", "not a collection"), ("a.png", "one image"), ("a.gz", "compressed"),
        ("renamed.tar", "no images"), ("a.mdb", "LMDB"), ("x-{000..002}.tar", "3 of the 3 files"),
        ("x-{0..2", "not balanced"),
        ("{a,b}.zip", "not a .tar"), ("{0..99999999}.tar", "more than"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=said):
            open_collection(tmp_path / name if "{" not in name else f"{tmp_path}/{name}")
    for url in ("pipe:cat x.tar", "file:///x.tar"):
        with pytest.raises(UsageError, match="not a path"):
            open_collection(url)


def test_subset_names_a_folder(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    assert len(open_collection(tmp_path, subset="val")) == 1
    with pytest.raises(
        UsageError, match=r"no subset or folder 'test' in .*there are: train \(1 image\), val \(1 image\)"
    ):
        open_collection(tmp_path, subset="test")
    assert subset_path(tmp_path, "val") == str(tmp_path / "val")
    with pytest.raises(UsageError, match="no such file or folder: no"):
        subset_path("no", "test")


def test_an_unfinished_pack_does_not_open(tmp_path):
    record = {"brics_artefact": 1, "kind": "shards", "created": "x", "complete": False, "parents": [], "details": {}}
    (tmp_path / "brics.json").write_text(json.dumps(record))
    write_tar(tmp_path / "00000.tar", [("a.png", png())])
    with pytest.raises(ArtefactError, match="not finished"):
        open_collection(tmp_path)


def test_median_side_reads_headers_of_a_spread_sample(tmp_path):
    for number, side in enumerate([10, 20, 30]):
        (tmp_path / f"{number}.png").write_bytes(png(size=(side, 100)))
    (tmp_path / "3.png").write_bytes(b"not an image")
    assert median_side(open_collection(tmp_path)) == 20


@pytest.fixture
def five_images(tmp_path, monkeypatch):
    """Images of value 0 ... 5, the second of which is a text, in shards of 3."""
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", 3)
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number) if number != 1 else b"text")
    return open_collection(tmp_path)


def test_batches_keep_order_never_cross_shards_and_list_failures(five_images):
    batches = list(load_shards(five_images, transform="crop-bicubic", size=4, batch_size=2, num_workers=3))
    assert [(batch.keys, batch.shard_index, batch.content is not None) for batch in batches] == [
        (["0"], 0, False), (["2"], 0, True), (["3", "4"], 1, False), (["5"], 1, True),
    ]  # fmt: skip
    assert batches[0].failures[0].key == "1" and "not an image" in batches[0].failures[0].reason
    assert [image.index for image in batches[0].failed] == [1] and [image.index for image in batches[0].loaded] == [
        0,
        1,
    ]
    assert batches[2].images.shape == (2, 4, 4, 3) and (batches[2].images[1] == 4).all()


def test_a_file_that_vanishes_is_a_failure(five_images):
    Path(five_images.path, "3.png").unlink()
    batches = load_shards(five_images, transform="crop-bicubic", size=4)
    assert [failure.key for batch in batches for failure in batch.failures] == ["1", "3"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=6), st.integers(0, 6000))
def test_a_mutated_tar_opens_right_or_says_why(tmp_path_factory, changes, cut):
    """Whatever is flipped or cut, opening ends in a collection or one of our errors, and reading too."""
    path = tmp_path_factory.mktemp("fuzz") / "x.tar"
    data = bytearray(write_tar(path, [("a.png", png(1)), ("a.json", b"{}"), ("b.jpg", png(2))]).read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(BricsError):
        list(load_shards(open_collection(path), transform="crop-bicubic", size=4))
