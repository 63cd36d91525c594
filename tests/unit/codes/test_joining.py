"""Joining stores: parts give the whole store, others follow one another, nothing is taken twice or left out."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from store_files import write_store

from brics_cli.codes import KeyCodeStore, plan_join, verify_store, write_join
from brics_cli.errors import ArtefactError, UsageError, WouldOverwriteError
from brics_cli.runtime.reporting import SilentReporter

NAMES = [f"s{number}" for number in range(5)]


def contents(path: Path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file if name != "stats"}


def join(out: Path, *paths: Path, overwrite: bool = False) -> KeyCodeStore:
    write_join(plan_join([KeyCodeStore(path) for path in paths]), out, overwrite=overwrite, reporter=SilentReporter())
    return KeyCodeStore(out)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write_store(tmp_path / f"{part}.h5", NAMES[part - 1 :: 2], part=f"{part}/2") for part in (1, 2)]


def test_all_parts_give_the_store_of_one_run_in_whatever_order(tmp_path, parts):
    whole = KeyCodeStore(write_store(tmp_path / "whole.h5", NAMES))
    joined = join(tmp_path / "joined.h5", parts[1], parts[0])
    assert contents(joined.path) == contents(whole.path)
    assert joined.sha256 == whole.sha256 and joined.identity == whole.identity
    assert np.allclose(joined.mean, whole.mean, atol=1e-6) and np.allclose(joined.std, whole.std, atol=1e-6)
    assert joined.artefact.parents == whole.artefact.parents
    assert joined.artefact.details == whole.artefact.details
    assert verify_store(joined.path) == []


def test_a_missing_part_is_named(tmp_path, parts):
    other = write_store(tmp_path / "other.h5", ["t0"], source="/other", source_sha256="c" * 64)
    with pytest.raises(ArtefactError, match=r"of the parts of /images these are missing: 2/2.*--part 2/2"):
        join(tmp_path / "joined.h5", parts[0], other)
    assert not (tmp_path / "joined.h5").exists()


def test_a_collection_grows(tmp_path):
    first = write_store(tmp_path / "a.h5", ["s0", "s1"])
    second = write_store(tmp_path / "b.h5", ["t0"], source="/more", source_sha256="c" * 64)
    joined = join(tmp_path / "joined.h5", first, second)
    stores = [KeyCodeStore(first), KeyCodeStore(second)]
    assert joined.keys == stores[0].keys + stores[1].keys
    assert np.array_equal(joined.raw(slice(None)), np.concatenate([store.raw(slice(None)) for store in stores]))
    assert joined.failures == stores[0].failures + stores[1].failures
    assert joined.meta(1) == {"n": 1} and joined.labels.tolist() == [-1, 1, 3] * 3
    assert joined.source == "/images + /more"
    kinds = [(parent.kind, Path(parent.path).name) for parent in joined.artefact.parents]
    assert kinds == [("autoencoder", "ae"), ("collection", "images"), ("store", "a.h5"), ("store", "b.h5")]
    assert verify_store(joined.path) == []
    third = write_store(tmp_path / "c.h5", ["u0"], source="/third", source_sha256="d" * 64)
    assert len(join(tmp_path / "again.h5", joined.path, third)) == 12


def test_names_of_classes_are_kept_and_must_agree(tmp_path):
    """Labels are 1 and 3; `write_store` gives them to every shard."""
    names = ("ant", "bee", "cat", "dog")
    named = write_store(tmp_path / "a.h5", ["s0"], class_names=names)
    assert KeyCodeStore(named).class_names == names and KeyCodeStore(named).header.class_names == names
    again = write_store(tmp_path / "b.h5", ["t0"], class_names=(*names, "eel"))
    joined = join(tmp_path / "ab.h5", named, again)
    assert joined.class_names == (*names, "eel") and verify_store(joined.path) == []
    for other, said in (
        (("ant", "bee", "cow", "dog"), r"class 2 is 'cat' in .*a\.h5 and 'cow' in .*c\.h5"),
        ((), r"the classes of .*a\.h5 have names, and those of .*c\.h5 are numbers up to 3"),
    ):
        (tmp_path / "c.h5").unlink(missing_ok=True)
        with pytest.raises(ArtefactError, match=said):
            join(tmp_path / "ac.h5", named, write_store(tmp_path / "c.h5", ["u0"], class_names=other))


def test_names_of_classes_that_were_changed_are_seen(tmp_path):
    path = write_store(tmp_path / "a.h5", ["s0"], class_names=("ant", "bee", "cat", "dog"))
    with h5py.File(path, "r+") as file:
        file["class_names"][0] = b"cow"
    assert verify_store(path) == ["the names of classes are not those that were written (sha256)"]
    with h5py.File(path, "r+") as file:
        file["class_names"][0] = b"\xff"
    with pytest.raises(ArtefactError, match="dataset 'class_names' cannot be read"):
        _ = KeyCodeStore(path).class_names
    with h5py.File(path, "r+") as file:
        del file["class_names"]
    assert verify_store(path) == ["the header, the tables or the statistics are not those that were written (seal)"]


def test_shards_of_one_name_stay_apart(tmp_path):
    """Folders call their shards 00000, 00001 ...; keys tell images apart."""
    first = write_store(tmp_path / "a.h5", ["00000"])
    second = write_store(tmp_path / "b.h5", ["00000"], source="/more", source_sha256="c" * 64)
    with h5py.File(second, "r+") as file:
        file["keys"][...] = np.char.replace(file["keys"][()], b"00000/", b"other/")
    with pytest.raises(ArtefactError, match=r"shard 00000 of .*b\.h5 is damaged"):  # its rows' sha256 was not mended
        join(tmp_path / "joined.h5", first, second)
    assert list(tmp_path.glob("joined*")) == [] and list(tmp_path.glob(".*")) == []
    with h5py.File(second, "r+") as file:
        keys = file["keys"][()]
        from brics_cli.codes.format import RowHash

        rows = RowHash()
        rows.add(file["codes"][()], file["codes_flipped"][()])
        metas = [text.decode() for text in file["meta"][()]]
        table = file["shards"][()]
        table["sha256"] = rows.hexdigest(keys, file["labels"][()], file["index_in_shard"][()], metas)
        file["shards"][...] = table
    joined = join(tmp_path / "joined.h5", first, second)
    assert [shard["name"] for shard in joined.shards] == ["00000", "00000~2"]
    assert [failure["shard"] for failure in joined.failures] == ["00000", "00000~2"]
    assert verify_store(joined.path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"autoencoder": {"sha256": "c" * 64, "config": {}}}, "autoencoder: was aaaaaaaaaaaa, now cccccccccccc"),
        ({"transform": "adm/pillow-1"}, "transform: was crop-bicubic/pillow-1, now adm/pillow-1"),
        ({"precision": "bf16"}, "precision: was fp32, now bf16"),
        ({"image_size": 16}, "image_size: was 12, now 16"),
    ],
)
def test_stores_that_differ_are_refused_with_what_differs(tmp_path, change, said):
    first = write_store(tmp_path / "a.h5", ["s0"])
    with pytest.raises(ArtefactError, match=said):
        join(tmp_path / "j.h5", first, write_store(tmp_path / "b.h5", ["t0"], **change))


def test_an_image_in_two_stores_is_refused(tmp_path):
    paths = [write_store(tmp_path / "a.h5", ["s0", "s1"]), write_store(tmp_path / "b.h5", ["s1", "s2"])]
    with pytest.raises(ArtefactError, match=r"the image 's1/ключ0' is in .*a\.h5 and in .*b\.h5"):
        join(tmp_path / "j.h5", *paths)
    with pytest.raises(UsageError, match="at least two"):
        join(tmp_path / "j.h5", paths[0])


def test_an_existing_file_is_kept_unless_it_is_this_store(tmp_path, parts):
    out = tmp_path / "joined.h5"
    out.write_text("precious")
    with pytest.raises(WouldOverwriteError):
        join(out, *parts)
    assert out.read_text() == "precious"
    with pytest.raises(WouldOverwriteError, match="not made by brics"):
        join(out, *parts, overwrite=True)
    out.unlink()
    before = join(out, *parts, overwrite=True).path.read_bytes()
    stores = [KeyCodeStore(path) for path in parts]
    assert write_join(plan_join(stores), out, reporter=SilentReporter()) is None
    assert out.read_bytes() == before
