"""Samples of several images, and keys: WebDataset's rule where it is meant, our own names where it is not."""

from __future__ import annotations

import json
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import grey, keys_of, read_all, write_tar

from brics_cli.errors import UsageError
from brics_cli.images import open_collection
from brics_cli.images.fields import Fields, survey
from brics_cli.images.opening import collection_exists

FORMS = ("folder", "zip", "tar", "two tars")
NUM = 6


def members_of(*fields: str, num: int = NUM) -> list[tuple[str, bytes]]:
    """`num` samples of these fields: images of greys that tell them apart, classes, or JSON."""
    content = {"cls": lambda number, place: str(number % 3).encode(), "json": lambda number, place: b'{"n": 1}'}
    image = lambda number, place: grey(10 * number + place)  # noqa: E731
    return [
        (f"{number:06d}.{field}", content.get(field, image)(number, place))
        for number in range(num)
        for place, field in enumerate(fields)
    ]


def write(form: str, root: Path, members: list[tuple[str, bytes]]) -> Path:
    if form == "folder":
        for name, data in members:
            (root / "f" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "f" / name).write_bytes(data)
        return root / "f"
    if form == "zip":
        with zipfile.ZipFile(root / "f.zip", "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
        return root / "f.zip"
    if form == "tar":
        return write_tar(root / "f.tar", members)
    half = len(members) // 2
    write_tar(root / "f" / "0.tar", members[:half])
    write_tar(root / "f" / "1.tar", members[half:])
    return root / "f"


def by_webdataset(tars: list[Path], field: str) -> list[tuple[str, bytes, bytes | None]]:
    """(key, image, class) of every sample, as webdataset itself reads them."""
    samples = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)
    return [(sample["__key__"], sample[field], sample.get("cls")) for sample in samples]


def by_brics(path: Path, **options: str) -> list[tuple[str, bytes, bytes | None]]:
    return [
        (raw.key.partition("/")[2], raw.data, None if raw.label is None else str(raw.label).encode())
        for raw in read_all(open_collection(path, **options))
    ]


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        (("cls", "image.png", "json"), None),
        (("cls", "png"), None),
        (("image.png",), None),
        (("cls", "png", "seg.png"), "png"),
        (("cls", "png", "seg.png"), "seg.png"),
        (("left.png", "right.png", "cls"), "right.png"),
        (("jpg", "png", "cls"), "jpg"),
        (("cls", "rgb.view.png", "depth.view.png"), "rgb.view.png"),
        (("left.png", "left.json", "right.png", "right.json", "cls"), "left.png"),
    ],
)
@pytest.mark.parametrize("form", ["tar", "two tars"])
def test_tars_read_as_webdataset_reads_them(tmp_path, fields, chosen, form):
    path = write(form, tmp_path, members_of(*fields))
    tars = [path] if form == "tar" else sorted(path.iterdir())
    field = chosen or next(field for field in fields if field.endswith("png"))
    options = {} if chosen is None else {"image_field": chosen}
    assert by_brics(path, **options) == by_webdataset(tars, field)


@pytest.mark.parametrize("form", FORMS)
def test_several_images_are_listed_and_asked_for(tmp_path, form):
    path = write(form, tmp_path, members_of("cls", "png", "seg.png"))
    with pytest.raises(
        UsageError,
        match=r"samples of several images each: png \(6\), seg\.png \(6\).*--image-field png",
    ) as caught:
        open_collection(path)
    assert "1 tar file" not in str(caught.value)
    with pytest.raises(UsageError, match=r"no images 'mask\.png'; there are: png \(6\), seg\.png \(6\)"):
        open_collection(path, image_field="mask.png")
    chosen = open_collection(path, image_field="png")
    assert [raw.data for raw in read_all(chosen)] == [grey(10 * number + 1) for number in range(NUM)]
    assert [raw.label for raw in read_all(chosen)] == [number % 3 for number in range(NUM)]
    assert chosen.passed_over.to_json() == {"images seg.png (--image-field)": NUM}
    masks = open_collection(path, image_field=".SEG.png")
    assert [raw.label for raw in read_all(masks)] == [number % 3 for number in range(NUM)]
    assert masks.fingerprint != chosen.fingerprint
    everything = open_collection(path, image_field="all")
    assert len(everything) == 2 * NUM
    for collection in (chosen, masks, everything):  # what is recorded as its path opens the same again
        assert collection_exists(collection.path)
        assert [raw.data for raw in read_all(open_collection(collection.path))] == [
            raw.data for raw in read_all(collection)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_two_parts_keep_their_labels(tmp_path, form):
    path = write(form, tmp_path, members_of("cls", "image.png", "json"))
    read = read_all(open_collection(path))
    assert [(raw.label, raw.meta) for raw in read] == [(number % 3, {"n": 1}) for number in range(NUM)]
    assert [raw.key.rpartition("/")[2] for raw in read] == [f"{number:06d}" for number in range(NUM)]
    assert not open_collection(path).passed_over


@pytest.mark.parametrize("form", FORMS)
def test_interleaved_members_are_one_sample_all_the_same(tmp_path, form):
    path = write(
        "tar" if "tar" in form else form, tmp_path, sorted(members_of("cls", "image.png"), key=lambda m: m[0][-3:])
    )
    assert [raw.label for raw in read_all(open_collection(path))] == [number % 3 for number in range(NUM)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "stems",
    [
        ["v1.0", "v1.1", "v2.0", "v2.1"],
        ["my.photo.1", "my.photo.2", "your.photo.1"],
        ["alice.smith", "bob.jones", "carol.jones"],
        ["2020.01.01", "2020.01.02"],
        ["a.1080p", "b.720p", "b.1080p"],
    ],
)
@pytest.mark.parametrize("with_class", [True, False])
def test_names_with_dots_keep_them(tmp_path, form, stems, with_class):
    members = [(f"{stem}.png", grey(number)) for number, stem in enumerate(stems)]
    members += [(f"{stem}.cls", str(number).encode()) for number, stem in enumerate(stems) if with_class]
    if form == "two tars":
        members.sort()
    read = read_all(open_collection(write(form, tmp_path, members)))
    assert sorted(raw.key.rpartition("/")[2] for raw in read) == sorted(stems)
    if with_class and form != "two tars":
        assert [raw.label for raw in read] == [stems.index(raw.key.rpartition("/")[2]) for raw in read]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_one_odd_name_among_many_changes_nothing(tmp_path, form):
    members = [(f"{number:03d}.png", grey(number)) for number in range(60)]
    members += [("007.edited.png", grey(100)), ("012.jpg", grey(101)), ("031.jpg", grey(102))]
    collection = open_collection(write(form, tmp_path, members))
    assert len(collection) == 63 and {"007", "007.edited", "012.png", "012.jpg"} <= set(keys_of(collection))


@pytest.mark.parametrize("form", FORMS)
def test_folders_that_are_one_sample_each(tmp_path, form):
    members = [
        (f"{number:04d}/{name}.png", grey(10 * number + place))
        for number in range(4)
        for place, name in enumerate(("left", "right"))
    ]
    path = write(form, tmp_path, members)
    with pytest.raises(UsageError, match=r"left\.png \(4\), right\.png \(4\)"):
        open_collection(path)
    chosen = open_collection(path, image_field="right.png")
    assert [raw.data for raw in read_all(chosen)] == [grey(10 * number + 1) for number in range(4)]
    assert [key.rpartition("/")[2] for key in keys_of(chosen)] == [f"{number:04d}" for number in range(4)]
    assert keys_of(open_collection(chosen.path)) == keys_of(chosen)
    assert len(open_collection(path, image_field="all")) == 8


def test_classes_that_hold_files_of_equal_names_are_no_samples(tmp_path):
    members = [(f"{folder}/{number:03d}.png", grey(number)) for folder in ("cat", "dog") for number in range(5)]
    for form in FORMS:
        (tmp_path / form).mkdir()
        assert len(open_collection(write(form, tmp_path / form, members))) == 10


def test_what_is_meant_is_seen_in_all_shards_together(tmp_path):
    """A shard that holds one sample alone is read by the same rule as the others."""
    for shard in range(3):
        members = members_of("cls", "image.png")[: 2 if shard == 2 else None]
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{name}", data) for name, data in members])
    keys = keys_of(open_collection(tmp_path))
    assert keys[-1] == "2/2000000" and len(keys) == 2 * NUM + 1


def test_dataset_json_names_the_image_not_the_key(tmp_path):
    listing = {"labels": [[f"{number:06d}.left.png", number] for number in range(NUM)]}
    members = [*members_of("left.png", "right.png"), ("dataset.json", json.dumps(listing).encode())]
    read = read_all(open_collection(write("folder", tmp_path, members), image_field="left.png"))
    assert [raw.label for raw in read] == list(range(NUM))


def test_photographs_of_two_extensions_and_their_masks(tmp_path):
    members = [(f"{number}.{'jpg' if number % 2 else 'png'}", grey(number)) for number in range(6)]
    path = write("folder", tmp_path, [*members, *((f"{number}.mask.png", grey(100 + number)) for number in range(6))])
    with pytest.raises(UsageError, match=r"mask\.png \(6\), jpg \(3\), png \(3\)"):
        open_collection(path)
    collection = open_collection(path, image_field="jpg, .PNG")
    assert [raw.data for raw in read_all(collection)] == [grey(number) for number in range(6)]
    assert keys_of(open_collection(collection.path)) == keys_of(collection) == [str(number) for number in range(6)]


FIELDS = st.lists(
    st.sampled_from(["png", "jpg", "left.png", "right.png", "a.0.png", "rgb.view.jpg", "cls", "json", "txt", "x.npy"]),
    min_size=1,
    unique=True,
).filter(lambda fields: any(field.endswith(("png", "jpg")) for field in fields))
KEYS = st.lists(st.from_regex(r"([a-z]{1,3}/)?[0-9A-Za-z_-]{1,8}", fullmatch=True), min_size=2, max_size=6, unique=True)


@settings(max_examples=200, deadline=None)
@given(keys=KEYS, fields=FIELDS, data=st.data())
def test_whatever_the_fields_a_chosen_one_is_webdatasets(tmp_path_factory, keys, fields, data):
    """Every sample has every field: the image of each, its key and its class are those that webdataset gives."""
    field = data.draw(st.sampled_from([field for field in fields if field.endswith(("png", "jpg"))]))
    members = [
        (f"{key}.{each}", str(number).encode() if each == "cls" else grey(number) if each == field else b"{}")
        for number, key in enumerate(keys)
        for each in fields
    ]
    path = write_tar(tmp_path_factory.mktemp("t") / "x.tar", members)
    assert by_brics(path, image_field=field) == by_webdataset([path], field)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stem", ["{:03d}", "v1.{:d}"])
def test_numbered_masks_are_one_field(tmp_path, form, stem):
    """As many for each photograph as there are things in it."""
    members = []
    for number in range(NUM):
        name = stem.format(number)
        members += [(f"{name}.jpg", grey(number)), (f"{name}.cls", b"1")]
        members += [(f"{name}.mask.{thing}.png", grey(100 + number)) for thing in range(number)]
    path = write("tar" if "tar" in form else form, tmp_path, members)
    with pytest.raises(UsageError, match=r"jpg \(6\), mask\.#\.png \(5\)"):
        open_collection(path)
    collection = open_collection(path, image_field="jpg")
    assert [raw.data for raw in read_all(collection)] == [grey(number) for number in range(NUM)]
    assert [raw.label for raw in read_all(collection)] == [1] * NUM
    assert [key.rpartition("/")[2] for key in keys_of(collection)] == [stem.format(number) for number in range(NUM)]
    assert collection.passed_over.to_json() == {"images mask.#.png (--image-field)": 15}
    assert len(open_collection(path, image_field="mask.0.png")) == NUM - 1
    assert len(open_collection(path, image_field="mask.#.png")) == 15


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_keys_with_dots(tmp_path, form):
    members = [(f"v1.{number}.{field}", grey(number)) for number in range(NUM) for field in ("png", "seg.png")]
    path = write(form, tmp_path, members)
    with pytest.raises(UsageError, match=r"png \(6\), seg\.png \(6\)"):
        open_collection(path)
    keys = [key.rpartition("/")[2] for key in keys_of(open_collection(path, image_field="seg.png"))]
    assert keys == [f"v1.{number}" for number in range(NUM)]


def test_the_advice_is_to_take_the_photographs_where_there_are_more_masks(tmp_path):
    names = ["0.jpg", "0.seg.png", "1.seg.png", "2.jpg", "2.seg.png"]
    path = write_tar(tmp_path / "x.tar", [(name, grey(number)) for number, name in enumerate(names)])
    with pytest.raises(UsageError, match=r"seg\.png \(3\), jpg \(2\)\. Give the one .*--image-field jpg;"):
        open_collection(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("field", "num_others"), [("mask.png", 2), ("mask.0.png", 2), ("left.png", 2), ("seg.png", 80)]
)
def test_one_sample_with_two_images_is_enough(tmp_path, form, field, num_others):
    others = [(f"{number:03d}.jpg", grey(number)) for number in range(num_others)]
    others.append(("v1.jpeg", grey(200)))
    sample = [("900.jpg", grey(201)), (f"900.{field}", grey(202))]
    path = write(form, tmp_path, [*others, *sample])
    with pytest.raises(UsageError, match=rf"jpg \({num_others + 1}\), .*--image-field jpg,jpeg;"):
        open_collection(path)
    photographs = open_collection(path, image_field="jpg,jpeg")
    assert {raw.data for raw in read_all(photographs)} == {data for _, data in [*others, sample[0]]}
    assert photographs.passed_over.to_json() == {f"images {field.replace('.0.', '.#.')} (--image-field)": 1}


def test_many_names_with_hashes_are_seen_in_one_go():
    names = [f"{number:06d}_jpg.rf.a{sha256(b'%d' % number).hexdigest()}.jpg" for number in range(30_000)]
    start = time.process_time()
    assert survey([names]).fields(None, where="roboflow") == Fields()
    assert time.process_time() - start < 5  # comparing each with each takes half a minute


@pytest.mark.parametrize("form", FORMS)
def test_versions_beside_each_other_are_images(tmp_path, form):
    names = ["v1.png", "v1.0.png", "v1.1.png", "v2.png"]
    path = write(form, tmp_path, [(name, grey(number)) for number, name in enumerate(names)])
    assert sorted(key.rpartition("/")[2] for key in keys_of(open_collection(path))) == ["v1", "v1.0", "v1.1", "v2"]


def test_folders_of_different_names_are_no_samples(tmp_path: Path) -> None:
    for name in ("cats/a.jpg", "cats/c.png", "dogs/anim.jpg", "dogs/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert len(open_collection(tmp_path)) == 4
