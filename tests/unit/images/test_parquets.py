"""Hugging Face's parquet layout, its splits, and tables that hold no images."""

from __future__ import annotations

import contextlib
import datetime
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import keys_of, noise, read_all

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import load_shards, open_collection
from brics_cli.images.opening import collection_exists, subset_path

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402
from table_files import IMAGE, write_parquet  # noqa: E402


def test_images_labels_and_the_rest_as_metadata(tmp_path):
    made = [datetime.date(2020, 1, day) for day in range(1, 6)]
    path = write_parquet(tmp_path / "x.parquet", text=list("abcde"), made=made, blob=[b"x"] * 5)
    collection = open_collection(path)
    assert collection.describe() == (
        "5 images, parquet, 1 file, labels from the column label: 5 of 5 labelled, 5 classes"
    )
    assert collection.passed_over.to_json() == {"values in the column blob (bytes)": 5}
    read = read_all(collection)
    assert [raw.key for raw in read] == [f"x/{number:08d}" for number in range(5)]
    assert [raw.data for raw in read] == [noise(number) for number in range(5)]
    assert [raw.label for raw in read] == list(range(5))
    assert read[3].meta == {"text": "d", "made": "2020-01-04", "path": "3.png"}
    with ThreadPoolExecutor(4) as pool:
        again = pickle.loads(pickle.dumps(collection))
        assert [raw.data for raw in pool.map(lambda index: again.read(0, index), range(5))] == [r.data for r in read]


def test_splits_are_never_mixed(tmp_path):
    for split, number, count in (("train", 0, 2), ("train", 1, 2), ("validation", 0, 1), ("test", 0, 1)):
        name = f"{split}-{number:05d}-of-{count:05d}-ab12.parquet"
        write_parquet(tmp_path / "data" / name, 3, first=10 * number)
    for root in (tmp_path, tmp_path / "data"):  # the repository as it is cloned, or its folder of tables
        collection = open_collection(root)
        assert len(collection) == 6
        assert collection.describe() == (
            "6 images, parquet, 2 files, labels from the column label: 6 of 6 labelled, 3 classes "
            "(the only one for training; also there: test, validation; "
            "--subset takes another)"
        )
        assert len(open_collection(root, subset="validation")) == 3
        path = subset_path(root, "validation")  # no file has that name
        assert keys_of(open_collection(path)) == keys_of(open_collection(root, subset="validation"))
        assert collection_exists(path) and not collection_exists(path + "s") and not collection_exists("no/such")
    assert keys_of(open_collection(collection.path)) == keys_of(collection)
    (tmp_path / "data" / "train-00000-of-00002-ab12.parquet").unlink()
    (tmp_path / "data" / "train-00001-of-00002-ab12.parquet").unlink()
    with pytest.raises(UsageError, match="holds 2 collections: test, validation"):
        open_collection(tmp_path)


def test_files_without_splits_are_one_collection(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"{number:04d}.parquet", 1, first=number)
    for opened in (open_collection(tmp_path), open_collection(f"{tmp_path}/{{0000..0002}}.parquet")):
        assert keys_of(opened) == [f"{number:04d}/00000000" for number in range(3)]


def test_rows_without_bytes_are_failures(tmp_path):
    rows = [{"bytes": noise(0), "path": None}, {"bytes": None, "path": "/elsewhere/1.png"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE)}), tmp_path / "x.parquet")
    (batch,) = load_shards(open_collection(tmp_path / "x.parquet"), transform="none", size=16)
    assert batch.keys == ["x/00000000"]
    assert [failure.reason for failure in batch.failures] == [
        "no bytes in its row, only the path '/elsewhere/1.png'", "no bytes in its row",
    ]  # fmt: skip


def test_a_column_of_bare_bytes(tmp_path):
    pq.write_table(pa.table({"jpg": [noise(0, format="JPEG")], "key": ["a"]}), tmp_path / "x.parquet")
    raw = open_collection(tmp_path / "x.parquet").read(0, 0)
    assert raw.data == noise(0, format="JPEG") and raw.meta == {"key": "a"}


def test_tables_that_are_no_collection(tmp_path):
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="no column of image files; it has url, caption"):
        open_collection(tmp_path / "x.parquet")
    whole = write_parquet(tmp_path / "y.parquet").read_bytes()
    for cut in (10, len(whole) // 2):
        (tmp_path / "y.parquet").write_bytes(whole[:-cut])
        with pytest.raises(ArtefactError, match=r"y\.parquet is truncated or damaged"):
            open_collection(tmp_path / "y.parquet")


def test_damage_in_a_row_group_names_the_file(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", 2)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)  # the header of the first page
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"x\.parquet is truncated or damaged"):
        read_all(open_collection(path))


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'brics-cli\[parquet\]'"):
        open_collection(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_table_opens_or_says_why(tmp_path_factory, changes):
    path = write_parquet(tmp_path_factory.mktemp("fuzz") / "x.parquet", 3)
    data = bytearray(path.read_bytes())
    for from_end, value in changes:  # most of what can go wrong is in the footer
        data[-(from_end % len(data)) - 1] = value
    path.write_bytes(data)
    with contextlib.suppress(BricsError):
        list(load_shards(open_collection(path), transform="none", size=16, num_workers=1))
