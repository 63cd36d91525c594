"""Stores that are folders: one store of many parts, read as the file that they would have been merged to."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_files import PARENTS, SHAPE, header, write_store

from brics_cli.codes import (
    KeyCodeStore,
    StoreShard,
    StoreWriter,
    plan_join,
    verify,
    verify_store,
    verify_store_in_child,
    write_join,
)
from brics_cli.codes.part_files import PartFiles
from brics_cli.errors import ArtefactError, MachineError, TooManyFailuresError, UsageError, WouldOverwriteError
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import Workspace, read_provenance

NAMES = ["s/0", "100%", "s2", "x" * 200]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "codes", NAMES)


def part(folder: Path, number: int) -> Path:
    return KeyCodeStore(folder).part_paths[number]


def join(out: Path, *paths: Path, overwrite: bool = False) -> KeyCodeStore:
    write_join(plan_join([KeyCodeStore(path) for path in paths]), out, overwrite=overwrite, reporter=SilentReporter())
    return KeyCodeStore(out)


def test_it_says_what_the_file_would_say(folder, tmp_path):
    one, many = KeyCodeStore(write_store(tmp_path / "codes.h5", NAMES)), KeyCodeStore(folder)
    assert many.sha256 == one.sha256 and many.identity == one.identity and many.header == one.header
    assert (len(many), many.is_folder, one.is_folder) == (len(one), True, False)
    for rows in (slice(None), slice(2, 9, 3), slice(5, 5), [11, 0, -1, 4, 4], np.array([[0, 5], [7, 2]]), []):
        for flipped in (False, True):
            assert np.array_equal(many.raw(rows, flipped=flipped), one.raw(rows, flipped=flipped))
    assert np.array_equal(many[7], one[7]) and np.array_equal(many[-1], one[-1])
    assert np.array_equal(many.__getitems__([3, 9]), one.__getitems__([3, 9]))
    assert many.keys == one.keys and np.array_equal(many.key_bytes(), one.key_bytes())
    assert many.labels.tolist() == one.labels.tolist() and many.metas(0, 12) == one.metas(0, 12)
    assert [many.meta(row) for row in range(-2, 12)] == [one.meta(row) for row in range(-2, 12)]
    assert many.metas(2, 8) == one.metas(2, 8) and many.metas(4, 4) == [] and many.num_metas == one.num_metas
    assert many.shards == one.shards and many.failures == one.failures and many.shard_starts == one.shard_starts
    assert np.array_equal(many.mean, one.mean) and np.array_equal(many.histogram, one.histogram)
    for row in (12, -13):
        with pytest.raises(IndexError):
            many[row]
        with pytest.raises(IndexError):
            many.raw([0, row])
    assert np.array_equal(pickle.loads(pickle.dumps(many))[3], one[3])
    assert verify_store(folder) == verify_store(folder / "index.h5") == []


def test_h5py_alone_reads_it_as_one_file_from_anywhere(folder, tmp_path, monkeypatch):
    write_store(tmp_path / "codes.h5", NAMES)
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    with h5py.File(moved / "index.h5") as many, h5py.File(tmp_path / "codes.h5") as one:
        assert {*many} == {*one, "parts"} and many.attrs["format_version"] == 2 and one.attrs["format_version"] == 1
        for name in one:
            if name != "stats":
                assert many[name].dtype == one[name].dtype and np.array_equal(many[name][()], one[name][()]), name


def test_no_part_is_opened_before_it_is_read(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        PartFiles, "open", lambda self, number, open=PartFiles.open: (opened.append(number), open(self, number))[1]
    )
    store = KeyCodeStore(folder)
    assert len(store) == 12 and store.header and store.shards and store.num_bytes > 4 * 3 * 36 and opened == []
    store.raw([4, 5, 10]), store.raw([3])
    assert opened == [1, 3], "each once"


@pytest.mark.parametrize(("quantisation", "flips"), [("uint16", True), ("float16", False)])
def test_wider_types_and_shards_without_rows(tmp_path, quantisation, flips):
    made_of = header(num_images=6, quantisation=quantisation, flipped=flips)
    rows = np.random.default_rng(0).integers(0, 2**14, (2, *SHAPE)).astype(made_of.dtype)
    for path in (tmp_path / "codes", tmp_path / "codes.h5"):
        with StoreWriter(path, made_of, [StoreShard(name, 2, 9, "0" * 64) for name in "abc"]) as writer:
            for number, name in enumerate("abc"):
                with writer.part(number) as made:
                    keys = [f"{name}/0", f"{name}/1"]
                    if name == "b":
                        made.add(rows[:0], keys=[], indices=[], failures=[(key, "damaged") for key in keys])
                    else:
                        made.add(rows, flipped=rows + 1 if flips else None, keys=keys, indices=[0, 1])
            writer.merge(parents=PARENTS)
    many, one = KeyCodeStore(tmp_path / "codes"), KeyCodeStore(tmp_path / "codes.h5")
    assert np.array_equal(many.raw([3, 0, 2]), one.raw([3, 0, 2])) and many.keys == one.keys == [
        "a/0",
        "a/1",
        "c/0",
        "c/1",
    ]
    assert many.has_flipped is flips and many.metas(0, 4) == [None] * 4 and verify_store(tmp_path / "codes") == []
    if not flips:
        with pytest.raises(ArtefactError, match="holds no flipped codes"):
            many.raw([0], flipped=True)


def test_more_parts_than_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("brics_cli.codes.part_files.MOST_MAPPED", 4)
    names = [f"s{number}" for number in range(9)]
    many, one = KeyCodeStore(write_store(tmp_path / "c", names)), KeyCodeStore(write_store(tmp_path / "c.h5", names))
    for seed in range(5):
        rows = np.random.default_rng(seed).integers(0, 27, 20)
        assert np.array_equal(many.raw(rows), one.raw(rows))
    assert many._parts is not None and len(many._parts._maps) <= 4
    for row in range(27):
        many.will_need(row)
    assert len(many._parts._maps) <= 4


def test_it_is_found_and_leads_to_its_parents(folder, tmp_path):
    artefact = read_provenance(folder)
    assert artefact is not None and artefact.kind == "store" and artefact.parents == PARENTS
    assert artefact.details["sha256"] == KeyCodeStore(folder).sha256
    assert Workspace(tmp_path).newest("store").path == folder


def swap(folder: Path) -> None:
    one, other = part(folder, 0), part(folder, 2)
    shutil.copy(one, folder / "x")
    other.replace(one), (folder / "x").replace(other)


def another_run(folder: Path) -> None:
    """A part of the same shard, number of images and length, of other codes."""
    with StoreWriter(
        folder.with_name("other"), header(num_images=4), [StoreShard("s2", 4, 100, "2".zfill(64))]
    ) as writer:
        with writer.part(0) as made:
            keys, kept = [f"s2/ключ{index}" for index in (0, 1, 3)], [0, 1, 3]
            rows = np.zeros((3, *SHAPE), np.uint8)
            made.add(rows, flipped=rows, keys=keys, indices=kept, labels=[None, 1, 3],
                     failures=[("s2/ключ2", "damaged")], metas=[None, {"n": 1}, {"n": 3}])  # fmt: skip
        shutil.copy(next(writer.parts_directory.glob("*.h5")), part(folder, 2))


DAMAGES = {
    "is missing": lambda folder: part(folder, 2).unlink(),
    "was cut short: 1,000 of": lambda folder: os.truncate(part(folder, 2), 1000),
    "has become longer": lambda folder: os.truncate(part(folder, 2), 10**6),
    "holds other rows than its store was made of": another_run,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_part_that_is_not_the_one_is_one_line_that_names_it(folder, said):
    path = part(folder, 2)
    DAMAGES[said](folder)
    with pytest.raises(ArtefactError) as caught:
        KeyCodeStore(folder).raw([0, 7])
    assert caught.value.what.startswith(f"{path} {said}") and "the command that encoded it" in str(caught.value.next)
    for broken in (verify_store(folder), verify_store_in_child(folder)):
        assert len(broken) == 1 and str(path) in broken[0], broken
    with pytest.raises(ArtefactError, match=r"s2.h5"):
        join(folder.with_name("one.h5"), folder)
    if said != "is missing":
        assert len(KeyCodeStore(folder).raw([0, 3])) == 2, "the others are read"


def test_parts_that_changed_places_are_seen(folder):
    swap(folder)
    with pytest.raises(ArtefactError, match=r"s%2F0.h5"):
        KeyCodeStore(folder)[0]
    assert len(verify_store(folder)) == 2


def test_a_part_that_is_cut_while_it_is_mapped_does_not_end_the_process(folder, monkeypatch):
    monkeypatch.setattr("brics_cli.codes.part_files.LOOK_AGAIN_S", -1)
    store = KeyCodeStore(folder)
    store.raw(slice(None))
    os.truncate(part(folder, 0), 10)
    with pytest.raises(ArtefactError, match="was cut short: 10 of"):
        store.raw([0])


def test_a_folder_that_is_no_whole_store(folder, tmp_path):
    index = folder / "index.h5"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match=r"index.h5 is damaged or truncated"):
        KeyCodeStore(folder)
    shutil.copy(write_store(tmp_path / "codes.h5", NAMES), index)
    with pytest.raises(ArtefactError, match=r"index.h5 is a store of its own, and no index of parts"):
        KeyCodeStore(folder)
    index.unlink()
    with pytest.raises(ArtefactError, match="holds parts of a key-code store that is not finished"):
        KeyCodeStore(folder)
    assert read_provenance(folder) is None
    (tmp_path / "elsewhere.h5").write_bytes(whole)
    with pytest.raises(ArtefactError, match="is the index of a store that is a folder, and not in it"):
        KeyCodeStore(tmp_path / "elsewhere.h5")
    index.write_bytes(whole)
    shutil.rmtree(folder / "parts")
    with pytest.raises(ArtefactError, match=r"s%2F0.h5 is missing and 3 more, of 4 parts"):
        KeyCodeStore(folder)
    with pytest.raises(ArtefactError, match="is a folder, not a key-code store"):
        KeyCodeStore(tmp_path)


@pytest.mark.parametrize("column", ["codes", "codes_flipped", "keys", "labels", "index_in_shard"])
def test_verify_sees_what_changed_in_a_part(folder, monkeypatch, column):
    monkeypatch.setattr(verify, "WORTH_PROCESSES", 0)
    with h5py.File(part(folder, 1), "r") as file:
        place = file[column].id.get_offset()
    data = bytearray(part(folder, 1).read_bytes())
    data[place] ^= 1
    part(folder, 1).write_bytes(data)
    broken = verify_store(folder)
    assert broken and all(line.startswith(str(part(folder, 1))) for line in broken) and "sha256" in broken[-1]


def test_processes_verify_the_parts(folder, monkeypatch):
    data = bytearray(part(folder, 3).read_bytes())
    with h5py.File(part(folder, 3), "r") as file:
        data[file["codes"].id.get_offset()] ^= 1
    part(folder, 3).write_bytes(data)
    monkeypatch.setattr(verify, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(verify, "MOST_AT_ONCE", 2)
    assert verify_store_in_child(folder) == [f"{part(folder, 3)}: its rows are not those that were written (sha256)"]


def test_what_is_not_in_the_index_is_said(folder):
    shutil.copy(part(folder, 0), folder / "parts" / "copy.h5")
    assert verify_store(folder) == [f"{folder}/parts/copy.h5: not in the index, so that nothing reads it"]


def test_an_interrupted_run_goes_on_with_what_is_missing(folder):
    """Also that of a finished one, whose index and damaged part were removed, as the message says."""
    sha256, parts = KeyCodeStore(folder).sha256, KeyCodeStore(folder).part_paths
    kept = parts[0].stat().st_ino
    parts[1].unlink(), (folder / "index.h5").unlink()
    parts[2].write_bytes(b"cut")
    shards = [StoreShard(name, 4, 100, f"{len(name):064d}") for name in NAMES]
    with StoreWriter(folder, header(num_images=16), shards) as writer:
        assert writer.pending == [1, 2] and not writer.complete and len(writer.redone) == 1
        with pytest.raises(MachineError, match="another brics process is writing"):
            StoreWriter(folder, header(num_images=16), shards).__enter__()
    assert KeyCodeStore(write_store(folder, NAMES, pending_only=True)).sha256 == sha256
    assert parts[0].stat().st_ino == kept and verify_store(folder) == []
    with StoreWriter(folder, header(num_images=16), shards) as writer:
        assert writer.complete


def test_what_is_there_is_kept_unless_it_is_to_be_overwritten(folder, tmp_path):
    others = [StoreShard("other", 4, 100, "0" * 64)]
    for state in ("finished", "unfinished"):
        with pytest.raises(ArtefactError, match="num_images: was 16, now 4"):
            StoreWriter(folder, header(num_images=4), others).__enter__()
        if state == "finished":
            (folder / "index.h5").rename(tmp_path / "index.h5")
    (tmp_path / "index.h5").rename(folder / "index.h5")
    (folder / "notes.txt").write_text("mine")
    for overwrite, said in ((True, "holds files that brics did not make"), (False, "num_images")):
        with pytest.raises((WouldOverwriteError, ArtefactError), match=said):
            StoreWriter(folder, header(num_images=4), others, overwrite=overwrite).__enter__()
    (folder / "notes.txt").unlink()
    with StoreWriter(folder, header(num_images=4), others, overwrite=True) as writer:
        assert writer.pending == [0] and not (folder / "index.h5").exists() and not list(folder.glob("parts/*.h5"))
    with pytest.raises(ArtefactError, match="holds the beginning of another store"):
        write_store(folder, NAMES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(WouldOverwriteError):
            StoreWriter(tmp_path / "images", header(num_images=4), others, overwrite=overwrite).__enter__()
    (tmp_path / "empty").mkdir()
    write_store(tmp_path / "empty", NAMES)


def test_overwriting_the_same_store_makes_all_of_it_again(folder):
    shards = [StoreShard(name, 4, 100, f"{len(name):064d}") for name in NAMES]
    with StoreWriter(folder, header(num_images=16), shards, overwrite=True) as writer:
        assert writer.pending == [0, 1, 2, 3]


def test_no_image_at_all_makes_no_store(tmp_path):
    with StoreWriter(tmp_path / "c", header(num_images=1), [StoreShard("a", 1, 9, "0" * 64)]) as writer:
        with writer.part(0) as made:
            made.add(np.empty((0, *SHAPE), np.uint8), keys=[], indices=[], failures=[("a/0", "damaged")])
        with pytest.raises(TooManyFailuresError, match="a/0: damaged"):
            writer.merge(parents=PARENTS)
    assert not (tmp_path / "c" / "index.h5").exists()


def test_one_file_of_it_is_the_file_of_one_run(folder, tmp_path):
    one = KeyCodeStore(write_store(tmp_path / "codes.h5", NAMES))
    merged = join(tmp_path / "merged.h5", folder)
    with h5py.File(merged.path) as ours, h5py.File(one.path) as theirs:
        assert {*ours} == {*theirs}
        assert all(np.array_equal(ours[name][()], theirs[name][()]) for name in ours if name != "stats")
        assert {name for name in theirs.attrs if str(ours.attrs[name]) != str(theirs.attrs[name])} == {
            "created", "provenance", "seal",
        }  # fmt: skip
    assert merged.artefact.parents == PARENTS and verify_store(merged.path) == []
    assert write_join(plan_join([KeyCodeStore(folder)]), merged.path, reporter=SilentReporter()) is None


def test_folders_are_joined_without_a_copy(tmp_path):
    """Parts of one collection, and one that it has grown by: the same rows as files of them."""
    for form, ending in (("folder", ""), ("file", ".h5")):
        for number in (1, 2):
            names = [f"s{shard}" for shard in range(number - 1, 5, 2)]
            write_store(tmp_path / f"{form}-{number}{ending}", names, part=f"{number}/2")
        write_store(tmp_path / f"{form}-more{ending}", ["s0"], source="/more", source_sha256="c" * 64, keys="t0")
    halves = [tmp_path / "folder-1", tmp_path / "folder-2"]
    whole = join(tmp_path / "all", *halves)
    assert whole.sha256 == join(tmp_path / "all.h5", tmp_path / "file-1.h5", tmp_path / "file-2.h5").sha256
    assert whole.part_paths[1].samefile(KeyCodeStore(halves[1]).part_paths[0]) and verify_store(whole.path) == []
    assert write_join(plan_join([KeyCodeStore(each) for each in halves]), whole.path, reporter=SilentReporter()) is None
    grown = join(tmp_path / "grown", whole.path, tmp_path / "folder-more")
    assert grown.sha256 == join(tmp_path / "grown.h5", tmp_path / "all.h5", tmp_path / "file-more.h5").sha256
    assert grown.shards[-1]["name"] == "s0~2" and verify_store(grown.path) == []
    with pytest.raises(UsageError, match=r"all.h5 is one file"):
        join(tmp_path / "no", tmp_path / "all.h5", tmp_path / "folder-more")
    with pytest.raises(ArtefactError, match=r"the image 's0/ключ0' is in .*all and in .*folder-1"):
        join(tmp_path / "no", whole.path, halves[0])


def test_two_parts_with_the_same_images_are_not_joined(tmp_path):
    with pytest.raises(ArtefactError, match="the image 'same/ключ0' is twice in"):
        join(tmp_path / "one.h5", write_store(tmp_path / "twice", ["a", "b"], keys="same"))
