"""LSUN's LMDBs: the real key and value layout, several side by side, truncated, on a read-only file system."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from image_files import holds_in_child, keys_of, noise, read_all

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import load_shards, open_collection
from brics_cli.images.opening import subset_path


def lsun_key(number: int) -> bytes:
    """LSUN's keys are 40 hexadecimal digits."""
    return hashlib.sha1(str(number).encode()).hexdigest().encode()


def write_lmdb(path: Path, values: dict[bytes, bytes]) -> Path:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return path


def lsun(path: Path, num_images: int = 4) -> Path:
    """An LMDB as LSUN publishes it: key -> webp, or in older copies jpeg; with the lock file LMDB leaves."""
    formats = ("WEBP", "JPEG")
    return write_lmdb(path, {lsun_key(n): noise(n, format=formats[n % 2]) for n in range(num_images)})


def test_the_real_layout(tmp_path):
    path = lsun(tmp_path / "church_outdoor_train_lmdb")
    collection = open_collection(path)
    assert collection.describe() == "4 images, LSUN LMDB, church_outdoor_train"
    assert keys_of(collection) == sorted(lsun_key(number).decode() for number in range(4))
    (batch,) = load_shards(collection, transform="none", size=16)
    assert len(batch.keys) == 4 and batch.failures == []
    by_key = {raw.key: raw.data for raw in read_all(collection)}
    assert by_key[lsun_key(2).decode()] == noise(2, format="WEBP")
    assert keys_of(open_collection(path / "data.mdb")) == keys_of(collection)


def test_several_threads_and_processes_read_one_lmdb(tmp_path):
    collection = open_collection(lsun(tmp_path / "x_lmdb", 40))
    expected = [raw.data for raw in read_all(collection)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: collection.read(0, index).data, range(40))) == expected
    again = pickle.loads(pickle.dumps(collection))
    assert [raw.data for raw in read_all(again)] == expected
    assert holds_in_child(lambda: [raw.data for raw in read_all(collection)] == expected)
    assert [raw.data for raw in read_all(collection)] == expected


def test_of_several_the_only_training_one_is_taken_and_said(tmp_path):
    for name in ("church_outdoor_train", "church_outdoor_val", "bedroom_val"):
        lsun(tmp_path / f"{name}_lmdb", 2)
    collection = open_collection(tmp_path)
    assert collection.describe() == (
        "2 images, LSUN LMDB, church_outdoor_train (the only one for training; also there: bedroom_val, "
        "church_outdoor_val; --subset takes another)"
    )
    assert keys_of(open_collection(collection.path)) == keys_of(collection)
    for subset in ("bedroom_val", "bedroom_val_lmdb"):
        assert open_collection(tmp_path, subset=subset).path == str(tmp_path / "bedroom_val_lmdb")
        assert subset_path(tmp_path, subset) == str(tmp_path / "bedroom_val_lmdb")
    assert open_collection(tmp_path / "bedroom_val").path == str(tmp_path / "bedroom_val_lmdb")


@pytest.mark.parametrize("names", [("a_train", "b_train"), ("a_val", "b_val"), ("bedroom", "church")])
def test_where_it_is_not_clear_they_are_listed(tmp_path, names):
    for name in names:
        lsun(tmp_path / f"{name}_lmdb", 1)
    with pytest.raises(UsageError, match=f"holds 2 collections: {names[0]}, {names[1]}.*--subset {names[0]}"):
        open_collection(tmp_path)
    with pytest.raises(UsageError, match=f"no subset or folder 'c' in .*; there are: {names[0]}, {names[1]}"):
        open_collection(tmp_path, subset="c")


def test_one_alone_is_taken_whatever_its_name(tmp_path):
    lsun(tmp_path / "test_lmdb", 1)
    assert open_collection(tmp_path).describe() == "1 image, LSUN LMDB, test"


def test_a_truncated_lmdb_is_seen_before_it_is_mapped(tmp_path):
    data = lsun(tmp_path / "x_lmdb", 30) / "data.mdb"
    whole = data.read_bytes()
    for size in (len(whole) - 4096, len(whole) // 2, 8192 + 100):
        data.write_bytes(whole[:size])
        with pytest.raises(ArtefactError, match=rf"x_lmdb is truncated: {size:,} of {len(whole):,} bytes"):
            open_collection(tmp_path / "x_lmdb")
    for size in (4096, 100):
        data.write_bytes(whole[:size])
        with pytest.raises(ArtefactError, match="x_lmdb is damaged"):
            open_collection(tmp_path / "x_lmdb")
    data.write_bytes(b"not an LMDB at all" * 100)
    with pytest.raises(UsageError, match="not an LMDB"):
        open_collection(tmp_path / "x_lmdb")


def test_a_read_only_file_system_without_its_lock_file(tmp_path):
    path = lsun(tmp_path / "source" / "x_train_lmdb")
    (path / "lock.mdb").unlink()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    done = subprocess.run(["mount", "--bind", str(path), str(mounted)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mounted)], check=True)
        assert len(read_all(open_collection(mounted))) == 4
        assert not (mounted / "lock.mdb").exists()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_values_that_are_no_images(tmp_path):
    datum = write_lmdb(tmp_path / "caffe_lmdb", {b"%08d" % number: bytes(200) for number in range(3)})
    with pytest.raises(UsageError, match="holds no image files among its 3 values"):
        open_collection(datum)
    with pytest.raises(UsageError, match="holds no image files"):
        open_collection(write_lmdb(tmp_path / "empty_lmdb", {}))
    mixed = write_lmdb(tmp_path / "x_lmdb", {b"length": b"1", b"256-0": noise(0, format="JPEG"), b"a": bytes(100)})
    (batch,) = load_shards(open_collection(mixed), transform="none", size=16)
    assert batch.keys == ["256-0"] and [failure.key for failure in batch.failures] == ["a"]


def test_keys_that_cannot_name_a_file_are_shown_in_hexadecimal(tmp_path):
    collection = open_collection(write_lmdb(tmp_path / "x_lmdb", {b"../x": noise(0), b"\0\1": noise(1)}))
    assert keys_of(collection) == ["0001", "2e2e2f78"]
    assert collection.read(0, 1).data == noise(0)


def test_a_zipped_lmdb_beside_others(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "church_train_lmdb.zip", "w") as archive:
        archive.writestr("church_train_lmdb/data.mdb", b"x")
    with pytest.raises(UsageError, match="Unzip it: unzip"):
        open_collection(tmp_path)
    lsun(tmp_path / "church_train_lmdb", 2)  # unzipped where it lies, as the downloads say
    assert open_collection(tmp_path).describe() == "2 images, LSUN LMDB, church_train"
