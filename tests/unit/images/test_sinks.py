"""What sinks write can be read back, is whole or absent, and has the same bytes each time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from image_files import write_images
from PIL import Image

from brics_cli.errors import ArtefactError, MachineError, UsageError, WouldOverwriteError
from brics_cli.images import contact_sheet, open_collection, open_sink
from brics_cli.images.packs import FailureLog
from brics_cli.images.pixels import load_pixels
from brics_cli.images.sheets import CAPTION_HEIGHT, GAP, TITLE_HEIGHT, seed_captions
from brics_cli.images.sinks import OutputImage, base
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import Artefact, Parent, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import flat_name, key_of_name
from brics_cli.workspace.outputs import claim, output_lock

KEYS = [f"s/{number}" for number in range(5)]


def images(num: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 6, 6, 3), dtype=np.uint8)


def outputs(start: int = 0) -> list[OutputImage]:
    metas = [{"n": number} if number % 2 else None for number in range(5)]
    return list(map(OutputImage, KEYS, images(), range(5), metas))[start:]


def write_all(path: Path, **settings) -> None:
    write_images(path, outputs(), **settings)


def interrupted(images: list[OutputImage], error: BaseException) -> Iterator[OutputImage]:
    yield from images
    raise error


def hidden_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out", {"format": "png", "shard_size": None, "names": "flat"}),
        ("x.zip", {"format": "zip", "shard_size": None}),
        ("x.npz", {"format": "npz", "shard_size": None}),
        ("x.tar", {"format": "wds", "shard_size": 1000}),
    ],
)
def test_what_is_recorded_of_an_output(tmp_path, name, expected):
    """Outputs of earlier versions are gone on with, and found to be complete, by it."""
    assert open_sink(tmp_path / name, default="png", shard_size=7).settings == expected


def test_png_folder_keeps_keys(tmp_path):
    write_all(tmp_path / "out", format="png")
    read = list(open_collection(tmp_path / "out").iter_shard(0))
    assert [raw.key for raw in read] == [flat_name(key) for key in KEYS]
    assert [key_of_name(path.stem) for path in sorted((tmp_path / "out").glob("*.png"))] == KEYS
    assert np.array_equal([load_pixels(raw.data, transform="none", size=6) for raw in read], images())
    assert hidden_files(tmp_path / "out") == []


def test_a_nested_png_folder_keeps_folders(tmp_path):
    write_all(tmp_path / "out", format="png", nested=True)
    assert [raw.key for raw in open_collection(tmp_path / "out").iter_shard(0)] == KEYS


def test_webdataset_keeps_keys_labels_and_meta(tmp_path):
    write_all(tmp_path / "out", format="wds", shard_size=2)
    collection = open_collection(tmp_path / "out")
    assert [shard.num_images for shard in collection.shards] == [2, 2, 1]
    read = [raw for shard in range(3) for raw in collection.iter_shard(shard)]
    assert [raw.key for raw in read] == [f"{number // 2:05d}/{key}" for number, key in enumerate(KEYS)]
    assert [(raw.label, raw.meta) for raw in read[:2]] == [(0, None), (1, {"n": 1})]
    assert np.array_equal([load_pixels(raw.data, transform="none", size=6) for raw in read], images())


def test_webdataset_bytes_repeat(tmp_path):
    for name in ("one", "two"):
        write_all(tmp_path / name, shard_size=3)
    for tar in ("00000.tar", "00001.tar"):
        assert (tmp_path / "one" / tar).read_bytes() == (tmp_path / "two" / tar).read_bytes()


def test_webdataset_reads_what_we_write_dots_and_all(tmp_path):
    keys = ["my.photo.1", "my.photo.2", "k" * 150, "a\nb/c\n"]
    write_images(tmp_path / "x.tar", map(OutputImage, keys, images(4)))
    dataset = webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in dataset] == ["my%2Ephoto%2E1", "my%2Ephoto%2E2", "k" * 150, "a%0Ab/c%0A"]
    assert open_collection(tmp_path / "x.tar").read(0, 0).meta == {"original_key": "my.photo.1"}


def test_zip_is_edms_layout_with_keys(tmp_path):
    write_all(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        listing = json.loads(archive.read("dataset.json"))
        first = np.array(Image.open(archive.open("00000/img00000000.png")))
    assert listing["labels"] == [[f"00000/img{number:08d}.png", number] for number in range(5)]
    assert [key for _, key in listing["keys"]] == KEYS
    assert np.array_equal(first, images()[0])


@pytest.mark.parametrize("name", ["out", "x.zip", "x.tar"])
def test_an_exception_leaves_nothing_half_written(tmp_path, name, monkeypatch):
    monkeypatch.setattr(base, "_MAX_PENDING", 0)
    with pytest.raises(RuntimeError, match="stop"):
        open_sink(tmp_path / name, shard_size=2).write(interrupted(outputs()[:3], RuntimeError("stop")))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == (["00000.tar"] if name == "out" else [])


@pytest.mark.parametrize("format", ["png", "wds"])
def test_resume_gives_the_same_files(tmp_path, format, monkeypatch):
    monkeypatch.setattr(base, "_MAX_PENDING", 0)
    write_all(tmp_path / "whole", format=format, shard_size=2)
    with pytest.raises(KeyboardInterrupt):
        open_sink(tmp_path / "out", format, shard_size=2).write(interrupted(outputs()[:3], KeyboardInterrupt()))
    sink = open_sink(tmp_path / "out", format, shard_size=2)
    start = sink.resume_point(KEYS)
    assert start == {"png": 3, "wds": 2}[format]
    sink.write(outputs(start), start=start)
    sink.finish(SilentReporter())
    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    last = files[-1]
    assert (tmp_path / "out" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_a_skipped_place_stays_empty(tmp_path):
    some = [image._replace(pixels=None) if number == 1 else image for number, image in enumerate(outputs())]
    write_images(tmp_path / "out", some, shard_size=2)
    assert [shard.num_images for shard in open_collection(tmp_path / "out").shards] == [1, 2, 1]


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a//b", "", "a/../../b"])
def test_keys_that_leave_the_output_are_refused(tmp_path, key):
    with pytest.raises(UsageError, match="not a relative path"):
        open_sink(tmp_path / "out", "png").write([OutputImage(key, images()[0])])
    assert not (tmp_path / "x.png").exists()


def test_path_and_format_must_agree(tmp_path):
    files = ["x.zip", "x.tar", "x.h5", "x.npz", "x.png", "x.jpg", "x.tar.gz", "x.7z", "x.json"]
    wrong = [("out", "zip"), ("out", "npz"), ("x.zip", "wds"), ("x.npz", "zip"), ("x.png", "npz")]
    for name, format in [*wrong, *((name, "png") for name in files)]:
        with pytest.raises(UsageError, match=f"does not go with --format {format}"):
            open_sink(tmp_path / name, format)
    for name in ("x.h5", "x.png", "x.jpg", "x.tar.gz"):  # not a folder of that name
        with pytest.raises(UsageError, match="which this command does not write"):
            open_sink(tmp_path / name)
    (tmp_path / "x.zip").write_bytes(b"mine")
    with pytest.raises(WouldOverwriteError):
        open_sink(tmp_path / "x.zip").claim(artefact(tmp_path / "x.zip"), overwrite=False)
    with pytest.raises(WouldOverwriteError, match="not made by brics"):
        open_sink(tmp_path / "x.zip").claim(artefact(tmp_path / "x.zip"), overwrite=True)
    write_all(tmp_path / "x.zip")
    assert open_sink(tmp_path / "x.zip").claim(artefact(tmp_path / "x.zip"), overwrite=True) == "new"
    assert zipfile.is_zipfile(tmp_path / "x.zip")


def test_claiming_again_removes_what_a_kill_left(tmp_path):
    claim(artefact(tmp_path / "out"), overwrite=False)
    (tmp_path / "out" / ".failures.jsonl.0a1b2c3d.tmp").write_bytes(b"")
    (tmp_path / "out" / "00000.tar").write_bytes(b"kept")
    assert claim(artefact(tmp_path / "out"), overwrite=False) == "resume"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.tar", "brics.json"]


def test_a_claim_that_was_killed_is_no_claim(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".brics.json.0a1b2c3d.tmp").write_bytes(b"{")
    assert claim(artefact(tmp_path / "out"), overwrite=False) == "new"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["brics.json"]


def artefact(path: Path, sha256: str = "a" * 64, **settings) -> Artefact:
    return Artefact("shards", path, now(), False, (Parent("collection", "/x", sha256),), {"settings": settings})


def test_claims(tmp_path):
    out = tmp_path / "out"
    assert claim(artefact(out, size=8), overwrite=False) == "new"
    assert claim(artefact(out, size=8), overwrite=False) == "resume"
    with pytest.raises(ArtefactError, match="size: was 8, now 9"):
        claim(artefact(out, size=9), overwrite=False)
    with pytest.raises(ArtefactError, match="collection: was aaaaaaaaaaaa, now bbbbbbbbbbbb"):
        claim(artefact(out, "b" * 64, size=8), overwrite=False)
    write_provenance(finished(artefact(out, size=8)))
    assert claim(artefact(out, size=8), overwrite=False) == "complete"
    with pytest.raises(WouldOverwriteError):
        claim(artefact(out, size=9), overwrite=False)
    (out / "00007.tar").write_bytes(b"")
    assert claim(artefact(out, size=9), overwrite=True) == "new"
    assert not (out / "00007.tar").exists()


def test_overwrite_never_empties_a_folder_that_brics_did_not_make(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(WouldOverwriteError, match="not made by brics"):
        claim(artefact(tmp_path), overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_two_writers_at_once(tmp_path):
    with (
        output_lock(tmp_path / "out"),
        pytest.raises(MachineError, match="another brics process"),
        output_lock(tmp_path / "out"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failure_log_forgets_what_is_done_again_and_survives_a_cut_line(tmp_path):
    log = FailureLog(tmp_path, keep=lambda place: False)
    log.add(1, "a", "bad")
    log.add(5, "b", "bad")
    with log.path.open("a") as file:
        file.write('{"place": 0, "ke')
    assert FailureLog(tmp_path, keep=lambda place: place < 4).failures == [(1, "a", "bad")]
    FailureLog(tmp_path, keep=lambda place: False).close()
    assert not log.path.exists()


def test_contact_sheet_has_every_image_where_it_belongs(tmp_path):
    tiles = images(4)
    captions = seed_captions(
        range(4), ["cat", "a name that is much wider than its image is", "\x1b", ""], num_columns=2
    )
    assert captions[0][0] == "seed 0  cat" and captions[1] == ["seed 2  \\x1b", "seed 3  "]
    path = contact_sheet(
        [tiles[:2], tiles[2:]], path=tmp_path / "s.png", row_labels=["one", "two"], title="t", captions=captions
    )
    sheet, side = np.array(Image.open(path)), min(tiles[0].shape[:2])
    scale = -(-128 // side)
    assert side < 128 <= side * scale
    for number, tile in enumerate(tiles):
        large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        (row, column), (height, width) = divmod(number, 2), large.shape[:2]
        top = TITLE_HEIGHT + GAP + row * (height + 2 * CAPTION_HEIGHT + GAP) + 2 * CAPTION_HEIGHT
        left = GAP + column * (width + GAP)
        assert (sheet[top : top + height, left : left + width] == large).all()
        assert sheet[top - CAPTION_HEIGHT : top, left : left + width].std() > 10, "its caption"


def test_shards_take_a_codec_and_nothing_else_does(tmp_path):
    assert open_sink(tmp_path / "s", "wds", codec="webp").settings["codec"] == "webp"
    assert "codec" not in open_sink(tmp_path / "s", "wds", codec="png").settings  # as it was before there was a choice
    for name, format in (("s", "png"), ("s.zip", None), ("s.npz", None), ("s.tar", None)):
        assert open_sink(tmp_path / name, format, codec="png").path.name == name
        with pytest.raises(UsageError, match="--codec webp is for WebDataset shards in a folder"):
            open_sink(tmp_path / name, format, codec="webp")
