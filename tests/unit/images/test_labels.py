"""From labels as people write them to class numbers, and from names as they once were to images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brics_cli.errors import UsageError
from brics_cli.images.labels import MAX_CLASSES, as_class, number_labels
from brics_cli.images.listings import match_names


def number(values, **settings):
    return number_labels(values, source="dataset.json", shown=lambda image: f"{image}.png", **settings)


@pytest.mark.parametrize(
    ("values", "ids", "names"),
    [
        ([0, 1, None, 1], [0, 1, -1, 1], ()),
        ([1, 2], [1, 2], ()),  # as the user knows them
        ([-1, 3], [-1, 3], ()),
        ([0.0, 1.0, float("nan")], [0, 1, -1], ()),
        (["1", "0", ""], [1, 0, -1], ()),
        (["1.0", 2], [1, 2], ()),
        ([[1], [0]], [1, 0], ()),
        ([[1, 0, 0], [0, 0, 1]], [0, 2], ()),
        ([[0.0, 1.0], [1.0, 0.0], None], [1, 0, -1], ()),
        (["tabby", "corgi", None, "tabby"], [1, 0, -1, 1], ("corgi", "tabby")),
        (["7", "corgi"], [0, 1], ("7", "corgi")),
        ([True, False, True], [1, 0, 1], ("false", "true")),
        ([5, 10**12, 5], [0, 1, 0], ("5", "1000000000000")),
        ([None, 2**40, MAX_CLASSES], [-1, 1, 0], (str(MAX_CLASSES), str(2**40))),
        ([0, 1000], [0, 1000], ()),
        ([], [], ()),
        (["²"], [0], ("²",)),
    ],
)
def test_labels_that_mean_classes(values, ids, names):
    labelling = number(values)
    assert labelling.ids.tolist() == ids and labelling.ids.dtype == np.int64
    assert labelling.names == names and labelling.metas == {}


@pytest.mark.parametrize(
    ("values", "metas", "said"),
    [
        ([0.5, 1, None], {0: {"label_value": 0.5}, 1: {"label_value": 1}}, "1 fractional label: all"),
        ([[1, 1], [1, 0]], {0: {"label_vector": [1, 1]}, 1: {"label_vector": [1, 0]}}, "2 vectors kept as metadata"),
        (["a\nb", "c"], {0: {"label_value": "a\nb"}, 1: {"label_value": "c"}}, "1 label too long or not printable"),
        (["x" * 300], {0: {"label_value": "x" * 300}}, "1 label too long or not printable"),
        ([[0.5, 1.5]], {0: {"label_vector": [0.5, 1.5]}}, "1 vector kept as metadata"),
    ],
)  # fmt: skip
def test_labels_that_are_no_classes_are_metadata_and_said(values, metas, said):
    labelling = number(values)
    assert (labelling.ids == -1).all() and labelling.metas == metas
    assert said in labelling.said and labelling.said.startswith(f"0 of {len(values)} labelled")


def test_captions_are_no_classes():
    labelling = number([f"a photo of {number}" for number in range(1500)])
    assert (labelling.ids == -1).all() and labelling.metas[3] == {"label_value": "a photo of 3"}
    assert "1,500 different texts are no classes" in labelling.said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, -2], "the label of 1.png in dataset.json is -2, and class numbers begin at 0"),
        ([[[1, 0], [0, 1]]], "the label of 0.png in dataset.json is [[1, 0], [0, 1]], a list of what is not numbers"),
        ([{"id": 3}], "is {'id': 3}"),
        ([float("inf")], "is infinite"),
        ([1, "corgi"], "labels of two kinds: 0.png has the number 1, 1.png the name 'corgi'"),
        ([10**30], "there are numbers up to 1,000,000,000,000,000,000,000,000,000,000"),
        (list(range(10**6, 10**6 + MAX_CLASSES + 1)), "there are numbers up to 1,100,000"),
    ],
)
def test_labels_that_cannot_be_meant_are_one_line(values, said):
    with pytest.raises(UsageError) as raised:
        number(values)
    assert said in str(raised.value) and "--labels none" in str(raised.value) and "\n" not in str(raised.value)


def test_known_names_keep_their_numbers():
    assert number(np.array([2, 0]), names=["a", "b", "c"]).names == ("a", "b", "c")
    assert number(["c", "a"], names=["c", "b", "a"]).ids.tolist() == [0, 2]
    with pytest.raises(UsageError, match=r"the label of 0.png in dataset.json is 3, and there are 3 class names"):
        number(np.array([3, 0]), names=["a", "b", "c"])


def test_what_is_labelled_is_counted():
    assert number([0, 1, 1]).said == "3 of 3 labelled, 2 classes"
    assert number([0, None]).said == "1 of 2 labelled (the others have none), 1 class"
    assert number(["7", "corgi"]).said == "2 of 2 labelled, 2 classes; names of classes, 1 of which are numbers"
    assert number([10**12, 0]).said.endswith("class numbers up to 1,000,000,000,000 are renumbered, and kept as names")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
            st.lists(st.floats(), max_size=3), st.dictionaries(st.text(), st.none(), max_size=1),
        ), max_size=8,
    )
)  # fmt: skip
def test_any_labels_give_classes_in_range_or_one_line(values):
    try:
        labelling = number(values)
    except UsageError:
        return
    assert len(labelling.ids) == len(values)
    assert all(-1 <= number < max(MAX_CLASSES, len(labelling.names) or MAX_CLASSES) for number in labelling.ids)
    if labelling.names:
        assert labelling.ids.max(initial=-1) < len(labelling.names)


@pytest.mark.parametrize(
    ("value", "label"),
    [("7", 7), (" 7\n", 7), (7.0, 7), ([7], 7), ("tabby", None), (-1, None), (10**12, None), (True, None), ({}, None)],
)
def test_a_label_on_its_own(value, label):
    assert as_class(value) == label


IMAGES = [f"0000{number % 2}/img{number:05d}.png" for number in range(6)]


@pytest.mark.parametrize(
    "as_listed",
    [
        lambda name: name,
        lambda name: name.replace("/", "\\"),
        lambda name: "./" + name,
        lambda name: "/data/ffhq/" + name,
        lambda name: "C:\\data\\" + name.replace("/", "\\"),
        lambda name: "data/" + name,
        lambda name: name.replace("/", "//") + " ",
        lambda name: name.replace(".png", ".JPG"),
        lambda name: name.replace(".png", ".jpeg"),
        lambda name: name.rpartition(".")[0],
        lambda name: name.upper(),
        lambda name: name.partition("/")[2],
        lambda name: "x/" + name.partition("/")[2],
        lambda name: "data\\" + name.replace(".png", ".webp"),
    ],
)
def test_names_match_however_they_are_written(as_listed):
    listed = [as_listed(name) for name in reversed(IMAGES)]
    assert match_names(listed, IMAGES).tolist() == [5, 4, 3, 2, 1, 0]


def test_a_folder_in_front_on_the_images_side():
    assert match_names(["a/1.png", "b/1.png"], ["data/a/1.png", "data/b/1.png"]).tolist() == [0, 1]
    assert match_names(["ffhq/a/1.png", "ffhq/b/1.png"], ["data/a/1.png", "data/b/1.png"]).tolist() == [0, 1]


def test_accents_written_in_two_ways_are_one():
    assert match_names(["caf\u00e9.png"], ["cafe\u0301.png"]).tolist() == [0]


@pytest.mark.parametrize(
    ("listed", "images"),
    [
        (["1.png"], ["a/1.png", "b/1.png"]),  # which of the two?
        (["1.jpg"], ["1.png", "1.webp"]),
        (["train/1.png", "val/1.png"], ["1.png", "2.png"]),  # both end in it
        (["n01/1.png", "n02/2.png"], ["n03/1.png", "n04/2.png"]),  # another folder is another image
        (["11.png"], ["1.png"]),
        ([""], ["1.png"]),
    ],
)
def test_what_could_mean_two_images_means_none(listed, images):
    assert (match_names(listed, images) == -1).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab/.\\1", max_size=8), max_size=6), st.lists(st.text("ab/.\\1", max_size=8), max_size=6))
def test_only_names_that_end_alike_match(listed, images):
    found = match_names(listed, images)
    for place, position in enumerate(found.tolist()):
        if position >= 0:
            assert _parts(listed[place])[-1:] == _parts(images[position])[-1:]


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.text("abc/1", min_size=1, max_size=6).filter(lambda name: _parts(name) == name.split("/")), max_size=6)
)
def test_equal_names_always_match(names):
    images = sorted(names)
    assert match_names(images[::-1], images).tolist() == list(range(len(images)))[::-1]


def _parts(name):
    return [part for part in name.replace("\\", "/").strip().split("/") if part not in ("", ".")]
