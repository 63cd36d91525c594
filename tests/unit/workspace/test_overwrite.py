"""What --overwrite may remove: an output of the same kind, and nothing that anybody needs."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
from pathlib import Path
from unittest.mock import patch

import pytest
from commands import brics, error_line
from diffusion_workspace import make_workspace
from image_files import noise
from store_files import write_store

from brics_cli import KeyCodeStore
from brics_cli.errors import WouldOverwriteError
from brics_cli.workspace import Artefact, check_output, read_provenance, write_provenance


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"pixels")
    write_provenance(Artefact("shards", folder, "2026-01-01T00:00:00"))
    return folder


def overwrite(path: Path, *, kind: str, inputs: tuple[str, ...] = ()) -> None:
    check_output(path, overwrite=True, what="the output", kind=kind, inputs=inputs)


def test_an_output_of_the_same_kind_is_emptied(shards: Path) -> None:
    overwrite(shards, kind="shards", inputs=("/elsewhere",))
    assert not shards.exists()


def test_another_kind_stays(shards: Path) -> None:
    with pytest.raises(WouldOverwriteError, match="kind 'shards', and --overwrite replaces kind 'samples' alone"):
        overwrite(shards, kind="samples")
    assert (shards / "00000.tar").exists()


@pytest.mark.parametrize("text", ["", "/00000.tar", "/{00000..00000}.tar", "/precious"])
def test_what_the_command_reads_stays(shards: Path, text: str) -> None:
    with pytest.raises(WouldOverwriteError, match="which this command reads"):
        overwrite(shards, kind="shards", inputs=(f"{shards}{text}",))
    assert (shards / "00000.tar").exists()


def test_a_directory_with_other_artefacts_in_it_stays(shards: Path) -> None:
    (shards / "run").mkdir()
    write_provenance(Artefact("samples", shards / "run", "2026-01-01T00:00:00"))
    with pytest.raises(WouldOverwriteError, match="holds other artefacts"):
        overwrite(shards, kind="shards")


def file_of(tmp_path: Path, kind: str) -> Path:
    """Something of `kind` at a path that an output could have."""
    path = tmp_path / "out.png"
    (tmp_path / "theirs.png").write_bytes(b"precious")
    match kind:
        case "link":
            path.symlink_to("theirs.png")
        case "link to nothing":
            path.symlink_to("nowhere.png")
        case "link to a folder":
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "a").touch()
            path.symlink_to("folder")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case "device":
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    return path


@pytest.mark.parametrize("kind", ["link", "link to nothing", "link to a folder", "pipe", "socket", "device"])
@pytest.mark.parametrize("overwriting", [False, True])
def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path: Path, kind: str, overwriting: bool) -> None:
    path = file_of(tmp_path, kind)
    before = path.lstat()
    with pytest.raises(WouldOverwriteError, match=f"is a {kind.split()[0]}"):
        check_output(path, overwrite=overwriting, what="the output")
    assert path.lstat() == before and (tmp_path / "theirs.png").read_bytes() == b"precious"


COMMANDS = {
    "x.json": ("eval", "--metric", "psnr", "--real", "images", "--fake", "images", "--no-cache", "--out"),
    "x.png": ("reconstruct", "images/0.png", "--ae", "runs/autoencoder/a", "--out"),
    "x.h5": ("encode-dataset", "images", "--ae", "runs/autoencoder/a", "--out"),
    "x.zip": ("decode", "codes.h5", "--ae", "runs/autoencoder/a", "--out"),
    "x.tar": ("decode", "codes.h5", "--ae", "runs/autoencoder/a", "--out"),
    "x.npz": ("decode", "codes.h5", "--ae", "runs/autoencoder/a", "--format", "npz", "--out"),
    "grid.png": ("sample", "--grid", "1x2", "--steps", "1", "--out"),
    "shards": ("pack", "images", "--size", "16", "--out"),
    "pngs": ("decode", "codes.h5", "--ae", "runs/autoencoder/a", "--format", "png", "--out"),
    "samples": ("sample", "--n", "2", "--steps", "1", "--format", "png", "--out"),
    "latents": ("export", "codes.h5", "--to", "lightningdit", "--no-flips", "--out"),
    "run": ("train-ae", "images", "--recipe", "tiny", "--steps", "1", "--set", "training.batch_size=2", "--out"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_workspace(tmp_path_factory.mktemp("overwriting"))
    (folder / "images").mkdir()
    for number in range(6):
        (folder / "images" / f"{number}.png").write_bytes(noise(number))
    brics("encode-dataset", "images", "--ae", "runs/autoencoder/a", "--out", "codes.h5", cwd=folder, check=0)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_replaces_what_it_made_and_nothing_of_the_users(workspace: Path, name: str) -> None:
    arguments = (*COMMANDS[name], name)
    out = workspace / name
    brics(*arguments, cwd=workspace, check=0)
    brics(*arguments, "--overwrite", cwd=workspace, check=0)
    if out.is_dir():
        (out / "notes.txt").write_text("precious")
        (out / "mine.png").write_bytes(noise(9))
        line = error_line(brics(*arguments, "--overwrite", cwd=workspace, check=4))
        assert "mine.png, notes.txt" in line
        assert (out / "notes.txt").read_text() == "precious" and (out / "brics.json").exists()
        return
    out.unlink()
    out.write_bytes(noise(9))  # the user's, with our provenance still beside it
    line = error_line(brics(*arguments, "--overwrite", cwd=workspace, check=4))
    assert "not made by brics" in line and out.read_bytes() == noise(9)
    out.unlink()
    out.symlink_to("codes.h5")
    before = (workspace / "codes.h5").read_bytes()
    assert "is a link to codes.h5" in error_line(brics(*arguments, "--overwrite", cwd=workspace, check=4))
    assert out.is_symlink() and (workspace / "codes.h5").read_bytes() == before
    out.unlink()


def test_what_is_read_is_never_replaced_under_any_name(tmp_path: Path) -> None:
    stores = [write_store(tmp_path / f"{name}.h5", [name]) for name in ("a", "b")]
    os.link(stores[0], tmp_path / "hard.h5")
    (tmp_path / "link").symlink_to(".")
    for out in ("a.h5", "hard.h5", "link/b.h5", "./a.h5"):
        line = error_line(brics("merge", "a.h5", "b.h5", "--out", out, "--overwrite", cwd=tmp_path))
        assert "which this command reads" in line or "is one of the stores to merge" in line
    assert [len(KeyCodeStore(path)) for path in stores] == [3, 3] and (tmp_path / "hard.h5").samefile(stores[0])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("shards", "2019-holiday.tar"),
        ("shards", "00000.tar.bak"),
        ("shards", "7.tar"),
        ("autoencoder", "model/mine.safetensors"),
        ("diffusion", "model/ema-before.safetensors"),
        ("autoencoder", "checkpoints/step-00000004/mine.pt"),
        ("autoencoder", "checkpoints/step-best/weights.safetensors"),
        ("autoencoder", "model/below/config.json"),
        ("latents", "latents_rank9_shard99.safetensors"),
        ("latents", "latents_rank00_shard000-mine.safetensors"),
    ],
)
def test_files_that_are_only_named_like_ours_stay(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"precious")
    write_provenance(Artefact(kind, tmp_path / "out", "2026-01-01T00:00:00"))
    with pytest.raises(WouldOverwriteError, match=f"did not make \\({re.escape(name)}\\)"):
        overwrite(tmp_path / "out", kind=kind)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("listed", [{"manifest.json": {"shards": [{"name": "00000.tar"}]}},
                                    {"wids.json": {"shardlist": [{"url": "00000.tar"}]}}])  # fmt: skip
def test_a_shard_that_a_finished_folder_does_not_list_is_the_users(tmp_path: Path, listed: dict[str, object]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_provenance(Artefact("shards", out, "2026-01-01T00:00:00"))
    for name, value in listed.items():
        (out / name).write_text(json.dumps(value))
    (out / "00000.tar").write_bytes(b"ours")
    (out / "00007.tar").write_bytes(b"precious")
    with pytest.raises(WouldOverwriteError, match=r"did not make \(00007.tar\)"):
        overwrite(out, kind="shards")
    (out / "00007.tar").rename(tmp_path / "00007.tar")
    overwrite(out, kind="shards")
    assert not out.exists()


def test_a_failing_command_leaves_the_old_file(workspace: Path) -> None:
    arguments = ("decode", "codes.h5", "--ae", "runs/autoencoder/a", "--out", "kept.zip")
    brics(*arguments, cwd=workspace, check=0)
    before = (workspace / "kept.zip").read_bytes()
    with patch("brics_cli.images.sinks.zip.ZipSink._join", side_effect=OSError(errno.ENOSPC, "full")):
        brics(*arguments, "--overwrite", cwd=workspace, check=6)
    assert (workspace / "kept.zip").read_bytes() == before


@pytest.mark.parametrize("place", ["cwd", "above the cwd", "home"])
def test_the_places_one_stands_in_are_never_emptied(tmp_path: Path, monkeypatch, place: str) -> None:
    folder = tmp_path / "place"
    (folder / "below").mkdir(parents=True)
    write_provenance(Artefact("samples", folder, "2026-01-01T00:00:00"))
    monkeypatch.chdir(folder if place == "cwd" else folder / "below" if place == "above the cwd" else tmp_path)
    if place == "home":
        monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(WouldOverwriteError, match="is or holds"):
        check_output(folder, overwrite=True, what="the output", kind="samples")
    assert (folder / "brics.json").exists()


def test_parts_never_go_into_a_folder_of_the_users(workspace: Path) -> None:
    theirs = workspace / "new.h5.parts"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("precious")
    arguments = ("encode-dataset", "images", "--ae", "runs/autoencoder/a", "--out", "new.h5")
    for more in ((), ("--overwrite",)):
        assert "thesis.tex" in error_line(brics(*arguments, *more, cwd=workspace, check=4))
    assert (theirs / "thesis.tex").read_text() == "precious"


def test_a_path_that_is_no_utf8_goes_through_every_command(workspace: Path) -> None:
    images = "caf\udce9"
    (workspace / images).mkdir()
    for number in range(2):
        (workspace / images / f"{number}.png").write_bytes(noise(number))
    encode = ("encode-dataset", images, "--ae", "runs/autoencoder/a", "--out", "latin.h5")
    for arguments in (
        *(encode, encode, ("info", "latin.h5", "--verify")),
        ("eval", "--metric", "psnr", "--real", images, "--fake", images, "--no-cache", "--out", "latin.json"),
        ("pack", images, "--size", "16", "--out", "latin-shards"),
        ("decode", "latin.h5", "--ae", "runs/autoencoder/a", "--out", f"{images}/decoded"),
    ):
        brics(*arguments, cwd=workspace, check=0)
    parents = read_provenance(workspace / "latin-shards").parents
    assert parents[0].path.endswith(f"/{images}")


def test_what_a_kill_left_of_a_model_in_the_making_may_be_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".best.0123abcd.tmp").mkdir(parents=True)
    (run / ".best.0123abcd.tmp" / "config.json").write_text("{}")
    write_provenance(Artefact("autoencoder", run, "2026-01-01T00:00:00"))
    check_output(run, overwrite=True, what="the run", kind="autoencoder")
