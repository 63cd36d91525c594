import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
from store_files import write_store

from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ArtefactError, MachineError, WouldOverwriteError
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace import (
    Artefact,
    Parent,
    Workspace,
    atomic_path,
    check_output,
    hdf5,
    hold_lock,
    open_hdf5,
    read_provenance,
    write_provenance,
    write_text_atomically,
)


def make_run(root: Path, name: str, created: str, *, kind: str = "autoencoder", model: bool = True) -> Path:
    path = root / "runs" / kind / name
    (path / "model").mkdir(parents=True)
    if model:
        (path / "model" / "model.safetensors").write_bytes(b"x")
    write_provenance(Artefact(kind, path, created, details={"sha256": name}))  # type: ignore[arg-type]
    return path


def test_the_newest_usable_artefact_is_found_by_its_creation_not_its_name(tmp_path: Path) -> None:
    make_run(tmp_path, "z-old", "2026-01-01T00:00:00")
    newest = make_run(tmp_path, "a-new", "2026-02-01T00:00:00")
    make_run(tmp_path, "b-newer-without-model", "2026-03-01T00:00:00", model=False)
    assert Workspace(tmp_path).newest("autoencoder").path == newest
    found = Workspace(tmp_path).with_sha256("autoencoder", "z-old")
    assert found is not None and found.path.name == "z-old"


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def resolved(root: Path, kind: str, **how: Any) -> tuple[str, Heard]:
    heard = Heard()
    return Workspace(root).resolve(kind, argument="IT", reporter=heard, **how).name, heard  # type: ignore[arg-type]


def make_file(root: Path, name: str, created: str, *parents: Parent, kind: str = "shards", **details: Any) -> Path:
    (root / name).write_bytes(b"x")
    write_provenance(Artefact(kind, root / name, created, True, parents, details))  # type: ignore[arg-type]
    return root / name


def test_what_is_left_out_is_finished_and_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, "stopped", "2026-02-01")
    write_provenance(Artefact("autoencoder", run, "2026-02-01", complete=False, details={"summary": "step 1"}))
    name, heard = resolved(tmp_path, "autoencoder")
    assert name == "stopped" and heard.messages == []
    assert heard.warnings == [f"IT not given: using {run}, unfinished (step 1), as there is nothing else"]
    whole = make_run(tmp_path, "whole", "2026-01-01")
    name, heard = resolved(tmp_path, "autoencoder")
    assert name == "whole" and heard.warnings == []
    assert heard.messages == [f"IT not given: using {whole} ({run} is newer, and unfinished)"]

    part = make_file(tmp_path, "part", "2026-02-01", kind="reconstructions", part="5 of 9 images, part 1/2")
    make_file(tmp_path, "all", "2026-01-01", kind="reconstructions")
    name, heard = resolved(tmp_path, "reconstructions")
    assert name == "all" and f"({part} is newer, and 5 of 9 images, part 1/2)" in heard.messages[0]


def test_training_takes_training_images_and_measuring_held_out_ones(tmp_path: Path) -> None:
    shards = [make_file(tmp_path, name, f"2026-01-0{day}", sha256=name) for day, name in enumerate("abcd", 1)]
    assert resolved(tmp_path, "shards", wanted="training")[0] == "d", "nothing has been trained yet"
    run = make_run(tmp_path, "run", "2026-02-01")
    parents = (Parent("collection", "/gone", "a"), Parent("validation", str(shards[3]), "changed since"))
    write_provenance(Artefact("autoencoder", run, "2026-02-01", True, parents, {"sha256": "run"}))
    workspace = Workspace(tmp_path)
    splits = {artefact.path.name: workspace.split_of(artefact) for artefact in workspace.artefacts()}
    assert splits == {"run": "training", "a": "training", "b": "other", "c": "other", "d": "held-out"}
    name, heard = resolved(tmp_path, "shards", wanted="training")
    assert name == "c" and heard.messages == [
        f"IT not given: using {shards[2]} ({shards[3]} is newer, and of held-out images)"
    ]
    assert resolved(tmp_path, "shards", wanted="held-out")[0] == "d"


def test_a_copied_workspace_keeps_to_what_is_in_it(tmp_path: Path) -> None:
    """Also where the original is still there, and where a parent has no sha256 in the workspace: a plain folder."""
    outside = str(tmp_path / "outside")
    root = tmp_path / "work"
    (root / "images").mkdir(parents=True)
    (root / "faces.zip").write_bytes(b"x")
    run = make_run(root, "run", "2026-01-01")
    inside = [str(root / name) for name in ("images", "images/*.tar", "faces.zip/val", "gone")]
    parents = [Parent("collection", path, "c") for path in [*inside, outside]]
    write_provenance(Artefact("autoencoder", run, "2026-01-01", True, tuple(parents), {"sha256": "r"}))
    store = make_file(root, "codes", "2026-01-02", Parent("autoencoder", str(run), "r"))
    shutil.copytree(root, tmp_path / "copy")
    for place in ("copy", "copied/and/moved"):
        copy = tmp_path / place
        if not copy.exists():
            copy.parent.mkdir(parents=True)
            (tmp_path / "copy").rename(copy)
        copied = read_provenance(copy / store.name)
        assert copied is not None
        found = Workspace(copy).ancestor(copied, "autoencoder")
        assert found is not None and found.path == copy / "runs/autoencoder/run"
        paths = [parent.path for parent in found.parents]
        expected = [str(copy / name) for name in ("images", "images/*.tar", "faces.zip/val")]
        assert paths == [*expected, str(root / "gone"), outside]
        write_provenance(copied)  # and again, when it goes on being written


def test_a_missing_kind_says_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no key-code store in the workspace .* brics encode-dataset") as caught:
        Workspace(tmp_path).newest("store")
    assert caught.value.exit_code == 3


def test_provenance_reads_back_for_directories_and_files(tmp_path: Path) -> None:
    parents = (Parent("store", "/x/codes.h5", "ab"),)
    for path in (tmp_path / "run", tmp_path / "x.zip"):
        if path.suffix:
            path.write_bytes(b"zip")
        else:
            path.mkdir()
        artefact = Artefact("samples", path, "2026-01-01T00:00:00", False, parents, {"n": 3})
        write_provenance(artefact)
        assert read_provenance(path) == artefact
    assert sorted(artefact.path.name for artefact in Workspace(tmp_path).artefacts()) == ["run", "x.zip"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"brics_artefact": 1, "kind": "spaceship"}', "\xff"])
def test_damaged_provenance_is_one_line_and_does_not_stop_the_search(tmp_path: Path, text: str) -> None:
    good = make_run(tmp_path, "good", "2026-01-01T00:00:00")
    bad = make_run(tmp_path, "bad", "2026-02-01T00:00:00")
    (bad / "brics.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtefactError):
        read_provenance(bad)
    assert Workspace(tmp_path).newest("autoencoder").path == good


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}"])
def test_an_hdf5_file_of_something_else_is_passed_over(tmp_path: Path, text: str) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["provenance"] = text
    assert read_provenance(tmp_path / "other.h5") is None
    assert Workspace(tmp_path).artefacts() == []


def test_provenance_of_a_newer_brics_says_so(tmp_path: Path) -> None:
    (tmp_path / "brics.json").write_text(json.dumps({"brics_artefact": 2}))
    with pytest.raises(ArtefactError, match="newer brics"):
        read_provenance(tmp_path)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_text_atomically(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("a", "b"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_overwrite_never_empties_a_directory_that_brics_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WouldOverwriteError, match="--overwrite"):
        check_output(tmp_path, overwrite=False, what="the run")
    with pytest.raises(WouldOverwriteError, match="was not made by brics"):
        check_output(tmp_path, overwrite=True, what="the run")
    assert (tmp_path / "thesis.tex").exists()
    write_provenance(Artefact("samples", tmp_path, "2026-01-01T00:00:00"))
    with pytest.raises(WouldOverwriteError, match=r"did not make \(thesis.tex\)"):
        check_output(tmp_path, overwrite=True, what="the run", kind="samples")
    (tmp_path / "thesis.tex").unlink()
    check_output(tmp_path, overwrite=True, what="the run", kind="samples")
    assert not tmp_path.exists()


def _hold(path: Path, held: Any) -> None:
    with hold_lock(path, what="the run"):
        held.set()
        time.sleep(60)


def test_a_lock_is_refused_while_held_and_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held))
    holder.start()
    assert held.wait(30)
    with pytest.raises(MachineError, match="another brics process"), hold_lock(tmp_path / "lock", what="the run"):
        pass
    holder.kill()
    holder.join()
    with hold_lock(tmp_path / "lock", what="the run"):
        pass


def test_texts_that_were_never_written_are_empty_however_many(tmp_path: Path) -> None:
    """The metadata of a store of a million images that have none: HDF5 gives it no place in the file."""
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file.create_dataset("meta", (2**20 + 1,), h5py.string_dtype())
    with open_hdf5(tmp_path / "many.h5") as file:
        assert file["meta"][2**20] == b"" and list(file["meta"][5:7]) == [b"", b""]


def test_the_outline_of_a_store_is_kept_for_later_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "codes.h5", ["a"])  # whoever writes one keeps its outline

    def summary() -> Any:
        hdf5._outlines.clear()  # as in another process
        found = Workspace(tmp_path).newest("store").details["summary"]
        return found, KeyCodeStore(path).failures

    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_in_child", lambda files: pytest.fail("it was read again"))
        first = summary()
    shutil.copy(path, tmp_path / "copy.h5")
    tmp_path.joinpath("copy.h5").replace(path)  # as large, another file
    os.utime(path, ns=(0, 0))
    read: list[int] = []
    monkeypatch.setattr(hdf5, "GRANULARITY_NS", 10**15)
    in_child = hdf5._in_child
    monkeypatch.setattr(hdf5, "_in_child", lambda files: read.append(1) or in_child(files))
    assert summary() == first and summary() == first
    assert len(read) == 2, "it was kept though it is so young that it may change unnoticed"
    monkeypatch.setattr(hdf5, "GRANULARITY_NS", -(10**12))
    assert summary() == first and summary() == first
    assert len(read) == 3


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(value: int) -> None:
        with h5py.File(tmp_path / "changing.h5", "a") as file:
            file.attrs["value"] = value

    def read_and_change(files: list[Any]) -> Any:
        outlines = in_child(files)
        write(2)
        return outlines

    def value() -> int:
        with open_hdf5(tmp_path / "changing.h5") as file:
            return file.attrs["value"]

    write(1)
    in_child = hdf5._in_child
    monkeypatch.setattr(hdf5, "GRANULARITY_NS", -(10**12))  # as if all of this were long ago
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_in_child", read_and_change)
        assert value() == 1
    assert value() == 2, "the outline of what it was is remembered for what it is"
    hdf5._outlines.clear()
    assert value() == 2


def test_a_kept_outline_is_read_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "codes.h5", ["a"])
    hdf5._outlines.clear()  # as in another process
    read: list[Path] = []
    read_bytes = hdf5.read_bytes
    monkeypatch.setattr(hdf5, "read_bytes", lambda path, *, most: read.append(path) or read_bytes(path, most=most))
    Workspace(tmp_path).newest("store")
    Workspace(tmp_path).newest("store")
    assert len(read) == 1
