"""What a scan does not read is said, by extension and number, whatever the form; and what it reads in odd places."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import lmdb
import pytest
import zstandard
from image_files import grey, keys_of, noise, read_all, write_tar
from table_files import write_parquet

from brics_cli.cli.app import run
from brics_cli.errors import ArtefactError
from brics_cli.images import open_collection
from brics_cli.images.collection import PassedOver, extension_of

IMAGES = {"a.png": grey(1), "b/c.JPG": grey(2)}
SIDECARS = {"a.cls": b"1", "b/c.json": b"{}"}
OTHERS = dict.fromkeys(("d.jxl", "e.JXL", "b/f.cr2", "hash", "g.jpg_original", "alone.txt", "x.npy"), b"")
HIDDEN = {".DS_Store": b"", ".x.png": b""}


class Listener:
    """A reporter that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)


def write(form: str, root: Path, members: dict[str, bytes]) -> Path:
    if form == "tar":
        return write_tar(root / "x.tar", members.items())
    if form == "zip":
        with zipfile.ZipFile(root / "x.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return root / "x.zip"
    for name, data in members.items():
        (root / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "x" / name).write_bytes(data)
    return root / "x"


def test_one_of_each_is_said_in_the_singular():
    passed = PassedOver(["a.jxl"])
    reasons = ("hidden files or folders", "links to folders visited before", "rows that were not downloaded (no url)")
    passed.reasons.update(reasons)
    assert passed.describe() == (
        "not read: 1 of 1 file (1 .jxl); 1 hidden file or folder; 1 link to a folder visited before; "
        "1 row that was not downloaded (no url)"
    )
    assert passed.to_json() == {".jxl": 1, **dict.fromkeys(reasons, 1)}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_everything_that_is_not_read_is_counted(tmp_path, form):
    listener = Listener()
    path = write(form, tmp_path, {**IMAGES, **SIDECARS, **OTHERS, **HIDDEN})
    collection = open_collection(path, reporter=listener)
    assert len(collection) == 2
    counted = {".jxl": 2, ".cr2": 1, "without extension": 1, ".jpg_original": 1, ".npy": 1, ".txt": 1}
    assert collection.passed_over.to_json() == {**counted, "hidden files or folders": 2}
    (said,) = listener.heard
    assert said.startswith(f"{path}: not read: 7 of 11 files (2 .jxl, ") and "2 hidden files or folders" in said
    for num, extension in ((1, ".cr2"), (1, "without extension"), (1, ".jpg_original"), (1, ".npy"), (1, ".txt")):
        assert f"{num} {extension}" in said


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_nothing_is_said_where_all_is_read(tmp_path, form):
    listener = Listener()
    collection = open_collection(write(form, tmp_path, {**IMAGES, **SIDECARS}), reporter=listener)
    assert not collection.passed_over and not listener.heard and collection.passed_over.to_json() == {}


def test_dataset_json_that_is_used_does_not_count(tmp_path):
    for form in ("folder", "zip"):
        collection = open_collection(write(form, tmp_path, {**IMAGES, "dataset.json": b'{"labels": [["a.png", 1]]}'}))
        assert not collection.passed_over


def test_archives_below_a_folder_of_images_and_images_beside_shards(tmp_path):
    folder = write("folder", tmp_path, IMAGES)
    write_tar(folder / "shards" / "0.tar", [("a.png", grey())])
    write("zip", folder, IMAGES)
    assert open_collection(folder).passed_over.to_json() == {".tar": 1, ".zip": 1}
    write_tar(tmp_path / "tars" / "0.tar", [("a.png", grey()), ("a.npy", b"")])
    write("folder", tmp_path / "tars" / "deep", IMAGES)
    (tmp_path / "tars" / "README.md").touch()
    assert open_collection(tmp_path / "tars").passed_over.to_json() == {".npy": 1, ".png": 1, ".jpg": 1, ".md": 1}


def test_files_beside_tables(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "data" / "extra.jsonl").touch()
    assert open_collection(tmp_path).passed_over.to_json() == {".jsonl": 1}
    (tmp_path / "data" / "notes").mkdir()
    (tmp_path / "data" / "notes" / ".hidden").touch()  # comes after extra.jsonl
    (tmp_path / "data" / "notes" / "again").symlink_to(tmp_path / "data")
    reasons = {"hidden files or folders": 1, "links to folders visited before": 1}
    assert open_collection(tmp_path).passed_over.to_json() == {".jsonl": 1, **reasons}


def test_links_to_what_was_visited_before_are_counted(tmp_path):
    folder = write("folder", tmp_path, IMAGES)
    for name in ("loop", "b/again", "same"):
        (folder / name).symlink_to(folder / "b" if name == "same" else folder)
    collection = open_collection(folder)
    assert len(collection) == 2 and "3 links to folders visited before" in collection.passed_over.describe()


def test_a_zstd_tar_reads_as_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    plain = write_tar(tmp_path / "plain" / "x.tar", [(f"{number}.png", noise(number)) for number in range(40)])
    packed = tmp_path / "x.tar.zst"
    data = plain.read_bytes()
    half = len(data) // 2
    for content in (zstandard.compress(data), zstandard.compress(data[:half]) + zstandard.compress(data[half:])):
        packed.write_bytes(content)
        for path in (packed, tmp_path):
            found = open_collection(path)
            assert [raw.data for raw in read_all(found)] == [raw.data for raw in read_all(open_collection(plain))]
    for cut in (1, 100, 5000):
        packed.write_bytes(zstandard.compress(data)[:-cut])
        with pytest.raises(ArtefactError, match=r"x\.tar\.zst is truncated"):
            open_collection(packed)
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    packed.write_bytes(checked[:5000] + bytes(60) + checked[5060:])
    with pytest.raises(ArtefactError, match=r"x\.tar\.zst is truncated or damaged \(zstd decompress error"):
        open_collection(packed)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_tars_is_read_one_level_deep(tmp_path, format):
    """ImageNet's ILSVRC2012_img_train.tar holds one tar for each class."""
    long = "x" * 120  # a name that needs more than a plain header
    inner = {}
    for number, wnid in enumerate(("n01440764", "n01443537")):
        members = [(f"{wnid}_{index}.JPEG", noise(10 * number + index, format="JPEG")) for index in range(2)]
        if format != tarfile.USTAR_FORMAT:
            members.append((f"{long}.JPEG", noise(90 + number, format="JPEG")))
        members += [("deeper.tar", write_tar(tmp_path / "deeper.tar", [("a.png", grey())]).read_bytes())]
        inner[wnid] = (members, write_tar(tmp_path / f"{wnid}.tar", members, format=format).read_bytes())
    outer = [(f"{wnid}.tar", data) for wnid, (_, data) in inner.items()]
    path = write_tar(tmp_path / "out" / "train.tar", [*outer, ("not.tar", b"text"), ("top.png", grey())], format=format)
    collection = open_collection(path, labels="folder")
    expected = {
        f"train/{wnid}/{name.removesuffix('.JPEG')}": (data, number)
        for number, (wnid, (members, _)) in enumerate(inner.items())
        for name, data in members
        if name.endswith("JPEG")
    }
    assert {raw.key: (raw.data, raw.label) for raw in read_all(collection)} == {
        **expected,
        "train/top": (grey(), None),
    }
    assert collection.passed_over.to_json() == {".tar": 3}
    assert keys_of(open_collection(path)) == keys_of(collection)


def test_a_damaged_tar_in_a_tar_is_named(tmp_path):
    data = write_tar(tmp_path / "n1.tar", [(f"{number}.png", noise(number)) for number in range(3)]).read_bytes()
    path = write_tar(tmp_path / "x.tar", [("n1.tar", data[:1500]), ("n2.tar", data)])
    with pytest.raises(ArtefactError, match=r"x\.tar: the tar 'n1\.tar' in it is truncated"):
        open_collection(path)


@pytest.mark.parametrize("second", ["another tar", "text"])
def test_data_after_the_end_of_a_tar_is_said_with_its_length(tmp_path, second):
    first = write_tar(tmp_path / "a.tar", [("a.png", grey())]).read_bytes()
    more = write_tar(tmp_path / "b.tar", [("b.png", grey())]).read_bytes() if second == "another tar" else b"text"
    (tmp_path / "c.tar").write_bytes(first + more)
    end = 1024 + len(grey()) // 512 * 512 + (512 if len(grey()) % 512 else 0) + 512
    num_bytes = len(first) + len(more) - end
    with pytest.raises(ArtefactError, match=rf"c\.tar holds more after its end mark: {num_bytes:,} bytes.*ignore-zero"):
        open_collection(tmp_path / "c.tar")
    (tmp_path / "c.tar").write_bytes(first + bytes(2**21))  # a long end is an end
    assert len(open_collection(tmp_path / "c.tar")) == 1


@pytest.mark.parametrize(
    ("name", "extension"),
    [("a.HEIC", ".heic"), ("a/b.c/d", "without extension"), ("x.jpg_original", ".jpg_original"), ("a.", "without ext"),
     ("mr. smith and son", "without extension"), ("a.tar.gz", ".gz"), ("a.\udce9", ".\\xe9")],
)  # fmt: skip
def test_the_extension_of_a_name(name, extension):
    assert extension_of(name).startswith(extension)


def test_what_brics_writes_beside_shards_is_its_own(tmp_path):
    write("folder", tmp_path, IMAGES)
    assert run(["pack", str(tmp_path / "x"), "--out", str(tmp_path / "s"), "--size", "8", "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} >= {"brics.json", "manifest.json", "wids.json"}
    assert not open_collection(tmp_path / "s").passed_over


def test_short_values_of_an_lmdb_and_files_beside_what_is_chosen(tmp_path):
    with lmdb.open(str(tmp_path / "x_train_lmdb"), map_size=2**20) as environment, environment.begin(write=True) as row:
        row.put(b"a", noise(0))
        row.put(b"length", b"1")
    (tmp_path / "README.md").touch()
    found = open_collection(tmp_path).passed_over.to_json()
    assert found == {".md": 1, "values of fewer than 64 bytes": 1}


def test_info_and_dry_runs_say_it_too(tmp_path, capsys):
    path = write("folder", tmp_path, {**IMAGES, **OTHERS})
    assert run(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["not_read"] == open_collection(path).passed_over.to_json()
    assert run(["pack", str(path), "--out", str(tmp_path / "s"), "--dry-run", "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["not_read"] == open_collection(path).passed_over.to_json()
    assert "not read: 7 of 9 files" in streams.err


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("ending", ["_mask", "_seg", "_depth", "-mask", "_label", "_Annotation", "_matte", "_mask_1"])
@pytest.mark.parametrize(("image", "mask"), [(".jpg", ".png"), (".png", ".png"), ("_rgb.png", ".png")])
def test_images_named_like_masks_of_others_are_said(tmp_path, form, ending, image, mask):
    members = {f"d/{number}{image}": grey(number) for number in range(4)}
    members |= {f"d/{number}{ending}{mask}": grey(100 + number) for number in range(3)}
    listener = Listener()
    path = write(form, tmp_path, members)
    assert len(open_collection(path, reporter=listener)) == 7
    (said,) = listener.heard
    assert "3 of 7 images are named like masks of others (" in said and f"0{ending}{mask} beside " in said
    assert ("--image-field jpg leaves them out" in said) == (image == ".jpg")
    if image == ".jpg":
        listener = Listener()
        assert len(open_collection(path, image_field="jpg", reporter=listener)) == 4
        assert listener.heard == [f"{path}/*.jpg: not read: 3 images png (--image-field)"]


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("begin", ["mask_", "seg-", "Depth_", "gt_"])
@pytest.mark.parametrize(("image", "extension"), [("{}.jpg", "jpg"), ("img_{}.jpg", "jpg"), ("{}_rgb.png", "png")])
def test_names_that_begin_like_masks_of_others_are_said(tmp_path, form, begin, image, extension):
    members = {f"d/{image.format(number)}": grey(number) for number in range(4)}
    members |= {f"d/{begin}{number}.png": grey(100 + number) for number in range(3)}
    listener = Listener()
    path = write(form, tmp_path, members)
    assert len(open_collection(path, reporter=listener)) == 7
    (said,) = listener.heard
    assert f"3 of 7 images are named like masks of others (d/{begin}0.png beside d/{image.format(0)})" in said
    assert ("--image-field jpg leaves them out" in said) == (extension == "jpg")


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_names_that_end_like_masks_beside_nothing_are_images(tmp_path, form):
    names = ["carnival_mask.png", "gas_mask.png", "gas.png", "sleep_mask.png", "dog.png", "mask.png", "normal_1.png"]
    listener = Listener()
    open_collection(write(form, tmp_path, dict.fromkeys(names, grey())), reporter=listener)
    assert not listener.heard


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_one_odd_second_image_among_many_samples_is_said(tmp_path, form):
    members = {f"{number:03d}.png": grey(number) for number in range(60)} | {"007.edited.png": grey(100)}
    listener = Listener()
    path = write(form, tmp_path, members)
    assert len(open_collection(path, reporter=listener)) == 61
    (said,) = listener.heard
    assert "1 of 61 images are named like a second image of a sample (007.edited.png beside 007.png)" in said
    assert "--image-field png leaves them out" in said
    assert len(open_collection(path, image_field="png")) == 60
