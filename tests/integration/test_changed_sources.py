"""Sources whose pixels change while names and sizes stay: no command takes them for what they were.

Each test runs commands as a user does; images are noise in BMP files, which all have the same number of bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import Finished, brics, error_line
from image_files import noise, write_tar
from PIL import Image
from random_autoencoder import make_autoencoder

from brics_cli import KeyCodeStore
from brics_cli.codes import verify_store
from brics_cli.codes.format import seal
from brics_cli.evaluation import cache
from brics_cli.images import collection as collections
from brics_cli.images import open_collection, pixels
from brics_cli.jobs import encode_dataset as job

NUM, SHARD = 12, 3
"""Images, and how many of them are in a shard."""
CODE_SHAPE = (16, 8, 8)
"""Of the recipe `tiny`."""
Files = dict[str, bytes]


def images(*, seed: int = 0, num: int = NUM, side: int = 64) -> Files:
    return {f"{number:03d}.bmp": noise(1000 * seed + number, side, "BMP") for number in range(num)}


def write_folder(root: Path, files: Files) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def write_tars(root: Path, files: Files) -> Path:
    rows = list(files.items())
    for number in range(0, len(rows), SHARD):
        write_tar(root / f"{number // SHARD:05d}.tar", rows[number : number + SHARD])
    return root


def write_zip(root: Path, files: Files) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return root.with_suffix(".zip")


def write_npz(root: Path, files: Files) -> Path:
    root.parent.mkdir(parents=True, exist_ok=True)
    np.savez(root.with_suffix(".npz"), np.stack([np.array(Image.open(io.BytesIO(data))) for data in files.values()]))
    return root.with_suffix(".npz")


FORMS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": write_folder,
    "tar": write_tars,
    "zip": write_zip,
    "npz": write_npz,
}


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every collection be opened a minute after its files were written: their times can be trusted."""
    monkeypatch.setattr(collections.time, "time_ns", lambda now=time.time_ns: now() + 60 * 10**9)


def swapped(files: Files, name: str = "000.bmp") -> Files:
    """The same files, but one picture is another one of the same size."""
    side = 64 if len(files) == NUM else 16
    return {**files, name: noise(999, side, "BMP")}


def reads(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[int, int]]:
    """What is read of the collection at `path` from now on."""
    kind, read = type(open_collection(path)), []
    original = kind.read

    def counted(self: object, shard_index: int, index: int) -> object:
        read.append((shard_index, index))
        return original(self, shard_index, index)

    monkeypatch.setattr(kind, "read", counted)
    return read


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", SHARD)


@pytest.fixture(scope="module")
def ae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_autoencoder(tmp_path_factory.mktemp("ae") / "ae", seed=0)


@pytest.fixture
def encode(ae: Path, tmp_path: Path) -> Callable[..., Finished]:
    def run(source: Path, *words: object, check: int = 0, out: str = "codes.h5") -> Finished:
        return brics("encode-dataset", source, "--ae", ae, "--out", out, *words, cwd=tmp_path, check=check)

    return run


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stopped(command)`: run it with an image that fails in the last shard, so that it ends before that one."""

    def run(write: Callable[[Path, Files], Path], path: Path, files: Files, command: Callable[..., Finished]) -> None:
        last = list(files)[-1]
        place = write(path, {**files, last: b"x" * len(files[last])})
        command(place, "--max-failures", 0, "--workers", 1, "--batch-size", 1, check=5)

    return run


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_store_of_changed_pixels_is_refused(
    form: str, encode: Callable[..., Finished], tmp_path: Path
) -> None:
    files, write = images(), FORMS[form]
    source = write(tmp_path / "in", files)
    encode(source)
    before = (tmp_path / "codes.h5").read_bytes()
    again = encode(source)
    assert "is complete already" in again.stderr
    times = {path: path.stat() for path in [source, *(source.iterdir() if source.is_dir() else [])]}
    changed = "002.bmp" if form == "npz" else "004.bmp"
    write(tmp_path / "in", swapped(files, changed))
    for path, status in times.items():
        assert path.stat().st_size == status.st_size
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused = error_line(encode(source, check=3))
    if form in ("zip", "npz"):  # CRCs tell
        assert f"shard 0000{int(form == 'zip')}" in refused and "other images, or other names or sizes" in refused
    else:
        assert f"{source} has changed since codes.h5 was made from it" in refused and "of 4 shards 1 hold" in refused
        assert "first is 00001" in refused
    assert "--overwrite" in refused
    assert (tmp_path / "codes.h5").read_bytes() == before
    encode(source, "--overwrite")
    assert "is complete already" in encode(source).stderr
    assert (tmp_path / "codes.h5").read_bytes() != before and verify_store(tmp_path / "codes.h5") == []


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_an_unfinished_store_of_changed_pixels_is_refused_and_overwrite_encodes_those_again(
    form: str, encode: Callable[..., Finished], stopped: Callable[..., None], tmp_path: Path
) -> None:
    files, write, parts = images(), FORMS[form], tmp_path / "codes.h5.parts"
    stopped(write, tmp_path / "in", files, encode)
    assert len(list(parts.glob("*.h5"))) == 3
    broken = {**files, list(files)[-1]: b"x" * len(files["000.bmp"])}
    source = write(tmp_path / "in", swapped(broken, "004.bmp"))
    refused = error_line(encode(source, check=3))
    assert "of 3 shards 1 hold other images" in refused and "first is 00001" in refused
    assert len(list(parts.glob("*.h5"))) == 3
    said = encode(source, "--overwrite", check=5).stderr
    assert said.count("made again") == 1 and "made again: shard 00001" in said
    assert "going on: 2 of 4 shards" in said
    encode(source, out="fresh.h5", check=5)
    assert KeyCodeStore(tmp_path / "codes.h5").sha256 == KeyCodeStore(tmp_path / "fresh.h5").sha256


def test_a_touched_or_copied_source_is_recognised(
    encode: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    source = write_folder(tmp_path / "in", images())
    encode(source)
    read = reads(monkeypatch, source)
    assert "complete already" in encode(source).stderr and not read
    os.utime(source / "004.bmp")
    said = encode(source).stderr
    assert "1 of 4 shards were read" in said and "they hold the same images" in said and "complete already" in said
    assert {shard for shard, _ in read} == {1}
    read.clear()
    copied = shutil.copytree(source, tmp_path / "copied")
    assert "4 of 4 shards were read" in encode(copied).stderr and len(read) == NUM
    read.clear()
    assert "complete already" in encode(copied).stderr and not read


@pytest.mark.slow
def test_100_000_unchanged_images_are_recognised_in_5_s(
    encode: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is left out: it is not what is measured."""
    monkeypatch.setattr(collections, "VIRTUAL_SHARD_SIZE", 1000)
    pixels = {f"{number:06d}.png": noise(number % 100, 8) for number in range(100)}
    data = list(pixels.values())
    source = write_folder(tmp_path / "in", {f"{n:06d}.png": data[n % 100] for n in range(100_000)})
    later(monkeypatch)
    codes = torch.rand((64, *CODE_SHAPE))
    network = "brics_cli.codes.encoding.encoding_network"
    monkeypatch.setattr(network, lambda *_, **__: lambda images: codes[: len(images)])
    monkeypatch.setattr(job, "quantisation_cost", lambda *_: None)
    encode(source)
    start = time.process_time()  # on a quiet machine the same: nothing is waited for
    assert "is complete already" in encode(source).stderr
    assert time.process_time() - start < 5


def test_some_of_a_source_knows_its_own_images(encode: Callable[..., Finished], tmp_path: Path) -> None:
    files = images()
    source = write_folder(tmp_path / "in", files)
    (tmp_path / "keys.txt").write_text("001\n005\n")
    ways = {"limit.h5": ("--limit", 4), "keys.h5": ("--keys", "keys.txt"), "part.h5": ("--part", "2/2")}
    inside = {"limit.h5": "003.bmp", "keys.h5": "005.bmp", "part.h5": "003.bmp"}
    beside = {"limit.h5": "004.bmp", "keys.h5": "004.bmp", "part.h5": "000.bmp"}
    for out, words in ways.items():
        encode(source, *words, out=out)
        write_folder(source, swapped(files, beside[out]))
        assert "complete already" in encode(source, *words, out=out).stderr
        write_folder(source, swapped(files, inside[out]))
        assert "1 hold other images" in error_line(encode(source, *words, out=out, check=3))
        write_folder(source, files)
        assert "complete already" in encode(source, *words, out=out).stderr


def test_parts_and_their_merge_know_what_they_were_made_from(encode: Callable[..., Finished], tmp_path: Path) -> None:
    files = images()
    source = write_folder(tmp_path / "in", files)
    for part in ("1", "2"):
        encode(source, "--part", f"{part}/2", out=f"{part}.h5")
    brics("merge", "1.h5", "2.h5", "--out", "all.h5", "--verify", cwd=tmp_path, check=0)
    assert "complete already" in encode(source, out="all.h5").stderr
    encode(source, out="one-run.h5")
    parents = [KeyCodeStore(tmp_path / name).artefact.parent("collection") for name in ("all.h5", "one-run.h5")]
    assert parents[0] == parents[1] and parents[0] is not None
    assert parents[0].sha256 == open_collection(source).fingerprint
    write_folder(source, swapped(files, "011.bmp"))
    assert "1 hold other images" in error_line(encode(source, out="all.h5", check=3))
    encode(source, "--part", "2/2", "--overwrite", out="2.h5")
    refused = error_line(brics("merge", "1.h5", "2.h5", "--out", "all.h5", cwd=tmp_path, check=3))
    assert "all.h5 was joined from other codes of the same collection" in refused
    write_folder(tmp_path / "elsewhere", files)
    encode(tmp_path / "elsewhere", "--part", "2/2", out="3.h5")
    said = brics("merge", "1.h5", "3.h5", "--out", "two.h5", cwd=tmp_path, check=0).stderr
    assert "taken for parts of one collection, by its names and sizes:" in said and "elsewhere" in said


def test_an_image_that_changes_while_its_shard_is_encoded_ends_the_run(
    encode: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder(tmp_path / "in", images())
    kind = type(open_collection(source))
    original, changed = kind.read, []

    def read(self: object, shard_index: int, index: int) -> object:
        raw = original(self, shard_index, index)
        if (shard_index, index) == (2, 1) and len(changed) < 2:
            changed.append(index)
            (source / "007.bmp").write_bytes(noise(500 + len(changed), 64, "BMP"))
        return raw

    monkeypatch.setattr(kind, "read", read)
    line = error_line(encode(source, "--workers", 1, check=3))
    assert "changed while it was read: shard 00002, from '006' on" in line and "run the same command again" in line
    monkeypatch.setattr(kind, "read", original)
    assert "of 4 shards are encoded" in encode(source).stderr  # what is there now
    assert "complete already" in encode(source).stderr


def made_by_an_older_brics(path: Path) -> None:
    """Take from the store `path` what was not recorded before."""
    with h5py.File(path, "r+") as file:
        table = file["shards"][()]
        names = [name for name in table.dtype.names if name != "digest"]
        del file["shards"]
        file["shards"] = table[names].astype([(name, table.dtype[name]) for name in names])
        file.attrs["seal"] = seal(file)


def test_a_store_of_an_older_brics_is_read_and_said_to_be_one(
    encode: Callable[..., Finished], stopped: Callable[..., None], tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "in", images())
    encode(source)
    made_by_an_older_brics(tmp_path / "codes.h5")
    assert verify_store(tmp_path / "codes.h5") == [] and len(KeyCodeStore(tmp_path / "codes.h5")) == NUM
    said = encode(source).stderr
    assert "written by an older brics" in said and "cannot be told" in said and "is complete already" in said
    brics("merge", "codes.h5", "codes.h5", "--out", "x.h5", cwd=tmp_path, check=3)  # reads its shards
    encode(source, "--overwrite")
    assert "older brics" not in encode(source).stderr

    stopped(write_folder, tmp_path / "begun", images(), lambda *words, check: encode(*words, check=check, out="b.h5"))
    for part in (tmp_path / "b.h5.parts").glob("*.h5"):
        with h5py.File(part, "r+") as file:
            del file.attrs["digest"]
    refused = error_line(encode(tmp_path / "begun", out="b.h5", check=3))
    assert "was begun by an older brics" in refused and "--overwrite" in refused
    encode(tmp_path / "begun", "--overwrite", out="b.h5", check=5)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Finished]:
    def run(source: Path, *words: object, check: int = 0, out: str = "out", shard_size: int = SHARD) -> Finished:
        settings = ("--size", 16, "--shard-size", shard_size)
        return brics("pack", source, "--out", out, *settings, *words, cwd=tmp_path, check=check)

    return run


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "brics.json"}


@pytest.mark.parametrize(("form", "shard_size"), [("folder", SHARD), ("folder", 5), ("tar", 5), ("zip", 2), ("npz", 7)])
def test_a_finished_pack_of_changed_pixels_is_refused(
    form: str, shard_size: int, pack: Callable[..., Finished], tmp_path: Path
) -> None:
    files, write = images(), FORMS[form]
    source = write(tmp_path / "in", files)
    pack(source, shard_size=shard_size)
    assert "complete already" in pack(source, shard_size=shard_size).stderr
    assert not (tmp_path / "out" / ".sources.jsonl").exists()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source_sha256"] == open_collection(source).fingerprint
    before = files_of(tmp_path / "out")
    write(tmp_path / "in", swapped(files, "006.bmp"))
    refused = error_line(pack(source, check=3, shard_size=shard_size))
    assert f"{source} has changed since out was made from it" in refused and "--overwrite" in refused
    if form not in ("zip", "npz"):  # whose CRCs tell
        assert "1 hold other images" in refused and f"first is {6 // shard_size:05d}" in refused
    assert files_of(tmp_path / "out") == before
    copied = write(tmp_path / "elsewhere" / "in", files)
    said = pack(copied, shard_size=shard_size).stderr
    assert "they hold the same images" in said and "complete already" in said
    pack(source, "--overwrite", shard_size=shard_size)
    pack(source, out="fresh", shard_size=shard_size)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh") != before


def unpackable() -> Files:
    """So many images that shards are written before the last one, which fails, is met."""
    files = images(num=90, side=16)
    return {**files, "089.bmp": b"x" * len(files["000.bmp"])}


@pytest.mark.parametrize(("form", "shard_size"), [("folder", SHARD), ("tar", 4)])
def test_an_unfinished_pack_of_changed_pixels_is_refused(
    form: str, shard_size: int, pack: Callable[..., Finished], tmp_path: Path
) -> None:
    bad, write = unpackable(), FORMS[form]
    source = write(tmp_path / "in", bad)
    words = ("--max-failures", 0)
    pack(source, *words, check=5, shard_size=shard_size)
    whole = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert whole
    write(tmp_path / "in", swapped(bad, "002.bmp"))
    refused = error_line(pack(source, check=3, shard_size=shard_size))
    assert f"of {len(whole)} shards 1 hold other images" in refused and "first is 00000" in refused
    write(tmp_path / "in", bad)
    said = pack(source, check=5, shard_size=shard_size).stderr
    assert "going on after" in said
    pack(source, out="fresh", check=5, shard_size=shard_size)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_overwrite_packs_the_shards_of_an_unfinished_pack_that_changed_again(
    pack: Callable[..., Finished], tmp_path: Path
) -> None:
    bad = unpackable()
    source = write_folder(tmp_path / "in", bad)
    pack(source, "--max-failures", 0, check=5)
    num_whole = len(list((tmp_path / "out").glob("*.tar")))
    assert num_whole > 3
    write_folder(tmp_path / "in", swapped(bad, "004.bmp"))
    assert f"going on after {3 * (num_whole - 1)} images" in pack(source, "--overwrite", check=5).stderr
    pack(source, out="fresh", check=5)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_shard_of_which_nobody_knows_what_it_was_made_from_is_packed_again(
    pack: Callable[..., Finished], tmp_path: Path
) -> None:
    """The power went between a shard and its record."""
    bad = unpackable()
    source = write_folder(tmp_path / "in", bad)
    pack(source, "--max-failures", 0, check=5)
    log = tmp_path / "out" / ".sources.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:1]) + '{"shard": 1, "dig')
    assert "going on after 3 images" in pack(source, check=5).stderr
    pack(source, out="fresh", check=5)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_pack_of_an_older_brics_is_said_to_be_one(pack: Callable[..., Finished], tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", images())
    for out, words, check in (("done", (), 0), ("begun", ("--max-failures", 0), 5)):
        if out == "begun":
            write_folder(source, {"011.bmp": b"x" * len(images(num=1)["000.bmp"])})
        pack(source, *words, out=out, check=check)
        record = json.loads((tmp_path / out / "brics.json").read_text())
        del record["details"]["settings"]["names_and_sizes"]
        record["parents"][0]["sha256"] = open_collection(source).layout
        (tmp_path / out / "brics.json").write_text(json.dumps(record))
        if out == "done":
            manifest = json.loads((tmp_path / out / "manifest.json").read_text())
            for shard in manifest["shards"]:
                del shard["source_digest"]
            (tmp_path / out / "manifest.json").write_text(json.dumps(manifest))
            said = pack(source, out=out).stderr
            assert "written by an older brics" in said and "cannot be told" in said and "complete already" in said
        else:
            (tmp_path / out / ".sources.jsonl").unlink()
            refused = error_line(pack(source, out=out, check=3))
            assert "was begun by an older brics" in refused
            pack(source, "--overwrite", out=out, check=5)
            assert "names_and_sizes" in json.loads((tmp_path / out / "brics.json").read_text())["details"]["settings"]


FD = ("eval", "--metric", "fd-random", "--json")


def figure(finished: Finished) -> float:
    return json.loads(finished.stdout)["results"][0]["value"]


def source_of(finished: Finished, side: str) -> dict:
    return next(each for each in json.loads(finished.stdout)["sources"] if each["side"] == side)


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Finished]:
    def run(real: Path, fake: Path, *words: object, check: int = 0) -> Finished:
        return brics(*FD, "--real", real, "--fake", fake, *words, cwd=tmp_path, check=check,
                     BRICS_CACHE=str(tmp_path / "cache"))  # fmt: skip

    return run


@pytest.mark.parametrize("form", FORMS)
def test_the_cache_of_features_knows_folders_of_equal_names_and_sizes_apart(
    form: str, evaluate: Callable[..., Finished], tmp_path: Path
) -> None:
    """Two of 20 random pictures: with the other's features the distance of b to itself was not 0."""
    a, b = (FORMS[form](tmp_path / name, images(seed=seed, num=20)) for seed, name in enumerate("ab"))
    assert open_collection(a).layout == open_collection(b).layout or form in ("zip", "npz")  # which have CRCs
    assert figure(evaluate(a, a)) == pytest.approx(0, abs=1e-6)
    assert figure(evaluate(b, b)) == pytest.approx(0, abs=1e-6)
    between = figure(evaluate(a, b, "--no-cache"))
    assert between > 0.1
    cached = evaluate(a, b)
    assert figure(cached) == between and source_of(cached, "real")["cached"] == ["random-conv"]
    assert source_of(cached, "real")["sha256"] == open_collection(a).fingerprint
    FORMS[form](tmp_path / "a", images(seed=1, num=20))  # the pictures of b, in place
    assert figure(evaluate(a, b)) == pytest.approx(0, abs=1e-6)


def test_a_copy_and_a_touched_folder_find_the_features_again(
    evaluate: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    a, b = (write_folder(tmp_path / name, images(seed=seed, num=6)) for seed, name in enumerate("ab"))
    first = evaluate(a, b)
    assert source_of(first, "real")["cached"] == []
    decoded, decode = [], pixels.decode_image
    monkeypatch.setattr(pixels, "decode_image", lambda data: decoded.append(data) or decode(data))
    again = evaluate(a, b)
    assert figure(again) == figure(first) and source_of(again, "real")["cached"] and len(decoded) == 6  # b alone
    os.utime(a / "000.bmp")
    touched = evaluate(a, b)
    assert figure(touched) == figure(first) and source_of(touched, "real")["cached"]
    copied = evaluate(shutil.copytree(a, tmp_path / "copied"), b)
    assert figure(copied) == figure(first) and source_of(copied, "real")["cached"]
    assert source_of(copied, "real")["sha256"] == source_of(first, "real")["sha256"]


def test_some_images_are_not_taken_for_all(evaluate: Callable[..., Finished], tmp_path: Path) -> None:
    a, b = (write_folder(tmp_path / name, images(seed=seed, num=8)) for seed, name in enumerate("ab"))
    whole, some = evaluate(a, b), evaluate(a, b, "--limit", 5)
    assert figure(some) != figure(whole) and not source_of(some, "real")["cached"]
    assert figure(evaluate(a, b, "--limit", 5)) == figure(some)
    assert source_of(evaluate(a, b, "--limit", 5), "real")["cached"]
    write_folder(a, {"007.bmp": noise(77, 64, "BMP")})  # beyond the limit
    assert source_of(evaluate(a, b, "--limit", 5), "real")["cached"]
    assert not source_of(evaluate(a, b), "real")["cached"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        for options in (["--bind", str(path), str(path)], ["-o", "remount,bind,ro", str(path)]):
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("needs to be root, to mount a folder read-only")
            mounted.append(path)

    yield mount
    for path in mounted[:1]:
        subprocess.run(["umount", str(path)], check=True)


def test_a_read_only_cache_is_used(
    evaluate: Callable[..., Finished], tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    a, b, c = (write_folder(tmp_path / name, images(seed=seed, num=6)) for seed, name in enumerate("abc"))
    first = evaluate(a, b)
    read_only(tmp_path / "cache")
    again = evaluate(a, b)
    assert figure(again) == figure(first) and source_of(again, "real")["cached"]
    other = evaluate(c, b)
    assert "were not cached" in other.stderr and not source_of(other, "real")["cached"]


def test_a_cache_of_another_user_is_used(evaluate: Callable[..., Finished], tmp_path: Path) -> None:
    """As nobody, who may read it and not even say that it was used."""
    a, b = (write_folder(tmp_path / name, images(seed=seed, num=6)) for seed, name in enumerate("ab"))
    evaluate(a, b)
    (entry,) = (path for path in (tmp_path / "cache").glob("*/entry.json"))
    identity = json.loads(entry.read_text())["identity"]
    child = os.fork() if os.getuid() == 0 else pytest.skip("needs to be root, to be somebody else")
    if child == 0:
        found = None
        try:
            for folder in [tmp_path, *tmp_path.parents[:3]]:
                folder.chmod(0o755)
            os.environ["BRICS_CACHE"] = str(tmp_path / "cache")
            os.setuid(65534)
            found = cache.load(identity, need_rows=False)
            try:
                os.utime(entry)
                found = None  # then nothing was tested
            except PermissionError:
                pass
        finally:
            os._exit(0 if found is not None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_training_goes_on_with_the_images_it_was_started_on_alone(tmp_path: Path) -> None:
    files = images(side=32)
    data = write_folder(tmp_path / "in", files)
    words = ("train-ae", "--device", "cpu")
    brics(*words, data, "--recipe", "tiny", "--steps", 2, "--out", "run", cwd=tmp_path, check=0)
    os.utime(data / "000.bmp")
    brics(*words, "--resume", "run", "--steps", 3, cwd=tmp_path, check=0)
    write_folder(data, {"004.bmp": noise(888, 32, "BMP")})
    refused = error_line(brics(*words, "--resume", "run", "--steps", 4, cwd=tmp_path, check=3))
    assert f"{data} has changed since run was started on it" in refused
    record = json.loads((tmp_path / "run" / "brics.json").read_text())
    record["parents"][0]["sha256"] = open_collection(data).layout  # as an older brics recorded it
    (tmp_path / "run" / "brics.json").write_text(json.dumps(record))
    said = brics(*words, "--resume", "run", "--steps", 4, cwd=tmp_path, check=0).stderr
    assert "known by names and sizes alone" in said
