"""Labels and metadata: dataset.json, folders as classes, and sidecars of any content."""

from __future__ import annotations

import json
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import grey, read_all, write_tar
from table_files import write_parquet

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images import annotations, open_collection
from brics_cli.images.annotations import Annotations
from brics_cli.images.labels import MAX_CLASSES


@pytest.mark.parametrize(
    ("sidecars", "expected"),
    [
        ([], (None, None)),
        ([("cls", b"7\n")], (7, None)),
        ([("cls", b"-1")], (None, None)),  # as stores write it: no label
        ([("cls", b"0.5")], (None, {"label_value": 0.5})),
        ([("cls", b"tabby")], (0, None)),
        ([("cls", b"9" * 18)], (0, None)),
        ([("cls", b"1" * 5000)], (None, {"label_value": "1" * 5000})),
        ([("cls", "²".encode())], (0, None)),
        ([("cls", b"")], (None, None)),
        ([("json", b'{"a": 1}'), ("txt", b"a cat")], (None, {"a": 1, "txt": "a cat"})),
        ([("json", b'{"label": 3}')], (3, {"label": 3})),
        ([("json", b'{"class_name": "cat"}')], (0, {"class_name": "cat"})),
        ([("json", b'{"label": 3}'), ("cls", b"5")], (5, {"label": 3})),
        ([("json", b'{"label": null, "class": 2}')], (2, {"label": None, "class": 2})),
        ([("json", b'{"label": {"id": 3}, "class": 2}')], (2, {"label": {"id": 3}, "class": 2})),
        ([("json", b'{"labels": ["a", "b"]}')], (None, {"labels": ["a", "b"]})),
        ([("json", b"[1, 2]")], (None, {"json": [1, 2]})),
        ([("json", b"{broken")], (None, {"json": "{broken"})),
        ([("json", b"[" * 100_000)], (None, {"json": "[" * 100_000})),
        ([("json", rb'{"lone": "\ud800"}')], (None, {"lone": "?"})),
        ([("txt", b"\xff\xfe")], (None, {"txt": "\ufffd\ufffd"})),
    ],
)
def test_sidecars(sidecars, expected):
    assert annotated(sidecars).of(0, sidecars) == expected


def annotated(sidecars):
    return Annotations(["a.png"], where="a tar", sidecars=[0], texts=lambda image: sidecars)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["cls", "json", "txt"]), st.binary(max_size=60)), max_size=3))
def test_whatever_a_sidecar_holds_can_be_stored(sidecars):
    try:
        label, meta = annotated(sidecars).of(0, sidecars)
    except UsageError as error:
        assert "--labels none" in str(error)
        label, meta = Annotations(["a.png"], where="a tar", labels=False).of(0, sidecars)
        assert label is None
    assert label is None or 0 <= label < MAX_CLASSES
    json.dumps(meta, ensure_ascii=False).encode()  # what shards and stores do


@pytest.mark.parametrize("num", [3, 30])
def test_of_many_sidecars_a_few_are_looked_at_unless_they_are_names(num, monkeypatch):
    monkeypatch.setattr(annotations, "ALL_READ", 10)
    monkeypatch.setattr(annotations, "NUM_LOOKED_AT", 5)

    def of(labels):
        read = []
        texts = lambda image: read.append(image) or [("cls", labels[image])]  # noqa: E731
        made = Annotations([f"{i}.png" for i in range(num)], where="a tar", sidecars=range(num), texts=texts)
        return made, read

    made, read = of([str(image % 7).encode() for image in range(num)])
    assert len(read) == (3 if num == 3 else 5)
    assert [made.of(image, [("cls", b"6")])[0] for image in range(num)] == ([0, 1, 2] if num == 3 else [6] * num)
    assert f"of {num} " in made.said
    made, read = of([b"ab"[image % 2 :][:1] for image in range(num)])
    assert set(read) == set(range(num)) and made.class_names == ("a", "b")
    assert [made.of(image, [])[0] for image in range(num)] == [image % 2 for image in range(num)]


@pytest.fixture
def folder(tmp_path):
    for name in ("cats/a.png", "cats/deep/b.png", "dogs/a.png", "c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(grey())
    return tmp_path


def test_top_level_folders_are_not_classes_unless_asked(folder):
    assert {raw.label for raw in read_all(open_collection(folder))} == {None}
    asked = open_collection(folder, labels="folder")
    assert {raw.key: (raw.label, raw.meta) for raw in read_all(asked)} == {
        "c": (None, None),
        "cats/a": (0, {"class": "cats"}),
        "cats/deep/b": (0, {"class": "cats"}),
        "dogs/a": (1, {"class": "dogs"}),
    }
    assert asked.describe().endswith("2 folders as classes, 1 of 4 images in none")


def test_folders_are_classes_in_every_form_that_has_them(folder):
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    write_tar(folder.parent / "x.tar", [(name, grey()) for name in names])
    with zipfile.ZipFile(folder.parent / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, grey())
    expected = {raw.key: (raw.label, raw.meta) for raw in read_all(open_collection(folder, labels="folder"))}
    for name, prefix in (("x.tar", "x/"), ("x.zip", "")):
        found = read_all(open_collection(folder.parent / name, labels="folder"))
        assert {raw.key.removeprefix(prefix): (raw.label, raw.meta) for raw in found} == expected


def test_folders_as_classes_need_folders(tmp_path):
    write_parquet(tmp_path / "x.parquet", 2)
    with pytest.raises(UsageError, match="--labels folder goes with folders, tars and zips of images, not with parq"):
        open_collection(tmp_path / "x.parquet", labels="folder")


def test_ffhq_layout_has_no_classes(tmp_path):
    for number in (0, 1, 1000):
        path = tmp_path / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(grey())
    (tmp_path / "LICENSE.txt").write_text("CC")
    collection = open_collection(tmp_path)
    assert collection.describe() == "3 images, folder with 2 subfolders in FFHQ's layout"
    assert [(raw.key, raw.label) for raw in read_all(collection)] == [
        ("00000/00000", None), ("00000/00001", None), ("01000/01000", None),
    ]  # fmt: skip


def test_a_folder_with_dataset_json_and_sidecars(folder):
    before = open_collection(folder).layout
    listing = {"labels": [["cats/a.png", 4], ["c.png", [0.5, 1.5]], ["dogs/a.png", None]]}
    (folder / "dataset.json").write_text(json.dumps(listing))
    (folder / "cats" / "a.txt").write_text("a cat")
    (folder / "dogs" / "a.cls").write_text("9")
    collection = open_collection(folder)
    assert {raw.key: (raw.label, raw.meta) for raw in read_all(collection)} == {
        "c": (None, {"label_vector": [0.5, 1.5]}),
        "cats/a": (4, {"txt": "a cat"}),
        "cats/deep/b": (None, None),
        "dogs/a": (9, None),
    }
    assert collection.layout != before
    assert "labels from dataset.json" in collection.describe()


@pytest.mark.parametrize("text", ["{", '{"labels": [["a.png"]]}', '{"labels": 5}', '{"labels": [1, 2]}', "\xff"])
def test_a_damaged_dataset_json_says_so(folder, text):
    (folder / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtefactError, match=r"dataset\.json is damaged"):
        open_collection(folder)


def test_a_link_to_nothing_is_a_failure_not_an_absence(folder):
    (folder / "z.png").symlink_to("gone.png")
    collection = open_collection(folder)
    assert len(collection) == 5
    with pytest.raises(Exception, match="cannot be read: No such file"):
        collection.read(0, 4)


@pytest.mark.parametrize(("cls", "said"), [(b"1", True), (b"0", False), (b"", False), (b"-1", True)])
def test_labels_beside_images_that_a_listing_labels_otherwise_are_said(tmp_path, cls, said):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(grey(1))
        (tmp_path / f"{name}.cls").write_bytes(cls)
    (tmp_path / "dataset.json").write_text('{"labels": [["a.png", 0], ["b.png", 0]]}')
    collection = open_collection(tmp_path)
    assert [image.label for image in read_all(collection)] == [0, 0]
    assert ("labels of files beside the images that are listed are not used" in collection.describe()) == said


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("image", ["{}.png", "{}.image.png"])
@pytest.mark.parametrize(
    ("field", "texts", "labels"),
    [
        ("label.cls", ["3", "5", "3"], [3, 5, 3]),
        ("class.cls", ["3", "5", "3"], [3, 5, 3]),
        ("label.txt", ["cat", "dog", "cat"], [0, 1, 0]),
        ("class_name.txt", ["cat", "dog", "cat"], [0, 1, 0]),
        ("LABEL.TXT", ["1", "0", "1"], [1, 0, 1]),
        ("label.json", ["1", "0", "1"], [1, 0, 1]),
        ("label.json", ['{"label": 1}', '{"label": 0}', '{"label": 1}'], [1, 0, 1]),
    ],
)
def test_labels_in_fields_of_two_parts(tmp_path, form, image, field, texts, labels):
    members = {image.format(number): grey(number) for number in range(3)}
    members |= {f"{number}.{field}": text.encode() for number, text in enumerate(texts)}
    collection = open_collection(container(tmp_path, form, members))
    assert [raw.label for raw in read_all(collection)] == labels
    assert not collection.passed_over and "3 of 3 labelled" in collection.describe()


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_other_fields_of_two_parts_are_said(tmp_path, form):
    members = {"0.png": grey(), "0.caption.txt": b"a cat", "0.meta.json": b"{}", "1.label.cls": b"1"}
    collection = open_collection(container(tmp_path, form, members))
    assert collection.passed_over.to_json() == {".txt": 1, ".json": 1, ".cls": 1}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("num_png", [1, 2, 11])
def test_labels_of_fields_that_mix_extensions(tmp_path, form, num_png):
    """`000.image.jpg` and `001.image.png` are one field in this, however few there are of either."""
    members = {f"{n:03d}.image.{'png' if n < num_png else 'jpg'}": grey(n) for n in range(12)}
    members |= {f"{n:03d}.cls": str(n % 3).encode() for n in range(12)}
    collection = open_collection(container(tmp_path, form, members))
    assert [raw.label for raw in read_all(collection)] == [n % 3 for n in range(12)]
    assert not collection.passed_over and next(iter(collection.keys())).endswith("000")


def container(root, form, members):
    if form == "tar":
        return write_tar(root / "x.tar", members.items())
    if form == "zip":
        with zipfile.ZipFile(root / "x.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return root / "x.zip"
    for name, data in members.items():
        (root / "x").mkdir(exist_ok=True)
        (root / "x" / name).write_bytes(data)
    return root / "x"
