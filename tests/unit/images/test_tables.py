"""Columns of tables: which is the image, what the label means, what becomes metadata, and what is said instead."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from image_files import keys_of, noise, read_all

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import open_collection

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402
from table_files import IMAGE, image_table, write_parquet  # noqa: E402


def with_features(table: pa.Table, **features: object) -> pa.Table:
    """The table with Hugging Face's features in its schema."""
    info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, **features}}})
    return table.replace_schema_metadata({b"huggingface": info.encode()})


def class_label(*names: str) -> dict[str, object]:
    return {"names": list(names), "_type": "ClassLabel"}


def save_to_disk(folder: Path, *tables: pa.Table, form: str = "stream") -> Path:
    """The folder that `datasets` writes: streams of record batches of two rows, and its two JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


FORMS = {
    "parquet": lambda folder, table: _parquet(folder / "x.parquet", table),
    "arrow": lambda folder, table: save_to_disk(folder / "saved", table),
    "arrow file": lambda folder, table: _file_of(save_to_disk(folder / "saved", table, form="file")),
}


def _file_of(folder: Path) -> Path:
    return folder / "data-00000-of-00001.arrow"


def _parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=2)
    return path


@pytest.fixture(params=FORMS)
def opened(request, tmp_path):
    """Opens a table in each form."""
    return lambda table, **how: open_collection(FORMS[request.param](tmp_path, table), **how)


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (pa.array([0, 1, 2, 1, 0]), [0, 1, 2, 1, 0], ()),
        (pa.array([1, None, -1, 2, 1], pa.int8()), [1, None, None, 2, 1], ()),
        (pa.array([1, 0, 1, 0, 1], pa.uint64()), [1, 0, 1, 0, 1], ()),
        (pa.array([0.0, 1.0, None, 1.0, float("nan")]), [0, 1, None, 1, None], ()),
        (pa.array(["cat", "dog", None, "cat", "ant"]), [1, 2, None, 1, 0], ("ant", "cat", "dog")),
        (pa.array(["1", "0", "1", "0", "1"]), [1, 0, 1, 0, 1], ()),
        (pa.array(["b", "a", "b", "a", "b"]).dictionary_encode(), [1, 0, 1, 0, 1], ("a", "b")),
        (pa.array([True, False] * 2 + [None]), [1, 0, 1, 0, None], ("false", "true")),
        (pa.array([[1, 0], [0, 1]] * 2 + [None]), [0, 1, 0, 1, None], ()),
        (pa.array([0, 10**12, 0, 0, 0]), [0, 1, 0, 0, 0], ("0", "1000000000000")),
    ],
)
def test_labels_by_the_rules_of_every_form(opened, values, labels, names):
    collection = opened(image_table(5, label=values))
    assert [raw.label for raw in read_all(collection)] == labels and collection.class_names == names
    assert "labels from the column label: " in collection.describe()
    assert all("label" not in (raw.meta or {}) for raw in read_all(collection))


def test_class_labels_keep_their_names_and_numbers(opened):
    table = with_features(image_table(3), label=class_label("zebra", "ant", "cat"))
    collection = opened(table)
    assert collection.class_names == ("zebra", "ant", "cat")
    assert [raw.label for raw in read_all(collection)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([-2, 0, 0]), "the label of .*/00000000 in the column label of .* is -2"),
        (pa.array(list(range(3)), pa.int64()), "and there are 2 class names"),
    ],
)
def test_labels_that_cannot_be_meant_are_one_line(opened, values, said):
    table = image_table(3, label=values)
    with pytest.raises(UsageError, match=said):
        opened(with_features(table, label=class_label("a", "b")) if "names" in said else table)


def test_without_labels_the_column_is_metadata(opened):
    collection = opened(image_table(2, label=pa.array([-5, 7])), labels="none")
    assert [(raw.label, raw.meta["label"]) for raw in read_all(collection)] == [(None, -5), (None, 7)]


def test_labels_that_are_no_classes_are_metadata(opened):
    boxes = pa.array([[{"box": [1, 2]}], []])
    read = read_all(opened(image_table(2, label=pa.array([0.5, 1.5]), labels=boxes)))
    assert [raw.label for raw in read] == [None, None]
    assert read[0].meta == {"label_value": 0.5, "labels": [{"box": [1, 2]}], "path": "0.png"}


def masks(num: int) -> pa.Array:
    return pa.array([{"bytes": noise(100 + number), "path": None} for number in range(num)], IMAGE)


def test_other_columns_of_images_and_bytes_are_not_metadata_and_are_said(opened):
    frames = pa.array([[{"bytes": noise(number), "path": None}] for number in range(3)], pa.list_(IMAGE))
    deep = pa.array([{"a": {"b": [b"x"]}, "c": 1}] * 3)
    collection = opened(image_table(3, mask=masks(3), frames=frames, deep=deep, blob=[b"x"] * 3, note=["n"] * 3))
    assert [raw.meta for raw in read_all(collection)] == [{"note": "n", "path": f"{n}.png"} for n in range(3)]
    assert collection.passed_over.to_json() == {
        "images in the column mask (--image-field mask)": 3, "values in the column frames (bytes)": 3,
        "values in the column deep (bytes)": 3, "values in the column blob (bytes)": 3,
    }  # fmt: skip
    assert ", column image" in collection.describe()


def test_the_column_of_images_can_be_chosen(opened):
    table = image_table(2, Mask=masks(2), raw=[noise(7), noise(8)])
    for field, first in (("Mask", 100), ("mask", 100), ("raw", 7), ("image", 0)):
        collection = opened(table, image_field=field)
        assert collection.read(0, 0).data == noise(first)
        assert [raw.data for raw in read_all(open_collection(collection.path))] == [
            raw.data for raw in read_all(collection)
        ]
    with pytest.raises(UsageError, match=r"--image-field left: .* has no such column of images; it has: image, Mask"):
        opened(table, image_field="left")


def test_of_several_columns_none_is_guessed(opened):
    table = image_table(2, left=masks(2), right=masks(2)).drop_columns(["image"])
    with pytest.raises(UsageError, match=r"holds images in 2 columns: left, right\. Give one: --image-field left"):
        opened(table)


def test_sound_is_no_image(opened):
    table = with_features(image_table(2, sound=masks(2)), sound={"_type": "Audio"})
    assert opened(table).passed_over.to_json() == {"values in the column sound (Audio)": 2}


def img2dataset(num_failed: int, **columns: object) -> pa.Table:
    """The table that img2dataset writes with --output_format parquet: rows that failed have no image."""
    rows = [None if number < num_failed else noise(number) for number in range(4)]
    status = ["failed_to_download"] * num_failed + ["success"] * (4 - num_failed)
    there = {"url": [f"http://x/{n}" for n in range(4)], "status": status, "error_message": [None] * 4, "jpg": rows}
    return pa.table({**there, **columns})


def test_rows_that_were_not_downloaded_are_no_failed_images(opened):
    collection = opened(img2dataset(3))
    (raw,) = read_all(collection)
    assert raw.data == noise(3) and raw.key.endswith("/00000003")  # the row's own number
    assert raw.meta == {"url": "http://x/3", "status": "success"}
    assert collection.passed_over.describe() == "not read: 3 rows that were not downloaded (failed_to_download)"
    with pytest.raises(UsageError, match=r"no rows in .*; not read: 4 rows that were not downloaded"):
        opened(img2dataset(4))


def test_rows_without_a_url_are_no_failed_images(opened):
    urls = pa.array([None, "u", None, "u"])
    table = img2dataset(3, url=urls, label=["a", "b", "c", "d"]).drop_columns(["status", "error_message"])
    collection = opened(table)
    assert len(collection) == 2 and collection.keys()[0].endswith("/00000001")
    assert collection.passed_over.to_json() == {"rows that were not downloaded (no url)": 2}
    assert collection.read(0, 1).label == 1 and collection.class_names == ("b", "d")  # of the rows that are read
    with pytest.raises(Exception, match="no bytes in its row"):  # it has a url, so it is a failed image
        collection.read(0, 0)


def test_a_status_of_something_else_is_metadata(opened):
    collection = opened(image_table(2, status=["new", "old"], url=["a", "b"]))
    assert len(collection) == 2 and collection.read(0, 1).meta["status"] == "old"


def test_a_data_set_on_disk(tmp_path):
    tables = [with_features(image_table(3, first=3 * n), label=class_label("a", "b", "c")) for n in range(2)]
    collection = open_collection(save_to_disk(tmp_path / "saved", *tables))
    assert collection.describe() == (
        "6 images, Arrow, 2 files, labels from the column label: 6 of 6 labelled, 3 classes"
    )
    assert not collection.passed_over
    assert keys_of(collection)[4] == "data-00001-of-00002/00000001"
    assert [raw.data for raw in read_all(pickle.loads(pickle.dumps(collection)))] == [noise(n) for n in range(6)]
    (tmp_path / "saved" / "cache-0a1b.arrow").write_bytes(b"x")
    again = open_collection(tmp_path / "saved")
    assert len(again) == 6 and again.passed_over.to_json() == {".arrow": 1}
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ArtefactError, match=r"1 of the 2 files of .* are missing, first data-00001"):
        open_collection(tmp_path / "saved")


def test_splits_on_disk_are_never_mixed(tmp_path):
    for number, split in enumerate(("train", "test")):
        save_to_disk(tmp_path / "saved" / split, image_table(2 + number, first=10 * number))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    train, test = open_collection(tmp_path / "saved"), open_collection(tmp_path / "saved", subset="test")
    assert (len(train), len(test)) == (2, 3) and "test" in train.describe()
    assert len(open_collection(tmp_path / "saved", subset="all")) == 5
    assert keys_of(open_collection(train.path)) == keys_of(train)


def test_tables_that_name_classes_differently_are_not_joined(tmp_path):
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        _parquet(tmp_path / f"{number}.parquet", with_features(image_table(2), label=class_label(*names)))
    with pytest.raises(UsageError, match="its tables name their classes differently: a, b; b, a"):
        open_collection(tmp_path)


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_a_truncated_stream_says_so(tmp_path, cut):
    file = save_to_disk(tmp_path / "saved", image_table(4)) / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[: -cut - 8])  # beyond its end mark
    with pytest.raises(ArtefactError, match=r"data-00000-of-00001\.arrow is truncated or damaged"):
        open_collection(tmp_path / "saved")


def test_a_damaged_schema_is_no_schema(tmp_path):
    for text in (b"{", b"[]", b'{"info": {"features": {"label": 3}}}', b'{"info": 1}'):
        table = image_table(2).replace_schema_metadata({b"huggingface": text})
        assert open_collection(_parquet(tmp_path / "x.parquet", table)).class_names == ()


def test_parquet_reads_a_group_of_rows_at_a_time(tmp_path, monkeypatch):
    collection = open_collection(write_parquet(tmp_path / "x.parquet", 6, text=list("abcdef")))
    read, real = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **how: read.append(a[1]) or real(*a, **how))
    assert [collection.read(0, index).meta["text"] for index in (0, 1, 5)] == ["a", "b", "f"]
    assert read == [0, 2]


@pytest.mark.parametrize("kind", ["list of images", "list of bytes", "struct of images"])
def test_images_within_other_values_are_no_column_to_choose(opened, kind):
    table = image_table(2)
    image = table["image"].to_pylist()
    nested = {
        "list of images": [[each] for each in image],
        "list of bytes": [[each["bytes"]] for each in image],
        "struct of images": [{"left": each} for each in image],
    }[kind]
    with pytest.raises(UsageError, match="has no such column of images; it has: image"):
        opened(table.append_column("views", pa.array(nested)), image_field="views")
