"""Collections at URLs: they are what is there, each file is fetched once, the cache is bounded, faults are told."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import brics
from image_files import noise, read_all, write_tar
from remote_servers import SECRET, Between, s3_environment, s3_server, web_server

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.images import load_shards, open_collection
from brics_cli.images.opening import collection_exists
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import mirrors, remote


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)

    warning = message


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bucket of collections of every kind, and what does not belong to one."""
    bucket = tmp_path_factory.mktemp("served") / "bucket"
    for shard in range(4):
        members = []
        for image in range(6):
            members += [(f"{image:03}.png", noise(10 * shard + image, 128)), (f"{image:03}.cls", b"%d" % (image % 3))]
        write_tar(bucket / "shards" / f"x-{shard:03}.tar", members)
    write_tar(bucket / "zipped" / "y.tar.gz", [(f"{n}.png", noise(n)) for n in range(3)], mode="w:gz")
    for split, number in [("train", 5), ("val", 2)]:
        for image in range(number):
            path = bucket / "folder" / split / "a b" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise(100 + image))
    (bucket / "folder" / "metadata.csv").write_text("file_name,label\ntrain/a b/0.png,cat\n")
    (bucket / "folder" / "film.mp4").write_bytes(b"0" * 99)
    shutil.make_archive(str(bucket / "faces"), "zip", bucket / "folder" / "train")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (bucket / "tables").mkdir()
    for number in range(2):
        images = [{"bytes": noise(20 * number + row, 48), "path": None} for row in range(5)]
        table = pyarrow.table({"image": images, "label": list(range(5))})
        parquet.write_table(table, bucket / "tables" / f"train-0000{number}-of-00002.parquet")
    return bucket


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BACK_OFF_S", 0.01)
    return tmp_path / "cache" / "remote"


@pytest.fixture(scope="module")
def web_of(served: Path) -> Iterator[Between]:
    with web_server(served) as between:
        yield between


@pytest.fixture
def web(web_of: Between) -> Between:
    web_of.gets.clear()
    web_of.faults.clear()
    return web_of


@pytest.fixture(scope="module")
def s3_of(served: Path) -> Iterator[Between]:
    pytest.importorskip("s3fs")
    with s3_server(served.parent) as between:
        yield between


@pytest.fixture
def s3(s3_of: Between, monkeypatch: pytest.MonkeyPatch) -> Between:
    s3_of.gets.clear()
    s3_of.faults.clear()
    for name, value in s3_environment(s3_of.url).items():
        monkeypatch.setenv(name, value)
    _forget_file_systems()
    return s3_of


def _forget_file_systems() -> None:
    """fsspec keeps its file systems with the settings that they were made with."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    remote.s3_session.cache_clear()


FORMS = {
    "pattern": "shards/x-{000..003}.tar",
    "glob": "shards/x-00[12].tar",
    "shards": "shards",
    "shard": "shards/x-001.tar",
    "field": "shards/*.png",
    "compressed": "zipped",
    "split": "folder/val",
    "listing above": "folder/train",
    "zip": "faces.zip",
    "tables": "tables",
    "split of tables": "tables/train",
}


def _same(path: str, url: str) -> None:
    local, there = open_collection(path), open_collection(url)
    images = read_all(there)
    assert images == read_all(local) and there.layout == local.layout and there.fingerprint == local.fingerprint
    assert there.describe() == local.describe() and there.class_names == local.class_names
    assert there.passed_over.to_json() == local.passed_over.to_json()
    assert there.path.startswith(url.partition("//")[0]) and str(mirrors.root()) not in there.path
    again = open_collection(there.path)
    assert [raw.key for raw in read_all(again)] == [raw.key for raw in images]


def but_for(*forms: str) -> list[object]:
    """All forms, those but for `forms` as slow tests."""
    return [pytest.param(form, marks=() if form in forms else pytest.mark.slow) for form in FORMS]


@pytest.mark.parametrize(
    "form", but_for("pattern", "shards", "field", "compressed", "listing above", "zip", "tables", "split of tables")
)
def test_a_web_server_has_what_the_folder_has(served: Path, web: Between, form: str) -> None:
    _same(f"{served}/{FORMS[form]}", f"{web.url}/{FORMS[form]}")


@pytest.mark.parametrize("form", but_for("pattern", "split of tables"))
def test_s3_has_what_the_folder_has(served: Path, s3: Between, form: str) -> None:
    _same(f"{served}/{FORMS[form]}", f"s3://bucket/{FORMS[form]}")


def test_whatever_fsspec_knows_is_read(served: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(f"{served}/shards", "/images/", recursive=True)
    assert read_all(open_collection("memory://images/shards")) == read_all(open_collection(served / "shards"))


def test_data_sets_of_the_hub_are_read(served: Path, hub) -> None:
    hub.add("datasets/user/photos", {f"data/{path.name}": path.read_bytes() for path in (served / "shards").iterdir()})
    images = open_collection("hf://datasets/user/photos/data")
    assert read_all(images) == read_all(open_collection(served / "shards"))


def test_a_server_that_lists_nothing_is_read_by_names(served: Path, web: Between) -> None:
    web.faults = {"/shards": [404] * 99, "/shards/": [404] * 99}
    images = open_collection(f"{web.url}/shards/x-{{000..003}}.tar")
    assert read_all(images) == read_all(open_collection(f"{served}/shards/x-{{000..003}}.tar"))


def test_every_shard_is_fetched_once(web: Between) -> None:
    for _ in range(2):
        collection = open_collection(f"{web.url}/shards")
        assert [batch.content.unchanged for batch in load_shards(collection, transform="crop-bicubic", size=32)] == [
            True
        ] * 4
        assert [web.num_gets(f"x-00{shard}.tar") for shard in range(4)] == [1] * 4
    assert sum(
        len(batch.loaded) for batch in load_shards(pickle.loads(pickle.dumps(collection)), transform="adm", size=8)
    )
    assert web.num_gets(".tar") == 4


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_the_cache_is_bounded_and_an_index_is_enough_to_open(web: Between, fresh_cache: Path, monkeypatch) -> None:
    shard_bytes = open_collection(f"{web.url}/shards/x-000.tar").shards[0].size_bytes
    shutil.rmtree(fresh_cache)
    limit = int(3.2 * shard_bytes)
    monkeypatch.setenv("BRICS_CACHE_GIB", str(limit / 2**30))
    web.gets.clear()
    heard = Heard()
    collection = open_collection(f"{web.url}/shards", reporter=heard)
    assert any("at a time (--cache-gib)" in text for text in heard.texts)
    whole = read_all(collection)
    assert len(whole) == 24 and _on_disk(fresh_cache) <= limit
    num_gets = web.num_gets(".tar")
    assert num_gets <= 8, "once to be looked at, once to be read"
    again = open_collection(f"{web.url}/shards")
    assert web.num_gets(".tar") == num_gets and again.keys()[:] == [raw.key for raw in whole]
    assert read_all(again) == whole


def test_a_pack_that_the_cache_does_not_hold_is_packed_again(served: Path, tmp_path: Path, monkeypatch) -> None:
    settings = ("--size", 64, "--shard-size", 6, "--workers", 1)
    brics("pack", served / "shards", "--out", "packed", *settings, cwd=tmp_path, check=0)
    brics("pack", "packed", "--out", "local", *settings, cwd=tmp_path, check=0)
    size = max(path.stat().st_size for path in (tmp_path / "packed").glob("*.tar"))
    with web_server(tmp_path / "packed") as web:
        brics(
            "pack", f"{web.url}/", "--out", "there", *settings, "--cache-gib", 2.5 * size / 2**30, cwd=tmp_path, check=0
        )
    for tar in (tmp_path / "local").glob("*.tar"):
        assert (tmp_path / "there" / tar.name).read_bytes() == tar.read_bytes()


def test_tables_are_opened_by_their_index(web: Between, fresh_cache: Path, served: Path) -> None:
    open_collection(f"{web.url}/tables")
    for kept in mirrors._all_kept():
        assert mirrors._let_go(kept) > 0
    web.gets.clear()
    collection = open_collection(f"{web.url}/tables")
    assert web.num_gets(".parquet") == 0
    assert read_all(collection) == read_all(open_collection(served / "tables")) and web.num_gets(".parquet") == 2


def test_what_is_being_read_stays(web: Between) -> None:
    collection = open_collection(f"{web.url}/shards")
    first = next(collection.iter_shard(0))
    kept = {Path(each.path).name: each for each in mirrors._all_kept()}
    assert mirrors._let_go(kept["x-000.tar"]) == 0 < mirrors._let_go(kept["x-003.tar"])
    assert first == collection.read(0, 0) and web.num_gets("x-000.tar") == 1


def test_a_file_larger_than_the_cache_is_refused(web: Between, monkeypatch) -> None:
    monkeypatch.setenv("BRICS_CACHE_GIB", "0.00001")
    with pytest.raises(UsageError, match=r"x-00\d\.tar has .* the cache holds .*--cache-gib 1"):
        open_collection(f"{web.url}/shards")


@pytest.mark.parametrize("faults", [[500], ["reset"], ["slow"], [503, "reset", 500, "slow"]])
def test_broken_transfers_are_tried_again(served: Path, web: Between, faults) -> None:
    web.faults = {"x-002.tar": list(faults)}
    heard = Heard()
    images = read_all(open_collection(f"{web.url}/shards", reporter=heard))
    assert images == read_all(open_collection(served / "shards"))
    assert sum("trying again" in text for text in heard.texts) == len([each for each in faults if each != "slow"])


def test_broken_transfers_of_s3_are_tried_again(served: Path, s3: Between) -> None:
    s3.faults = {"x-002.tar": [500, "reset", "slow"]}
    assert read_all(open_collection("s3://bucket/shards")) == read_all(open_collection(served / "shards"))


def test_what_stays_broken_ends_in_one_line(web: Between, fresh_cache: Path) -> None:
    web.faults = {"x-002.tar": [500] * 99}
    with pytest.raises(MachineError, match=r"/shards/x-002\.tar cannot be read \(ClientResponseError: 500"):
        open_collection(f"{web.url}/shards")
    assert web.num_gets("x-002.tar") % remote.TRIES == 0
    assert not list((fresh_cache / ".incoming").iterdir())


def test_a_shard_that_changes_is_noticed(served: Path, tmp_path: Path) -> None:
    shutil.copytree(served / "shards", tmp_path / "www")
    with web_server(tmp_path / "www") as web:
        collection = open_collection(f"{web.url}/x-{{000..003}}.tar")
        batches = load_shards(collection, transform="crop-bicubic", size=8)
        next(batches)
        shutil.copy(served / "shards" / "x-000.tar", tmp_path / "www" / "x-003.tar")
        with pytest.raises(ArtefactError, match=r"x-003\.tar changed while it was being read"):
            list(batches)
        (tmp_path / "www" / "x-003.tar").unlink()
        with pytest.raises(ArtefactError, match=r"x-003\.tar changed while it was being read.*, and is gone"):
            mirrors.check_unchanged(collection.files(3))


def test_another_version_is_fetched_again(served: Path, tmp_path: Path) -> None:
    shutil.copytree(served / "shards", tmp_path / "www")
    with web_server(tmp_path / "www") as web:
        before = open_collection(f"{web.url}/").fingerprint
        write_tar(tmp_path / "www" / "x-001.tar", [("7.png", noise(7, 128))])
        (tmp_path / "www" / "x-003.tar").unlink()
        after = open_collection(f"{web.url}/")
        assert len(after) == 13 and after.fingerprint != before
        assert [web.num_gets(f"x-00{shard}.tar") for shard in range(4)] == [1, 2, 1, 1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_cache_disk(web: Between, small_disk: Path, monkeypatch) -> None:
    monkeypatch.setenv("BRICS_CACHE", str(small_disk))
    monkeypatch.setenv("BRICS_CACHE_GIB", "1")
    assert len(read_all(open_collection(f"{web.url}/shards"))) == 24, "what is not being read makes room"
    shutil.rmtree(small_disk / "remote")
    gc.collect()  # what is open of it still takes room
    (small_disk / "else").write_bytes(b"0" * 800_000)
    with pytest.raises(OSError, match="No space left on device") as caught:
        read_all(open_collection(f"{web.url}/shards"))
    assert caught.value.filename.startswith(str(small_disk))


def test_secrets_are_used_and_never_shown(served: Path, web: Between, fresh_cache: Path) -> None:
    url = web.url.replace("http://", "http://me:hunter-zwei@") + "/shards/x-001.tar?X-Amz-Signature=q9x7w5"
    heard = Heard()
    collection = open_collection(url, reporter=heard)
    assert any(text.startswith("Basic ") for text in web.authorisations)
    assert collection.path == f"{web.url}/shards/x-001.tar"
    told = " ".join([*heard.texts, collection.describe(), str(list(map(str, fresh_cache.rglob("*"))))])
    with pytest.raises(BaseException) as caught:
        open_collection(url.replace("x-001", "x-009"), reporter=heard)
    assert "zwei" not in told + str(caught.value) and "q9x7w5" not in told + str(caught.value)


def test_s3_that_does_not_let_us_in(s3: Between, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an" + SECRET)
    _forget_file_systems()
    with pytest.raises(MachineError, match="s3:// does not let you read s3://bucket/shards") as caught:
        open_collection("s3://bucket/shards")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url, error, said",
    [
        ("gs://bucket/x", UsageError, r"gs:// with is not installed. pip install 'brics-cli\[gs\]'"),
        ("foo://bucket/x", UsageError, "no place that fsspec knows"),
        ("file:///x", UsageError, "is not a path"),
        ("memory://nowhere/x.tar", UsageError, "nothing is at memory://nowhere/x.tar"),
        ("http://127.0.0.1:1/x.tar", MachineError, "http://127.0.0.1:1/x.tar cannot be read"),
    ],
)
def test_other_urls_end_in_one_line(url: str, error: type[Exception], said: str) -> None:
    if url.startswith("gs:"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed")
    with pytest.raises(error, match=said):
        open_collection(url)


@pytest.mark.parametrize(
    "wrong", ["folders/train", "shards/nope", "train", "shards/x-009.tar", "shards/x-{000..009}.tar"]
)
def test_what_is_not_there_is_not_looked_for_everywhere(web: Between, wrong: str) -> None:
    with pytest.raises(UsageError, match=r"nothing is at|are missing|no such file"):
        open_collection(f"{web.url}/{wrong}")
    assert web.num_gets(".tar") == web.num_gets(".zip") == 0


def test_help_does_without_fsspec() -> None:
    script = "import sys, brics_cli.cli.options, brics_cli.cli.encode_dataset; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_folder_that_is_gone_is_not_looked_for_on_the_whole_disk(tmp_path: Path, monkeypatch) -> None:
    looked_at = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_at.append(path) or scandir(path))
    assert not collection_exists("/images") and not collection_exists("/train")
    assert len(looked_at) < 10
    deep = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for number in range(6):
        (tmp_path / f"{number}" / "1" / "2" / "3").mkdir(parents=True)
    (deep / "val").mkdir(parents=True)
    assert collection_exists(tmp_path / "val") and not collection_exists(tmp_path / "test")


def test_tars_are_the_same_bytes_in_the_cache(served: Path, web: Between, fresh_cache: Path) -> None:
    read_all(open_collection(f"{web.url}/shards"))
    for tar in (served / "shards").iterdir():
        (found,) = fresh_cache.rglob(tar.name)
        assert found.read_bytes() == tar.read_bytes() and tarfile.is_tarfile(found)
