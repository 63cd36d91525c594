"""ADM's npz and plain npy as collections: what numpy saved is what is read, anything else is refused in one line."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import write_images

from brics_cli.errors import ArtefactError, BricsError, MachineError, UsageError
from brics_cli.images import load_shards, open_collection, unpacking
from brics_cli.images.pixels import load_pixels
from brics_cli.images.sinks import OutputImage

LABELS = np.array([3, 0, -1, 7, 3])
NUMBERS = [3, 0, None, 7, 3]


def images(num: int = 5, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def pixels(path: Path) -> np.ndarray:
    collection = open_collection(path)
    return np.stack([load_pixels(raw.data, transform="none", size=6) for raw in collection.iter_shard(0)])


def save(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> Path:
    np.savez(path, *arrays, **named)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saved(tmp_path, save):
    save(tmp_path / "x.npz", images(), LABELS)
    collection = open_collection(tmp_path / "x.npz")
    assert [raw.label for raw in collection.iter_shard(0)] == NUMBERS
    assert list(collection.keys()) == [f"{number:08d}" for number in range(5)]
    assert np.array_equal(pixels(tmp_path / "x.npz"), images())
    assert collection.read(0, 3).data == collection.read(0, 3).data  # in any order, and again
    compressed = ", compressed" if save is np.savez_compressed else ""
    labels = "labels from arr_1: 4 of 5 labelled (the others have none), 3 classes"
    assert collection.describe() == f"5 images, 6 x 6 px, npz{compressed}, named by their place, {labels}"
    bare = open_collection(tmp_path / "x.npz", labels="none")
    assert bare.read(0, 0).label is None and "labels" not in bare.describe() and not bare.passed_over


def test_a_plain_npy(tmp_path):
    np.save(tmp_path / "x.npy", images())
    assert np.array_equal(pixels(tmp_path / "x.npy"), images())
    assert open_collection(tmp_path / "x.npy").kind == "npy"


def test_images_that_are_not_square(tmp_path):
    save(tmp_path / "x.npz", images(3, 4, 9))
    read = [np.asarray(_decoded(raw.data)) for raw in open_collection(tmp_path / "x.npz").iter_shard(0)]
    assert np.array_equal(read, images(3, 4, 9))


def _decoded(data: bytes):
    from brics_cli.images.pixels import decode_image

    return decode_image(data)


def test_ours_come_back_with_keys_and_labels(tmp_path):
    keys = ["s/my.photo.1", "s/a/b", "猫", "x" * 300, "s/2"]
    write_images(tmp_path / "x.npz", map(OutputImage, keys, images(), range(5)))
    collection = open_collection(tmp_path / "x.npz")
    assert [(raw.key, raw.label) for raw in collection.iter_shard(0)] == list(zip(keys, range(5), strict=True))
    assert np.array_equal(pixels(tmp_path / "x.npz"), images())
    assert collection.describe() == "5 images, 6 x 6 px, npz, labels from arr_1: 5 of 5 labelled, 5 classes"


def test_it_goes_through_the_loader_in_processes_too(tmp_path):
    save(tmp_path / "x.npz", images(), LABELS)
    collection = pickle.loads(pickle.dumps(open_collection(tmp_path / "x.npz")))
    batches = list(load_shards(collection, transform="crop-bicubic", size=6, num_workers=2, batch_size=2))
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), images())
    assert [image.label for batch in batches for image in batch.loaded] == NUMBERS


def test_adms_reference_batch_gives_its_images_and_says_what_is_not_read(tmp_path):
    statistics = {name: np.zeros((4, 4)) for name in ("mu", "sigma", "mu_s", "sigma_s")}
    save(tmp_path / "x.npz", images(), **statistics)
    assert np.array_equal(pixels(tmp_path / "x.npz"), images())
    said = open_collection(tmp_path / "x.npz").passed_over.describe()
    assert said == "not read: 4 arrays (mu, sigma, mu_s, sigma_s)"


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (np.eye(5, dtype=np.float32)[[2, 0, 1, 1, 4]], [2, 0, 1, 1, 4], ()),  # one-hot
        (np.array([1.0, 0, 2, 2, 1]), [1, 0, 2, 2, 1], ()),
        (np.array([[1], [0], [2], [2], [1]], np.uint8), [1, 0, 2, 2, 1], ()),
        (np.array(["dog", "cat", "dog", "cat", "eel"]), [1, 0, 1, 0, 2], ("cat", "dog", "eel")),
        (np.array([b"dog", b"cat", b"dog", b"cat", b"eel"]), [1, 0, 1, 0, 2], ("cat", "dog", "eel")),
        (np.array([10**12, 7, 7, 10**12, 7]), [1, 0, 0, 1, 0], ("7", "1000000000000")),
    ],
)
def test_labels_by_the_rules_of_all_forms(tmp_path, labels, classes, names):
    save(tmp_path / "x.npz", images(), labels)
    collection = open_collection(tmp_path / "x.npz")
    assert [raw.label for raw in collection.iter_shard(0)] == classes and collection.class_names == names
    assert not collection.passed_over


@pytest.mark.parametrize("labels", [np.eye(4), np.ones((5, 3)) / 3, np.zeros((5, 2, 2)), np.array(7)])
def test_labels_that_are_none_are_said(tmp_path, labels):
    save(tmp_path / "x.npz", images(), labels)
    collection = open_collection(tmp_path / "x.npz")
    assert collection.read(0, 0).label is None and "1 array (arr_1)" in collection.passed_over.describe()


def test_a_class_number_below_0_is_refused(tmp_path):
    save(tmp_path / "x.npz", images(), np.array([0, 1, -5, 2, 3]))
    with pytest.raises(UsageError, match="the label of 00000002 in arr_1 is -5"):
        open_collection(tmp_path / "x.npz")


def test_keys_that_are_none_are_not_taken(tmp_path):
    for keys in (["a", "a", "b", "c", "d"], ["../a", "b", "c", "d", "e"], ["", "b", "c", "d", "e"]):
        save(tmp_path / "x.npz", images(), keys=np.array(keys))
        assert open_collection(tmp_path / "x.npz").key(0, 1) == "00000001"


def test_an_array_by_another_name(tmp_path):
    save(tmp_path / "x.npz", samples=images(), mean=np.zeros(3))
    assert np.array_equal(pixels(tmp_path / "x.npz"), images())
    assert "array 'samples'" in open_collection(tmp_path / "x.npz").describe()


FLOATS = images().astype(np.float32) / 255
WRONG = [
    (FLOATS, "arr_0 is float32 (5, 6, 6, 3), and images are uint8 (N, H, W, 3)", "numpy.rint(255 * x)"),
    (2 * FLOATS.astype(np.float64) - 1, "float64 (5, 6, 6, 3)", "numpy.rint(127.5 * (x + 1))"),
    (images().astype(np.int64), "int64 (5, 6, 6, 3)", "Save uint8"),
    (images().transpose(0, 3, 1, 2).copy(), "uint8 (5, 3, 6, 6)", "x.transpose(0, 2, 3, 1)"),
    (FLOATS.transpose(0, 3, 1, 2).copy(), "float32 (5, 3, 6, 6)", "x.transpose(0, 2, 3, 1)"),
    (images()[..., 0], "uint8 (5, 6, 6)", "numpy.repeat"),
    (images()[..., :1], "uint8 (5, 6, 6, 1)", "numpy.repeat"),
    (np.concatenate([images(), images()[..., :1]], -1), "uint8 (5, 6, 6, 4)", "x[..., :3]"),
    (images()[0], "uint8 (6, 6, 3)", "x[None]"),
    (np.asfortranarray(images()), "uint8 (5, 6, 6, 3)", "ascontiguousarray"),
    (np.array([1, "a", None], dtype=object), "object (3)", "Pickled objects are never opened"),
    (images()[:0], "no images in", "uint8 (0, 6, 6, 3)"),
    (np.array(["a.png"]), "arr_0 is <U5 (1)", "Save it again"),
]


@pytest.mark.parametrize(("array", "said", "advice"), WRONG)
@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_what_is_not_images_is_refused_in_one_line(tmp_path, name, array, said, advice):
    (np.savez if name == "x.npz" else np.save)(tmp_path / name, array)
    with pytest.raises(UsageError) as caught:
        open_collection(tmp_path / name)
    line = str(caught.value)
    assert said in line and advice in line and "\n" not in line


class Bomb:
    def __reduce__(self):
        return (Path("/nonexistent/unpickled").write_text, ("x",))


def test_nothing_is_unpickled(tmp_path):
    save(tmp_path / "x.npz", np.array([Bomb()], dtype=object), keys=np.array([Bomb()], dtype=object))
    with pytest.raises(UsageError, match="never opened"):
        open_collection(tmp_path / "x.npz")
    save(tmp_path / "y.npz", images(1), np.array([Bomb()], dtype=object), keys=np.array([Bomb()], dtype=object))
    assert "2 arrays" in open_collection(tmp_path / "y.npz").passed_over.describe()


def test_statistics_are_no_images(tmp_path):
    save(tmp_path / "x.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(UsageError, match=r"holds statistics \(mu, sigma\), not images"):
        open_collection(tmp_path / "x.npz")
    save(tmp_path / "y.npz", a=np.zeros(4), b=np.eye(4))
    with pytest.raises(UsageError, match=r"it holds a float64 \(4\), b float64 \(4, 4\)"):
        open_collection(tmp_path / "y.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_named_or_counted_at_every_cut(tmp_path, compressed):
    """Cut anywhere, a file is refused; with a byte changed, an image may differ but nothing else happens."""
    path = tmp_path / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, images(), LABELS)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(BricsError):
            open_collection(path)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(whole), 200).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            pixels(path)
        except BricsError as error:
            assert "\n" not in str(error)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 256, 256, 3)}
    np.lib.format.write_array_header_1_0(member, header)
    (tmp_path / "x.npy").write_bytes(member.getvalue())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue())
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ArtefactError, match="is damaged: arr_0 takes"):
            open_collection(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_any_pixel_changes_the_fingerprint_and_a_copy_does_not(tmp_path, name):
    pixels, save = images(), np.savez if name == "x.npz" else np.save
    save(tmp_path / name, pixels)
    before = open_collection(tmp_path / name).fingerprint
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / name
    copy.write_bytes((tmp_path / name).read_bytes())
    assert open_collection(copy).fingerprint == before
    rng = np.random.default_rng(2)
    for _ in range(20):
        changed = pixels.copy()
        changed[tuple(int(rng.integers(side)) for side in pixels.shape)] ^= 1 << int(rng.integers(8))
        save(tmp_path / name, changed)
        assert open_collection(tmp_path / name).fingerprint != before


def test_what_unpacks_to_more_than_its_share_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", np.zeros((100, 64, 64, 3), np.uint8))
    monkeypatch.setattr(unpacking, "allowance", lambda: 10**6)
    with pytest.raises(MachineError, match="unpacks to more than"):
        open_collection(tmp_path / "x.npz").read(0, 0)


def test_ten_million_images_in_a_few_bytes_open(tmp_path):
    """A bomb: its list of images must not fill the memory."""
    shape = (10**7, 1, 1, 3)
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(30):
            file.write(bytes(10**6))
    tracemalloc.start()
    assert len(open_collection(tmp_path / "x.npz")) == 10**7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_no_more_than_an_image_is_in_memory(tmp_path):
    num, side = 400, 64  # 4.9 MB of pixels
    save(tmp_path / "x.npz", np.zeros((num, side, side, 3), np.uint8))
    tracemalloc.start()
    read = open_collection(tmp_path / "x.npz").iter_shard(0)
    write_images(tmp_path / "y.npz", (OutputImage(raw.key, np.asarray(_decoded(raw.data))) for raw in read))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.load(tmp_path / "y.npz")["arr_0"].nbytes == num * side * side * 3
    assert peak < 2.5e6


@pytest.mark.parametrize("names", [["samples.npz"], ["x.NPZ", "y.npy"], ["below/samples.npz"], ["a/b.npy"]])
def test_a_folder_of_nothing_else_names_the_file_to_give(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            (np.save if name.endswith(".npy") else np.savez)(file, images())
    with pytest.raises(UsageError, match=r"no images in the folder .*; not read: ") as caught:
        open_collection(tmp_path)
    which = "the file" if names[-1] != "y.npy" else "one of its 2 .npz and .npy files"
    assert caught.value.next == f"Give {which}: {tmp_path / names[0]}"
    assert len(open_collection(tmp_path / names[0])) == 5


def test_a_folder_of_what_is_only_named_like_arrays_says_what_to_give(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"1 \.npz.*Give png"):
        open_collection(tmp_path)
