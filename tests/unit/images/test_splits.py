"""Training and validation images are never mixed, in any form; what only looks like a split is left alone."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from image_files import grey, keys_of, read_all, write_tar
from table_files import write_parquet

from brics_cli.errors import UsageError
from brics_cli.images import open_collection
from brics_cli.images.opening import collection_exists, subset_path
from brics_cli.images.splits import split_of

FORMS = ("folder", "zip", "tar", "two tars")


def write(form: str, root: Path, names: Sequence[str]) -> Path:
    """The images `names`, each of its own grey, as a collection of that form."""
    images = [(name, grey(number)) for number, name in enumerate(names)]
    if form == "folder":
        for name, data in images:
            (root / "f" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "f" / name).write_bytes(data)
        return root / "f"
    if form == "zip":
        with zipfile.ZipFile(root / "f.zip", "w") as archive:
            for name, data in images:
                archive.writestr(name, data)
        return root / "f.zip"
    if form == "tar":
        return write_tar(root / "f.tar", images)
    write_tar(root / "f" / "0.tar", images[::2])  # shards that each hold some of every split
    write_tar(root / "f" / "1.tar", images[1::2])
    return root / "f"


def data_of(collection) -> set[bytes]:
    return {raw.data for raw in read_all(collection)}


IMAGENET = [f"{split}/n{folder}/{number}.png" for split in ("train", "val") for folder in (1, 2) for number in (0, 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("above", ["", "imagenet/", "ILSVRC/Data/CLS-LOC/"])
@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "Validation"), ("train2017", "held-out")])
def test_of_folders_that_are_splits_the_training_one_is_taken(tmp_path, form, above, train, val):
    renamed = [above + name.replace("train/", f"{train}/").replace("val/", f"{val}/") for name in IMAGENET]
    path = write(form, tmp_path, [*renamed, f"{above}logo.png"])
    taken = open_collection(path)
    assert data_of(taken) == {grey(number) for number in range(4)}
    assert taken.describe().endswith(
        f"(the only one for training; also there: {val} (4 images); 1 image in none of them; --subset takes another)"
    )
    held_out = open_collection(path, subset=val)
    assert data_of(held_out) == {grey(number) for number in range(4, 8)} and taken.fingerprint != held_out.fingerprint
    assert len(open_collection(path, subset="all")) == 9
    # what is recorded as its path opens the same again
    for collection in (taken, held_out, open_collection(path, subset="all")):
        assert collection_exists(collection.path)
        again = open_collection(collection.path)
        assert keys_of(again) == keys_of(collection) and again.fingerprint == collection.fingerprint
    assert data_of(open_collection(subset_path(path, val))) == data_of(held_out)


@pytest.mark.parametrize("form", FORMS)
def test_classes_are_the_folders_below_the_split(tmp_path, form):
    labelled = read_all(open_collection(write(form, tmp_path, IMAGENET), labels="folder"))
    assert sorted((raw.label, raw.meta["class"]) for raw in labelled) == [(0, "n1")] * 2 + [(1, "n2")] * 2


@pytest.mark.parametrize("form", FORMS)
def test_splits_below_several_folders(tmp_path, form):
    """As in MVTec AD: every object has its own train and test."""
    names = [f"{thing}/{split}/{number}.png" for thing in ("bottle", "cable") for split in ("train", "test")
             for number in (0, 1)]  # fmt: skip
    path = write(form, tmp_path, names)
    collection = open_collection(path)
    assert data_of(collection) == {grey(number) for number in (0, 1, 4, 5)}
    assert data_of(open_collection(collection.path)) == data_of(collection)
    assert data_of(open_collection(path, subset="test")) == {grey(number) for number in (2, 3, 6, 7)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "folders",
    [("val", "test"), ("train2014", "train2017", "val2014"), ("trainA", "trainB", "testA", "testB"),
     ("train", "test", "ground_truth"), ("left", "right")],
)  # fmt: skip
def test_where_it_is_not_clear_they_are_listed_with_their_numbers(tmp_path, form, folders):
    path = write(form, tmp_path, [f"{folder}/{number}.png" for folder in folders for number in (0, 1)])
    with pytest.raises(UsageError) as raised:
        open_collection(path)
    assert all(f"{folder} (2 images)" in str(raised.value) for folder in folders)
    assert f"--subset {folders[0]}" in str(raised.value) or "--subset" in str(raised.value)
    for folder in folders:
        assert len(open_collection(path, subset=folder)) == 2
    assert len(open_collection(path, subset="all")) == 2 * len(folders)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [
        ["cat/0.png", "dog/0.png", "test/0.png"],  # a class of that name
        ["bullet_train/0.png", "steam_locomotive/0.png", "test_tube/0.png", "valley/0.png"],
        ["train_001.png", "test_001.png", "val_3.png"],  # photographs, of steam trains and others
        ["dataset/trainers/0.png", "dataset/validators/0.png"],
        ["train/0.png", "train/1.png"],
        ["train/0.png", "bus/0.png", "car/0.png"],
        ["00000/img0.png", "00001/img1.png"],
    ],
)
def test_what_only_looks_like_a_split_is_read_as_a_whole(tmp_path, form, names):
    collection = open_collection(write(form, tmp_path, names))
    assert len(collection) == len(names) and collection.note == ""


@pytest.mark.parametrize("form", FORMS)
def test_images_beside_masks(tmp_path, form):
    path = write(form, tmp_path, [f"{part}/{number}.png" for part in ("images", "masks") for number in (0, 1)])
    collection = open_collection(path)
    assert data_of(collection) == {grey(0), grey(1)}
    assert "the only one of images; also there: masks (2 images)" in collection.describe()


@pytest.mark.parametrize(
    ("train", "val", "other"),
    [
        ("train-{:06d}.tar", "val-{:06d}.tar", None),
        ("train{:04d}.tar", "valid{:04d}.tar", "extra-{:04d}.tar"),
        ("imagenet-train-{:06d}.tar", "imagenet-validation-{:06d}.tar", None),
        ("{:05d}-training.tar.gz", "{:05d}_dev.tar", None),
        ("x_train_{:02d}.tar", "x_heldout_{:02d}.tar", "notes-{:02d}.tar"),
    ],
)
def test_shards_whose_names_are_splits(tmp_path, train, val, other):
    for number in range(2):
        write_tar(tmp_path / train.format(number), [("a.png", grey(number))])
        write_tar(tmp_path / val.format(number), [("a.png", grey(10 + number))])
        if other is not None:
            write_tar(tmp_path / other.format(number), [("a.png", grey(20 + number))])
    collection = open_collection(tmp_path)
    assert data_of(collection) == {grey(0), grey(1)}
    assert "the only one for training; also there: " in collection.describe() and "(2 files)" in collection.describe()
    assert ("; 2 files in none of them" in collection.describe()) == (other == "notes-{:02d}.tar")
    assert ("extra (2 files)" in collection.describe()) == (other == "extra-{:04d}.tar")
    assert keys_of(open_collection(collection.path)) == keys_of(collection)
    held_out = open_collection(tmp_path, subset="heldout" if "heldout" in val else "val")
    assert data_of(held_out) == {grey(10), grey(11)}
    assert len(open_collection(tmp_path, subset="all")) == (4 if other is None else 6)


@pytest.mark.parametrize("pattern", ["{train,val}-{000..001}.tar", "{train,val}/{000..001}.tar"])
def test_patterns_of_both_splits(tmp_path, pattern):
    for split, first in (("train", 0), ("val", 10)):
        for number in range(2):
            separator = "/" if "/" in pattern else "-"
            write_tar(tmp_path / f"{split}{separator}{number:03d}.tar", [("a.png", grey(first + number))])
    path = f"{tmp_path}/{pattern}"
    collection = open_collection(path)
    assert data_of(collection) == {grey(0), grey(1)} and "also there: val (2 files)" in collection.describe()
    assert data_of(open_collection(path, subset="val")) == {grey(10), grey(11)}
    assert data_of(open_collection(collection.path)) == data_of(collection)
    assert len(open_collection(path, subset="all")) == len(open_collection(f"{path}/all")) == 4


def test_shards_of_one_split_or_of_none_are_one_collection(tmp_path):
    for name in ("train-000.tar", "train-001.tar", "steam-002.tar"):
        write_tar(tmp_path / name, [("a.png", grey())])
    assert len(open_collection(tmp_path)) == 3


@pytest.mark.parametrize("names", [("train.parquet", "test.parquet"), ("cifar-train.parquet", "cifar-test.parquet")])
def test_tables_whose_names_are_splits(tmp_path, names):
    for number, name in enumerate(names):
        write_parquet(tmp_path / name, 2 + number)
    assert len(open_collection(tmp_path)) == 2 and "also there: test" in open_collection(tmp_path).describe()
    assert len(open_collection(tmp_path, subset="test")) == 3 and len(open_collection(tmp_path, subset="all")) == 5
    for collection in (open_collection(tmp_path), open_collection(tmp_path, subset="all")):
        assert len(open_collection(collection.path)) == len(collection)


def test_zips_and_folders_of_shards_beside_each_other(tmp_path):
    (tmp_path / "zips").mkdir()
    for number, split in enumerate(("train", "val")):
        write("zip", tmp_path, [f"{n}.png" for n in range(1 + number)]).rename(tmp_path / "zips" / f"x_{split}.zip")
        write_tar(tmp_path / "tars" / split / "0.tar", [(f"{n}.png", grey()) for n in range(1 + number)])
    for root in (tmp_path / "zips", tmp_path / "tars"):
        assert len(open_collection(root)) == 1 and "only one for training; also there:" in open_collection(root).note
        assert len(open_collection(root, subset="val")) == 2
    assert len(open_collection(tmp_path / "tars", subset="all")) == 3
    with pytest.raises(UsageError, match="no subset or folder 'all'"):
        open_collection(tmp_path / "zips", subset="all")


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_in_an_archive_can_be_chosen_and_a_wrong_name_lists_what_is_there(tmp_path, form):
    path = write(form, tmp_path, ["cat/0.png", "dog/0.png", "dog/1.png"])
    assert data_of(open_collection(path, subset="dog")) == {grey(1), grey(2)}
    with pytest.raises(UsageError, match=r"no subset or folder 'cow' in .*cat \(1 image\), dog \(2 images\)"):
        open_collection(path, subset="cow")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("TRAINING", "train"), ("x_train_lmdb", "train"), ("train2017", "train"),
        ("trainA", "train"), ("imagenet-train-000012", "train"), ("trainval", "train"), ("val", "val"),
        ("dev-00", "val"), ("held_out", "heldout"), ("testing", "test"), ("eval", "eval"), ("train_val", None),
        ("trainers", None), ("training-test", None), ("steam", None), ("valley", None), ("latest", None), ("", None),
        ("contest", None), ("developers", None),
    ],
)  # fmt: skip
def test_the_words_of_a_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["{split}/{part}/{number}.png", "{part}/{split}/{number}.png"])
def test_splits_of_images_beside_masks(tmp_path, form, layout):
    names = [
        layout.format(split=split, part=part, number=number)
        for split in ("train", "val")
        for part in ("images", "masks")
        for number in (0, 1)
    ]
    path = write(form, tmp_path, names)
    collection = open_collection(path)
    assert data_of(collection) == {grey(0), grey(1)} and collection.note.count("also there: ") == 2
    masks = open_collection(path, subset="masks/val")
    assert data_of(masks) == {grey(6), grey(7)}
    assert data_of(open_collection(path, subset="val")) == {grey(4), grey(5)}
    for each in (collection, masks):
        assert keys_of(open_collection(each.path)) == keys_of(each) and collection_exists(each.path)


@pytest.mark.parametrize("form", FORMS)
def test_classes_are_below_the_splits_when_all_are_taken_and_a_class_of_a_split_can_be_chosen(tmp_path, form):
    path = write(form, tmp_path, IMAGENET)
    everything = open_collection(path, subset="all", labels="folder")
    assert everything.class_names == ("n1", "n2") and len(everything) == 8
    of_class = open_collection(path, subset="train/n2" if form == "folder" else "n2")
    assert data_of(of_class) == {grey(2), grey(3)}
    assert keys_of(open_collection(of_class.path)) == keys_of(of_class)
    with pytest.raises(UsageError, match=r"no subset or folder 'n3' in .*n1 \(2 images\), n2 \(2 images\)"):
        open_collection(path, subset="n3")


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("options", [{"subset": "val"}, {"subset": "all"}, {"image_field": "png"}, {}])
def test_what_is_chosen_is_known_by_its_content(tmp_path, form, options):
    """Its files are found for the fingerprint, whatever stands at the end of its path."""
    path = write(form, tmp_path, [*IMAGENET, *(f"{split}/n1/0.seg.png" for split in ("train", "val"))])
    if "image_field" not in options:
        options = {**options, "image_field": "png"}
    collection = open_collection(path, **options)
    files = {Path(file) for shard in range(len(collection.shards)) for file in collection.files(shard)}
    assert files and all(file.is_file() for file in files)
    assert len(collection.fingerprint) == 64 and open_collection(path, **options).fingerprint == collection.fingerprint


SPLITS = [f"{split}/{number}.png" for split in ("train", "val") for number in range(3)]


def write_listed(form: str, root: Path, *, listed: str) -> Path:
    """Images of two splits, with the same names in both, and one listing above that labels them 0 to 5."""
    path = write(form, root, SPLITS)
    pairs = [[listed.format(name=name), number] for number, name in enumerate(SPLITS)]
    text = json.dumps({"labels": pairs})
    if form == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("dataset.json", text)
    else:
        (path / "dataset.json").write_text(text)
    return path


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("listed", ["{name}", "./{name}", "data\\{name}"])
@pytest.mark.parametrize(("split", "labels"), [(None, [0, 1, 2]), ("train", [0, 1, 2]), ("val", [3, 4, 5])])
def test_one_listing_above_all_splits_labels_each(tmp_path, form, listed, split, labels):
    path = write_listed(form, tmp_path, listed=listed)
    for collection in (open_collection(path, subset=split), open_collection(path / (split or "train"))):
        assert [image.label for image in read_all(collection)] == labels
        assert "3 of 3 labelled" in collection.describe() and "twice" not in collection.describe()
        assert [image.label for image in read_all(open_collection(collection.path))] == labels


@pytest.mark.parametrize("below", ["", "train", "val"])
def test_a_listing_above_a_split_is_a_file_of_the_collection(tmp_path, below):
    """By which a change of it is seen."""
    path = write_listed("folder", tmp_path, listed="{name}")
    assert str(path / "dataset.json") in set(open_collection(path / below).files(0))


def test_a_listing_above_that_cannot_be_read_is_said(tmp_path):
    path = write("folder", tmp_path, SPLITS)
    (path / "dataset.json").write_text('{"labels": [["train/0.png"')
    assert "dataset.json of the folder above cannot be read" in open_collection(path / "train").describe()


@pytest.mark.parametrize("pattern", ["f/*.tar", "f/[01].tar", "*/*.tar", "f/?.tar", "{f,g}/*.tar"])
def test_a_shell_pattern_of_tars_is_one_of_files(tmp_path, monkeypatch, pattern):
    write("two tars", tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    if "g" in pattern:
        write_tar(tmp_path / "g" / "2.tar", [("4.png", grey(4))])
    monkeypatch.chdir(tmp_path)
    collection = open_collection(pattern)
    assert len(collection) == 4 + ("g" in pattern)
    assert keys_of(open_collection(collection.path)) == keys_of(collection)


def test_a_shell_pattern_never_mixes_splits_and_says_when_it_fits_nothing(tmp_path):
    for number, name in enumerate(["train-0", "train-1", "val-0"]):
        write_tar(tmp_path / f"{name}.tar", [(f"{number}.png", grey(number))])
    assert data_of(open_collection(f"{tmp_path}/*.tar")) == {grey(0), grey(1)}
    assert data_of(open_collection(f"{tmp_path}/*.tar", subset="val")) == {grey(2)}
    assert data_of(open_collection(f"{tmp_path}/*.tar/val")) == {grey(2)}
    with pytest.raises(UsageError, match="no file is named like"):
        open_collection(f"{tmp_path}/test-*.tar")


@pytest.mark.parametrize("form", FORMS)
def test_images_in_no_folder_of_a_class_are_counted(tmp_path, form):
    collection = open_collection(write(form, tmp_path, ["cat/0.png", "dog/1.png", "2.png", "3.png"]), labels="folder")
    assert sorted(str(image.label) for image in read_all(collection)) == ["0", "1", "None", "None"]
    assert "classes, 2 of 4 images in none" in collection.describe()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extra", ["extra", "unlabeled", "Extra", "unlabeled2017", "unlabelled_images"])
@pytest.mark.parametrize("others", [(), ("test",)])
def test_the_training_folder_beside_extra_ones_is_taken(tmp_path, form, extra, others):
    path = write(form, tmp_path, [f"{part}/{number}.png" for part in ("train", extra, *others) for number in (0, 1)])
    collection = open_collection(path)
    assert data_of(collection) == {grey(0), grey(1)}
    assert "the only one for training; also there: " in collection.describe()
    assert f"{extra} (2 images)" in collection.describe()
    assert data_of(open_collection(path, subset=extra)) == {grey(2), grey(3)}
    assert len(open_collection(path, subset="all")) == 2 * (2 + len(others))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [("train", "train_extra"), ("test", "extra")])
def test_extra_folders_that_leave_it_unclear_are_asked_about(tmp_path, form, parts):
    path = write(form, tmp_path, [f"{part}/{number}.png" for part in parts for number in (0, 1)])
    with pytest.raises(UsageError, match=rf"{parts[0]} \(2 images\), {parts[1]} \(2 images\)|{parts[1]} .*{parts[0]} "):
        open_collection(path)
    assert data_of(open_collection(path, subset=parts[0])) == {grey(0), grey(1)}
    assert data_of(open_collection(path, subset=parts[1])) == {grey(2), grey(3)}


@pytest.mark.parametrize("extra", ["extra-{:04d}.tar", "unlabeled_{:02d}.tar", "extra/{:04d}.tar"])
def test_shards_for_training_beside_extra_ones(tmp_path, extra):
    for number in range(2):
        write_tar(tmp_path / f"train-{number:04d}.tar", [("a.png", grey(number))])
        write_tar(tmp_path / extra.format(number), [("a.png", grey(10 + number))])
    others = extra.replace("{:04d}", "{0000..0001}").replace("{:02d}", "{00..01}")
    pattern = f"{tmp_path}/{{train-{{0000..0001}}.tar,{others}}}"
    collection = open_collection(pattern)
    assert data_of(collection) == {grey(0), grey(1)} and "(2 files)" in collection.describe()
    assert data_of(open_collection(pattern, subset="extra" if "extra" in extra else "unlabeled")) == {
        grey(10),
        grey(11),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", [["train/0.png", "extra_large/0.png"], ["extra/0.png", "unlabeled/0.png"]])
def test_extra_alone_or_in_the_name_of_a_class_says_nothing(tmp_path, form, names):
    collection = open_collection(write(form, tmp_path, names))
    assert len(collection) == 2 and collection.note == ""
