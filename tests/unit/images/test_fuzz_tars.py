"""Tars of any members and names: the right images in the right order, or one clear error; never anything else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import grey, read_all, write_images

from brics_cli.errors import ArtefactError, BricsError, UsageError
from brics_cli.images import load_shards, open_collection
from brics_cli.images.pixels import load_pixels
from brics_cli.images.sinks import OutputImage
from brics_cli.images.sources.memory import Descriptor
from brics_cli.images.sources.tars import plain_members, tarfile_members

IMAGES = [grey(value) for value in range(4)]
# parts that have tripped others, and any text at all
PARTS = st.sampled_from(["a", "b", "my.photo.1", "my.photo.2", "..", ".", "", ".hidden", "ü", "x" * 120, "%2E", "a b"])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
STEMS = st.lists(PARTS | TEXT, min_size=1, max_size=3).map("/".join)
EXTENSIONS = st.sampled_from(["png", "PNG", "jpg", "cls", "json", "txt", "npy", "tar", ""])
MEMBER = st.tuples(STEMS, EXTENSIONS, st.integers(0, 3), st.sampled_from(["image", "text", "empty", "folder"]))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def write(path: Path, members: list[tuple[str, str, int, str]], format: int) -> dict[str, bytes] | None:
    """Write the tar; its regular files by name, or None when Python's own tarfile cannot write such names."""
    files = {}
    try:
        with tarfile.open(path, "w", format=format) as tar:
            for stem, extension, number, content in members:
                name = f"{stem}.{extension}" if extension else stem
                info = tarfile.TarInfo(name)
                data = {"image": IMAGES[number], "text": b'{"n": 1}', "empty": b"", "folder": b""}[content]
                info.type = tarfile.DIRTYPE if content == "folder" else tarfile.REGTYPE
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                if content != "folder":
                    files[name] = data
    except ValueError:
        return None
    return files


def check_any_tar(folder: Path, members: list[tuple[str, str, int, str]], format: int) -> None:
    path = folder / "x.tar"
    files = write(path, members, format)
    if files is None:
        return
    window = Descriptor.of(path), 0, path.stat().st_size
    plain = plain_members(*window)
    assert plain is None or plain == tarfile_members(str(path), *window)
    try:
        collection = open_collection(path)
    except (ArtefactError, UsageError) as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    read = read_all(collection)
    keys = [raw.key for raw in read]
    assert keys == list(collection.keys()) and len(set(keys)) == len(keys)
    for raw in read:
        assert raw.key.startswith("x/") and ".." not in raw.key.split("/") and raw.key.encode()
        assert raw.data in files.values()
    batches = list(load_shards(collection, transform="crop-bicubic", size=4))
    good = {key: int(image[0, 0, 0]) for batch in batches for key, image in zip(batch.keys, batch.images, strict=True)}
    assert {raw.key for raw in read if raw.data in IMAGES} == set(good)
    assert all(IMAGES[good[raw.key]] == raw.data for raw in read if raw.key in good)
    repack(folder, collection, read)


def repack(folder: Path, collection, read: list) -> None:
    """What our sink makes of such keys, webdataset and we read back the same."""
    usable = [raw for raw in read if raw.data in IMAGES]
    try:
        images = (
            OutputImage(raw.key, load_pixels(raw.data, transform="crop-bicubic", size=4), raw.label) for raw in usable
        )
        write_images(folder / "y.tar", images)
        again = read_all(open_collection(folder / "y.tar")) if usable else []
    except BricsError as error:
        assert "twice" in str(error)  # `a.b` beside `a%2Eb`: refused, never merged
        return
    assert len(again) == len(usable)
    theirs = list(webdataset.WebDataset(str(folder / "y.tar"), shardshuffle=False)) if usable else []
    assert [sample["__key__"] for sample in theirs] == [raw.key.removeprefix("y/") for raw in again]
    assert [sample["png"] for sample in theirs] == [raw.data for raw in again]


@settings(max_examples=80, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MEMBER, max_size=6), FORMATS)
def test_any_members_and_names(tmp_path_factory, members, format):
    check_any_tar(tmp_path_factory.mktemp("fuzz"), members, format)


@pytest.mark.slow
@settings(max_examples=3000, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MEMBER, max_size=12), FORMATS)
def test_any_members_and_names_at_length(tmp_path_factory, members, format):
    check_any_tar(tmp_path_factory.mktemp("fuzz"), members, format)


@settings(max_examples=150, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4))
def test_our_reading_of_headers_is_tarfiles(tmp_path_factory, changes):
    """Of mutated headers too: ours says the same, or leaves it to tarfile."""
    path = tmp_path_factory.mktemp("fuzz") / "x.tar"
    write(path, [("a", "png", 1, "image"), ("b", "", 0, "folder"), ("c", "png", 2, "image")], tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % 2560] = value
    path.write_bytes(data)
    window = Descriptor.of(path), 0, path.stat().st_size
    plain = plain_members(*window)
    if plain is not None:
        assert plain == tarfile_members(str(path), *window)
