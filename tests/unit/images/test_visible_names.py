"""Keys and names come from what the user sees: a hub snapshot is made of links to blobs named by their hashes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import lmdb
import pytest
from image_files import keys_of, noise, write_tar

from brics_cli.images import open_collection

pytest.importorskip("pyarrow")
from table_files import write_parquet


def as_snapshot(root: Path, files: dict[str, Path]) -> Path:
    """`snapshots/<rev>/<name>` links to `blobs/<hash>`, as huggingface_hub keeps a repository."""
    (root / "blobs").mkdir(parents=True)
    for number, (name, made) in enumerate(files.items()):
        blob = made.rename(root / "blobs" / f"{number:064x}")
        link = root / "snapshots" / "0123abcd" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return root / "snapshots" / "0123abcd"


def make_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", noise(1))
    return path


@pytest.fixture
def snapshot(tmp_path):
    members = [("1.png", noise(1)), ("1.cls", b"3")]
    return as_snapshot(
        tmp_path / "hub",
        {
            "data/train-00000-of-00002.parquet": write_parquet(tmp_path / "a.parquet", 1),
            "data/train-00001-of-00002.parquet": write_parquet(tmp_path / "b.parquet", 1),
            "tars/train-0000.tar": write_tar(tmp_path / "a.tar", members),
            "tars/train-0001.tar": write_tar(tmp_path / "b.tar", members),
            "zip/images.zip": make_zip(tmp_path / "a.zip"),
            "church_outdoor_train_lmdb/data.mdb": make_lmdb(tmp_path / "x_lmdb"),
            "folder/cats/1.png": write_image(tmp_path / "1.png"),
        },
    )


def make_lmdb(folder: Path) -> Path:
    folder.mkdir()
    with lmdb.open(str(folder), map_size=2**20) as environment, environment.begin(write=True) as transaction:
        for number in range(2):
            transaction.put(str(number).encode(), noise(number))
    return folder / "data.mdb"


def write_image(path: Path) -> Path:
    path.write_bytes(noise(1))
    return path


@pytest.mark.parametrize(
    ("opened", "keys"),
    [
        ("data", ["train-00000-of-00002/00000000", "train-00001-of-00002/00000000"]),
        ("data/train-00001-of-00002.parquet", ["train-00001-of-00002/00000000"]),
        ("data/train-0000{0..1}-of-00002.parquet", ["train-00000-of-00002/00000000", "train-00001-of-00002/00000000"]),
        ("tars", ["train-0000/1", "train-0001/1"]),
        ("tars/train-0001.tar", ["train-0001/1"]),
        ("tars/train-{0000..0001}.tar", ["train-0000/1", "train-0001/1"]),
        ("zip/images.zip", ["a/1"]),
        ("folder", ["cats/1"]),
    ],
)
def test_keys_are_of_the_names_seen(snapshot, opened, keys, monkeypatch):
    collection = open_collection(snapshot / opened)
    assert keys_of(collection) == keys
    assert "blobs" not in collection.path
    assert keys_of(open_collection(collection.path)) == keys
    monkeypatch.chdir((snapshot / opened).parent)
    assert keys_of(open_collection(Path(opened).name)) == keys  # a relative path is seen under the same name


@pytest.mark.parametrize("name", ["church_outdoor_train_lmdb", "church_outdoor_train_lmdb/data.mdb"])
def test_an_lmdb_is_called_as_its_folder(snapshot, name):
    collection = open_collection(snapshot / name)
    assert collection.describe() == "2 images, LSUN LMDB, church_outdoor_train"


def test_a_folder_of_tables_that_is_a_link_opens_again_by_its_path(tmp_path):
    for number in range(2):
        write_parquet(tmp_path / "real" / f"{number}.parquet", 1)
    (tmp_path / "seen").symlink_to("real")
    collection = open_collection(tmp_path / "seen")
    assert keys_of(open_collection(collection.path)) == keys_of(collection) == ["0/00000000", "1/00000000"]


def test_a_link_keeps_its_own_name_and_its_folder_is_found(tmp_path):
    tar = write_tar(tmp_path / "real" / "0123.tar", [("1.png", noise(1))])
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "cats.tar").symlink_to(tar)
    assert open_collection(tmp_path / "link" / "cats.tar").path == str(tmp_path / "real" / "cats.tar")
