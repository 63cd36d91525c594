"""`dataset.json`, `metadata.csv` and `metadata.jsonl`, however they are written: matched, counted, or refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
from image_files import grey, read_all, write_tar

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import open_collection

NAMES = [f"0000{number % 2}/img{number:05d}.png" for number in range(12)]
CLASSES = [number % 2 for number in range(12)]


def listed(as_name=lambda name: name, as_label=lambda label: label, names=NAMES) -> str:
    return json.dumps({"labels": [[as_name(name), as_label(int(name[4]))] for name in names]})


LISTINGS = {
    "good": listed(),
    "backslash": listed(lambda name: name.replace("/", "\\")),
    "other_extension": listed(lambda name: name.replace(".png", ".jpg")),
    "base_name_only": listed(lambda name: name.split("/")[1]),
    "folder_in_front": listed(lambda name: "data/" + name),
    "dot_slash": listed(lambda name: "./" + name),
    "absolute": listed(lambda name: "/data/ffhq/" + name),
    "string_labels": listed(as_label=str),
    "float_labels": listed(as_label=float),
    "one_hot": listed(as_label=lambda label: [1 - label, label]),
    "list_of_one": listed(as_label=lambda label: [label]),
    "bare_list": json.dumps([[name, int(name[4])] for name in NAMES]),
    "dict": json.dumps({"labels": {name: int(name[4]) for name in NAMES}}),
    "bare_dict": json.dumps({name: int(name[4]) for name in NAMES}),
    "label_key": json.dumps({"label": [[name, int(name[4])] for name in NAMES]}),
    "twice_alike": json.dumps({"labels": [[name, int(name[4])] for name in NAMES * 2]}),
    "bom": "\ufeff" + listed(),
    "names": listed(as_label=lambda label: ["cat", "dog"][label]),
    "huge": listed(as_label=lambda label: 10**12 * label),
}


def as_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def as_zip(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return root / "x.zip"


FORMS = [as_folder, as_zip]


def images(prefix: str = "") -> dict[str, bytes]:
    return {prefix + name: grey(number) for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LISTINGS)
def test_a_listing_however_it_is_written(tmp_path, form, kind):
    for folder in ("", "ffhq/"):  # at the top, or in the folder that the images are in
        files = {**images(folder), folder + "dataset.json": LISTINGS[kind].encode()}
        collection = open_collection(form(tmp_path / (folder or "top"), files))
        assert {raw.key.rpartition("/")[2]: raw.label for raw in read_all(collection)} == {
            name.split("/")[1][:-4]: label for name, label in zip(NAMES, CLASSES, strict=True)
        }
        assert f"labels from {folder}dataset.json: 12 of 12 labelled, 2 classes" in collection.describe()
        assert collection.class_names == {"names": ("cat", "dog"), "huge": ("0", "1000000000000")}.get(kind, ())
        assert pickle.loads(pickle.dumps(collection)).read(0, 1).label is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (listed(lambda name: "x" + name), "names none of its 12 images: the first that it names is 'x00000/img00000"),
        (json.dumps({"labels": [[n, 0] for n in NAMES] + [[n, 1] for n in NAMES]}), "lists 00000/img00000.png twice"),
        (listed(as_label=lambda label: -1 - label), "is -2, and class numbers begin at 0"),
        (listed(as_label=lambda label: [[label]] * 2), "a list of what is not numbers"),
        (listed(as_label=lambda label: {"id": label}), "is {'id': 0}"),
        (listed(as_label=lambda label: ["a", 1][label]), "labels of two kinds"),
        (listed(as_label=lambda label: 10**30), "numbers up to 1,000,000"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused_in_one_line(tmp_path, form, text, said):
    path = form(tmp_path, {**images(), "dataset.json": text.encode()})
    with pytest.raises(UsageError) as raised:
        open_collection(path)
    assert said in str(raised.value) and "--labels none" in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_listed_is_counted(tmp_path):
    def said(text: str) -> str:
        return open_collection(as_folder(tmp_path, {**images(), "dataset.json": text.encode()})).describe()

    assert "6 of 12 labelled (the others have none), 2 classes" in said(listed(names=NAMES[:6]))
    assert "3 of the 15 names in dataset.json are of no image here" in said(
        json.dumps({"labels": [[name, 0] for name in [*NAMES, "a.png", "b.png", "c.png"]]})
    )
    assert "12 names listed twice in dataset.json" in said(LISTINGS["twice_alike"])
    assert said('{"labels": null}').endswith("2 subfolders, dataset.json holds no labels")
    assert said(LISTINGS["one_hot"]).endswith("12 of 12 labelled, 2 classes; read from one-hot vectors")
    for labels in ("none", "folder"):
        assert "labels of dataset.json not used" in open_collection(tmp_path, labels=labels).describe()
    assert "dataset.json holds no labels" in said('{"Labels": []}')
    assert "12 vectors kept as metadata" in said(listed(as_label=lambda label: [0.5, label]))
    assert "12 fractional labels: all are kept as metadata" in said(listed(as_label=lambda label: label + 0.5))


@pytest.mark.parametrize("form", FORMS)
def test_hugging_faces_metadata(tmp_path, form):
    rows = [{"file_name": name, "text": f"nr {number}, so"} for number, name in enumerate(NAMES)]
    jsonl = "\n".join(json.dumps({**row, "label": int(row["file_name"][4])}) for row in rows) + "\n\n"
    table = "".join(f'{row["file_name"]},"{row["text"]}"\r\n' for row in rows)
    files = {
        **images("a/"), **images("b/"), "a/metadata.jsonl": jsonl.encode(),
        "b/metadata.csv": b"\xef\xbb\xbffile_name,text\r\n" + table.encode(),
    }  # fmt: skip
    collection = open_collection(form(tmp_path / "one", files))
    by_key = {raw.key: (raw.label, raw.meta) for raw in read_all(collection)}
    assert by_key["a/00001/img00003"] == (1, {"text": "nr 3, so"})
    assert by_key["b/00001/img00003"] == (None, {"text": "nr 3, so"})
    for said in (
        "labels from a/metadata.jsonl: 12 of 24 labelled (the others have none), 2 classes",
        "metadata of 12 of 12 images from b/metadata.csv",
    ):
        assert said in collection.describe()
    files["b/metadata.csv"] = b"file_name,text,class\n" + table.replace('"\r\n', '",dog\n').encode()
    with pytest.raises(UsageError, match="labels of two kinds"):
        open_collection(form(tmp_path / "two", files))
    del files["a/metadata.jsonl"]
    collection = open_collection(form(tmp_path / "three", files))
    assert collection.class_names == ("dog",)
    assert collection.read(0, 12).label == 0 and collection.read(0, 0).label is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a"}\n{"file_name"', r"metadata\.jsonl is damaged"),
        ("metadata.jsonl", "[1]", "is no object"),
        ("metadata.jsonl", "[" * 100_000, r"metadata\.jsonl is damaged"),
        ("metadata.jsonl", json.dumps({"file_name": NAMES[0]}) + '\n{"label": 1}', "row 2 has no file_name"),
        ("metadata.csv", "\xff", r"metadata\.csv is damaged"),
        ("metadata.csv", "file_name,label\nx.png,1\n", r"metadata\.csv names none of its 12 images"),
        ("dataset.json", '{"labels": {"a.png": 0, "a.png": 1}}', "'a.png' appears twice, with different values"),
        ("dataset.json", listed()[:-2] + ",]}", r"dataset\.json is damaged"),
    ],
)
def test_listings_that_cannot_be_used(tmp_path, name, text, said):
    with pytest.raises(BricsError, match=said):
        open_collection(as_folder(tmp_path, {**images(), name: text.encode("latin-1")}))


def test_a_listing_that_cannot_be_read_is_one_line(tmp_path):
    as_folder(tmp_path, images())
    (tmp_path / "dataset.json").symlink_to("nowhere")
    with pytest.raises(ArtefactError, match=r"its dataset\.json: cannot be read: No such file"):
        open_collection(tmp_path)


def test_metadata_of_something_else_is_passed_over_and_said(tmp_path):
    collection = open_collection(as_folder(tmp_path, {**images(), "metadata.csv": b"epoch,loss\n1,0.5\n"}))
    assert "metadata.csv has no column file_name, and is not read" in collection.describe()
    assert {raw.label for raw in read_all(collection)} == {None}


def test_a_listing_and_files_beside_the_images_add_up(tmp_path):
    files = {**images(), "dataset.json": listed(names=NAMES[:6]).encode(), NAMES[7].replace(".png", ".cls"): b"5"}
    collection = open_collection(as_folder(tmp_path, files))
    assert {raw.key: raw.label for raw in read_all(collection)}["00001/img00007"] == 5
    assert "labels from dataset.json and files beside the images: 7 of 12 labelled" in collection.describe()


def test_a_column_of_boxes_is_no_label(tmp_path):
    rows = [{"file_name": name, "labels": [{"box": [1, 2]}], "class": 3} for name in NAMES]
    files = {**images(), "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    raw = open_collection(as_folder(tmp_path, files)).read(0, 0)
    assert (raw.label, raw.meta) == (3, {"labels": [{"box": [1, 2]}]})


def test_the_deeper_listing_has_the_last_word(tmp_path):
    files = {
        **images("a/"), "dataset.json": json.dumps({"labels": [["a/" + name, 7] for name in NAMES]}).encode(),
        "a/metadata.csv": f"file_name,text,label\n{NAMES[0]},x,3\n{NAMES[1]},y,\n".encode(),
    }  # fmt: skip
    read = {raw.key: (raw.label, raw.meta) for raw in read_all(open_collection(as_folder(tmp_path, files)))}
    assert read["a/00000/img00000"] == (3, {"text": "x"})
    assert read["a/00001/img00001"] == (7, {"text": "y"})
    assert read["a/00000/img00002"] == (7, None)


@pytest.mark.parametrize("kind", ["inside", "beside", "beside two", "beside, one given"])
@pytest.mark.parametrize("name", ["good", "backslash", "base_name_only", "names"])
def test_listings_in_tars_and_beside_them(tmp_path, kind, name):
    images = {each: grey(number) for number, each in enumerate(NAMES)}
    inside = {"dataset.json": LISTINGS[name].encode()} if kind == "inside" else {}
    two = kind == "beside two"
    write_tar(tmp_path / "a.tar", [*list(images.items())[: 6 if two else 12], *inside.items()])
    if two:
        write_tar(tmp_path / "b.tar", list(images.items())[6:])
    if not inside:
        (tmp_path / "dataset.json").write_text(LISTINGS[name])
    path = tmp_path / "a.tar" if "given" in kind else tmp_path
    collection = open_collection(path)
    assert [raw.label for raw in read_all(collection)] == CLASSES
    assert "12 of 12 labelled, 2 classes" in collection.describe() and not collection.passed_over
    assert collection.class_names == (("cat", "dog") if name == "names" else ())
    if not inside:
        before = collection.fingerprint
        (tmp_path / "dataset.json").write_text(LISTINGS["names"].replace("dog", "cow"))
        assert open_collection(path).fingerprint == before  # of the images, which are the same
        assert open_collection(path).class_names == ("cat", "cow")


def test_a_listing_beside_tars_that_names_none_of_their_images_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", grey())])
    (tmp_path / "dataset.json").write_text(LISTINGS["good"])
    with pytest.raises(UsageError, match=r"dataset\.json names none of its 1 image.*--labels none") as caught:
        open_collection(tmp_path)
    assert "\n" not in str(caught.value)
    assert "labels of dataset.json not used" in open_collection(tmp_path, labels="none").describe()


def test_metadata_in_tars_of_image_folders(tmp_path):
    metadata = b"file_name,text\na.png,a cat\nb.png,a dog\n"
    write_tar(tmp_path / "a.tar", [("d/a.png", grey()), ("d/b.png", grey(1)), ("d/metadata.csv", metadata)])
    assert [raw.meta for raw in read_all(open_collection(tmp_path))] == [{"text": "a cat"}, {"text": "a dog"}]
