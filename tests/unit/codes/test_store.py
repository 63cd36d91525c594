"""Writer, reader and verifier: what goes in comes out, an interruption changes nothing, damage is seen."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from brics_cli.codes import KeyCodeStore, StoreHeader, StoreShard, StoreWriter, dequantise, verify_store
from brics_cli.codes.verify import verify_store_in_child
from brics_cli.errors import ArtefactError, MachineError, TooManyFailuresError, UsageError, WouldOverwriteError
from brics_cli.workspace import Parent, Workspace, read_provenance

SHAPE = (2, 3, 3)
NUM_PER_SHARD = 4
SHARDS = [StoreShard(f"s/{number}", NUM_PER_SHARD, 100, f"{number}" * 64) for number in range(3)]
PARENTS = (Parent("autoencoder", "/ae", "a" * 64), Parent("collection", "/images", "b" * 64))


def header(**changes) -> StoreHeader:
    values = {
        "code_shape": SHAPE, "image_size": 12, "transform": "crop-bicubic/pillow-1", "quantisation": "uint8",
        "source": "/images", "source_sha256": "b" * 64, "num_images": 12, "flipped": True,
        "autoencoder": {"sha256": "a" * 64, "config": {"x": 1}},
    }  # fmt: skip
    return StoreHeader(**{**values, **changes})


def rows_of(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).integers(0, 256, (NUM_PER_SHARD, *SHAPE), dtype=np.uint8)


def write_shard(writer: StoreWriter, shard: int) -> None:
    """Shard 1 has a failed image at index 2; batches of 2 and the rest."""
    kept = [0, 1, 3] if shard == 1 else [0, 1, 2, 3]
    with writer.part(shard) as part:
        for indices in (kept[:2], kept[2:]):
            part.add(
                rows_of(shard)[indices],
                flipped=rows_of(shard)[indices][..., ::-1],
                keys=[f"s/{shard}/ключ{index}" for index in indices],
                indices=indices,
                labels=[index if shard else None for index in indices],
                metas=[{"n": index} if shard == 2 else None for index in indices],
            )
        if shard == 1:
            part.add(rows_of(1)[:0], keys=[], indices=[], failures=[("s/1/ключ2", "damaged")])


def write_store(path: Path, **changes) -> None:
    with StoreWriter(path, header(**changes), SHARDS) as writer:
        for shard in writer.pending:
            write_shard(writer, shard)
        writer.merge(parents=PARENTS)


@pytest.fixture
def store(tmp_path) -> KeyCodeStore:
    write_store(tmp_path / "codes.h5")
    return KeyCodeStore(tmp_path / "codes.h5")


def test_what_goes_in_comes_out(store):
    expected = np.concatenate([rows_of(0), rows_of(1)[[0, 1, 3]], rows_of(2)])
    assert len(store) == 11 and store.code_shape == SHAPE
    assert np.array_equal(store.raw(slice(None)), expected)
    assert np.array_equal(store.raw([10, 0, 5], flipped=True), expected[[10, 0, 5]][..., ::-1])
    assert np.array_equal(store[4], dequantise(expected[4], "uint8")) and store[-1].dtype == np.float32
    assert np.array_equal(store.batch(np.array([1, 1])), dequantise(expected[[1, 1]], "uint8"))
    assert store.keys[4:7] == ["s/1/ключ0", "s/1/ключ1", "s/1/ключ3"]
    assert store.labels.tolist() == [-1] * 4 + [0, 1, 3] + [0, 1, 2, 3]
    assert store.meta(0) is None and store.meta(10) == {"n": 3} and store.metas(6, 8) == [None, {"n": 0}]
    assert store.failures == [{"shard": "s/1", "key": "s/1/ключ2", "reason": "damaged"}]
    assert [(shard["n_in"], shard["n_ok"], shard["n_failed"]) for shard in store.shards] == [
        (4, 4, 0),
        (4, 3, 1),
        (4, 4, 0),
    ]
    assert np.allclose(store.mean, dequantise(expected, "uint8").mean(axis=(0, 2, 3)), atol=1e-6)
    assert store.autoencoder == {"sha256": "a" * 64, "config": {"x": 1}}
    assert (store.transform, store.transform_version, store.image_size) == ("crop-bicubic", "pillow-1", 12)
    assert verify_store(store.path) == []
    with pytest.raises(IndexError):
        store[11]


def test_plain_h5py_reads_it(store):
    with h5py.File(store.path) as file:
        assert file["codes"].chunks is None and file["codes"].dtype == np.uint8
        assert np.array_equal(file["codes"][3], rows_of(0)[3])
        assert file["keys"][0].decode() == "s/0/ключ0"
        assert file["index_in_shard"][()].tolist() == [0, 1, 2, 3, 0, 1, 3, 0, 1, 2, 3]
        assert json.loads(file.attrs["autoencoder"])["sha256"] == "a" * 64


def test_provenance_leads_to_the_parents(store, tmp_path):
    artefact = read_provenance(store.path)
    assert artefact is not None and artefact.kind == "store" and artefact.parents == PARENTS
    assert artefact.details["sha256"] == store.sha256 and "11 codes 2x3x3 uint8, 12 px" in artefact.details["summary"]
    assert Workspace(tmp_path).newest("store").path == store.path


def test_pickles_by_reopening_and_needs_no_torch(store):
    assert np.array_equal(pickle.loads(pickle.dumps(store))[2], store[2])
    code = (
        f"import sys; from brics_cli import KeyCodeStore; KeyCodeStore({str(store.path)!r})[0]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("quantisation", ["uint16", "float16"])
def test_wider_types(tmp_path, quantisation):
    kind = "continuous" if quantisation == "float16" else "bounded"
    settings = header(quantisation=quantisation, flipped=False, num_images=4, code_kind=kind)
    rows = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("<f2") if kind == "continuous" else (
        np.random.default_rng(0).integers(0, 65536, (4, *SHAPE)).astype("<u2"))  # fmt: skip
    with StoreWriter(tmp_path / "c.h5", settings, SHARDS[:1]) as writer:
        with writer.part(0) as part:
            part.add(rows, keys=list("abcd"), indices=range(4))
        writer.merge(parents=PARENTS)
    store = KeyCodeStore(tmp_path / "c.h5")
    assert np.array_equal(store.raw([3, 1]), rows[[3, 1]]) and verify_store(store.path) == []
    with pytest.raises(ArtefactError, match="no flipped codes"):
        store.batch([0], flipped=True)


def rows_and_order(path: Path) -> dict:
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file if name != "stats"}


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_an_interrupted_write_goes_on_to_the_same_rows(tmp_path, store, kept):
    path = tmp_path / "again.h5"
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, header(), SHARDS) as writer:
        for shard in range(kept):
            write_shard(writer, shard)
        with writer.part(2) as part:
            part.add(rows_of(2)[:1], flipped=rows_of(2)[:1], keys=["half"], indices=[0])
            raise KeyboardInterrupt
    assert not path.exists()
    with StoreWriter(path, header(), SHARDS) as writer:
        assert writer.pending == list(range(kept, 3)) and writer.num_failed() == (kept > 1)
        for shard in writer.pending:
            write_shard(writer, shard)
        writer.merge(parents=PARENTS)
    assert rows_and_order(path) == rows_and_order(store.path)
    assert KeyCodeStore(path).sha256 == store.sha256
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.h5", "codes.h5"]


def test_a_finished_store_is_left_alone(store):
    before = store.path.read_bytes()
    with StoreWriter(store.path, header(), SHARDS) as writer:
        assert writer.complete
    assert store.path.read_bytes() == before
    parts = store.path.with_name("codes.h5.parts")  # as a kill between the last rename and the removal leaves it
    parts.mkdir()
    with StoreWriter(store.path, header(), SHARDS) as writer:
        assert writer.complete
    assert not parts.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"autoencoder": {"sha256": "c" * 64, "config": {}}}, "autoencoder: was aaaaaaaaaaaa, now cccccccccccc"),
        ({"transform": "adm/pillow-1"}, "transform: was crop-bicubic/pillow-1, now adm/pillow-1"),
        ({"source_sha256": "d" * 64}, "source: was bbbbbbbbbbbb, now dddddddddddd"),
        ({"quantisation": "uint16"}, "quantisation: was uint8, now uint16"),
    ],
)
def test_other_inputs_are_refused_with_what_differs(tmp_path, store, change, said):
    with pytest.raises(ArtefactError, match=said), StoreWriter(store.path, header(**change), SHARDS):
        pass
    unfinished = tmp_path / "half.h5"
    with StoreWriter(unfinished, header(), SHARDS) as writer:
        write_shard(writer, 0)
    with pytest.raises(ArtefactError, match=said), StoreWriter(unfinished, header(**change), SHARDS):
        pass
    with StoreWriter(unfinished, header(**change), SHARDS, overwrite=True) as writer:
        assert writer.pending == [0, 1, 2]


def test_what_is_no_store_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "codes.h5"
    path.write_text("precious")
    with pytest.raises(WouldOverwriteError), StoreWriter(path, header(), SHARDS):
        pass
    assert path.read_text() == "precious"
    (tmp_path / "d.h5").mkdir()
    with pytest.raises(UsageError, match="folder"), StoreWriter(tmp_path / "d.h5", header(), SHARDS):
        pass
    with pytest.raises(WouldOverwriteError), StoreWriter(tmp_path, header(), SHARDS):
        pass


def test_two_writers_at_once(tmp_path):
    with (
        StoreWriter(tmp_path / "c.h5", header(), SHARDS),
        pytest.raises(MachineError, match="another brics process"),
        StoreWriter(tmp_path / "c.h5", header(), SHARDS),
    ):
        pass


def test_a_truncated_part_is_written_again(tmp_path):
    path = tmp_path / "c.h5"
    with StoreWriter(path, header(), SHARDS) as writer:
        for shard in range(3):
            write_shard(writer, shard)
    part = next((tmp_path / "c.h5.parts").glob("*1.h5"))
    part.write_bytes(part.read_bytes()[:1000])
    with StoreWriter(path, header(), SHARDS) as writer:
        assert writer.pending == [1] and "unreadable" in writer.redone[0]


def test_a_part_with_other_rows_is_seen_at_the_merge(tmp_path):
    with StoreWriter(tmp_path / "c.h5", header(), SHARDS) as writer:
        for shard in range(3):
            write_shard(writer, shard)
        with h5py.File(next((tmp_path / "c.h5.parts").glob("*1.h5")), "r+") as file:
            file["codes"][0, 0, 0, 0] ^= 1
        with pytest.raises(ArtefactError, match="sha256"):
            writer.merge(parents=PARENTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.h5.parts"]


def test_images_that_are_neither_encoded_nor_failed_are_a_bug(tmp_path):
    with StoreWriter(tmp_path / "c.h5", header(), SHARDS) as writer:
        with pytest.raises(AssertionError, match="0 \\+ 1 of 4"), writer.part(0) as part:
            part.add(rows_of(0)[:0], keys=[], indices=[], failures=[("a", "bad")])
        assert 0 in writer.pending


def test_no_image_at_all_makes_no_store(tmp_path):
    with StoreWriter(tmp_path / "c.h5", header(num_images=4), SHARDS[:1]) as writer:
        with writer.part(0) as part:
            part.add(rows_of(0)[:0], keys=[], indices=[], failures=[(str(index), "bad") for index in range(4)])
        with pytest.raises(TooManyFailuresError, match="none of 4 images"):
            writer.merge(parents=PARENTS)
    assert not (tmp_path / "c.h5").exists()


def test_files_that_are_no_store(tmp_path, store):
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = 1
    for size in (0, 100, 3000, store.path.stat().st_size - 10):
        (tmp_path / f"cut{size}.h5").write_bytes(store.path.read_bytes()[:size])
    for name, said in [
        ("nowhere.h5", "is missing"), ("text.h5", "not an HDF5 file"), ("other.h5", "something else"), (".", "folder"),
        ("cut0.h5", "not an HDF5"), ("cut100.h5", "truncated"), ("cut3000.h5", "truncated"),
        (f"cut{store.path.stat().st_size - 10}.h5", "truncated"),
    ]:  # fmt: skip
        with pytest.raises(ArtefactError, match=said):
            KeyCodeStore(tmp_path / name)


def test_a_newer_format_says_upgrade(store):
    with h5py.File(store.path, "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(ArtefactError, match="pip install -U"):
        KeyCodeStore(store.path)


MUTATIONS = {
    "codes": lambda file: file["codes"].__setitem__((0, 0, 0, 0), file["codes"][0, 0, 0, 0] ^ 1),
    "codes_flipped": lambda file: file["codes_flipped"].__setitem__(
        (5, 1, 2, 2), file["codes_flipped"][5, 1, 2, 2] ^ 8
    ),
    "keys": lambda file: file["keys"].__setitem__(3, b"other"),
    "key twice": lambda file: file["keys"].__setitem__(1, file["keys"][0]),
    "labels": lambda file: file["labels"].__setitem__(9, 77),
    "shard_id": lambda file: file["shard_id"].__setitem__(0, 2),
    "index_in_shard": lambda file: file["index_in_shard"].__setitem__(1, 3),
    "meta": lambda file: file["meta"].__setitem__(10, "{}"),
    "mean": lambda file: file["stats/mean"].__setitem__(0, 0.9),
    "histogram": lambda file: file["stats/histogram"].__setitem__((0, 0), 99),
    "sha256": lambda file: file.attrs.__setitem__("sha256", "0" * 64),
    "failures": lambda file: file.__delitem__("failures"),
    "meta gone": lambda file: file.__delitem__("meta"),
    "code_shape": lambda file: file.attrs.__setitem__("code_shape", [2, 3, 4]),
    "autoencoder": lambda file: file.attrs.__setitem__("autoencoder", "{}"),
    "n_ok": lambda file: file["shards"].__setitem__("n_ok", np.array([3, 4, 4])),
    "n_failed": lambda file: file["shards"].__setitem__("n_failed", np.array([1, 1, 0])),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_verify_sees_every_mutation(store, name):
    with h5py.File(store.path, "r+") as file:
        MUTATIONS[name](file)
    assert verify_store(store.path) != []


def test_verify_survives_garbage_in_its_child(store, tmp_path):
    """Bytes overwritten in HDF5's structures are found, and the parent lives; test_mutations.py does many."""
    data = bytearray(store.path.read_bytes())
    generator = np.random.default_rng(0)
    for position in generator.integers(0, 2048, 30):  # HDF5's own structures
        data[position] = int(generator.integers(0, 256))
    path = tmp_path / "mutated.h5"
    path.write_bytes(data)
    assert verify_store_in_child(path, limit_s=20) != []
    assert verify_store_in_child(store.path) == []


def test_a_full_disk_is_an_ordinary_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "x", disk]).returncode
    ):
        pytest.skip("cannot mount a tmpfs here")
    try:
        big = [StoreShard("0", 40_000, 0, "0" * 64)]
        with (
            StoreWriter(disk / "c.h5", header(num_images=40_000), big) as writer,
            pytest.raises(OSError) as caught,
            writer.part(0),
        ):
            pass
        assert caught.value.errno == 28
        assert [path.name for path in (disk / "c.h5.parts").iterdir() if path.suffix == ".h5"] == []
    finally:
        subprocess.run(["umount", disk], check=True)
