"""`brics sample` from end to end, with small untrained models on disk: formats, seeds, resume, lineage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_workspace import AUTOENCODER, make_workspace, tree
from killing import Command
from PIL import Image

from brics_cli.autoencoder.autoencoder import load_autoencoder, save_autoencoder, to_uint8
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.cli.app import run
from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ExitCode
from brics_cli.images.sinks import pieces
from brics_cli.jobs import sample as sample_job
from brics_cli.workspace import Artefact, read_provenance


def sample(workspace: Path, *arguments: str, code: int = ExitCode.DONE) -> None:
    common = ["--workspace", str(workspace), "--steps", "3", "--batch-size", "8", "--device", "cpu"]
    assert run(["sample", *common, *arguments]) == code


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def pngs(workspace):
    """Seeds 0 to 19 as PNG files, key -> bytes."""
    out = workspace / "all"
    sample(workspace, "--n", "20", "--out", str(out), "--format", "png")
    return {file.stem: file.read_bytes() for file in out.glob("*.png")}


def test_png_files_are_named_by_seed_and_differ(pngs):
    assert sorted(pngs) == [f"{seed:08d}" for seed in range(20)]
    assert len(set(pngs.values())) == 20


@pytest.mark.parametrize("seeds", ["5-11", "16-19", "0-0", "7-7"])
def test_the_image_of_a_seed_is_the_same_in_every_run(workspace, pngs, seeds, tmp_path):
    sample(workspace, "--seeds", seeds, "--out", str(tmp_path / "part"), "--format", "png")
    files = list((tmp_path / "part").glob("*.png"))
    first, _, last = seeds.partition("-")
    assert len(files) == int(last) - int(first) + 1
    assert all(file.read_bytes() == pngs[file.stem] for file in files)


def test_another_batch_size_changes_pixels_by_at_most_1(workspace, pngs, tmp_path):
    sample(workspace, "--n", "20", "--out", str(tmp_path / "b"), "--format", "png", "--batch-size", "3")
    for file in (tmp_path / "b").glob("*.png"):
        (workspace / "all" / file.name).stat()
        ours, other = (np.asarray(Image.open(path)).astype(int) for path in (file, workspace / "all" / file.name))
        assert np.abs(ours - other).max() <= 1


def test_default_output_is_shards_with_a_sheet_and_lineage(workspace, pngs, capsys):
    sample(workspace, "--n", "20", "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    out = Path(result["path"])
    assert out.parent == workspace / "runs" / "samples" and out.name.endswith("-tiny")
    assert "--model not given: using" in captured.err
    assert captured.err.splitlines()[-1].startswith("next: brics eval --metric fd-random --fake ")
    with tarfile.open(out / "00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert members == {f"{key}.png": data for key, data in pngs.items()}
    with Image.open(result["sheet"]) as sheet:
        assert sheet.width > 8 * 16 and sheet.height > 3 * 16
    artefact = read_provenance(out)
    assert artefact.kind == "samples" and artefact.complete
    assert [parent.kind for parent in artefact.parents] == ["diffusion", "store", "autoencoder"]
    assert artefact.details["settings"]["seeds"] == "0-19" and artefact.details["num_images"] == 20


def test_zip_holds_the_same_images(workspace, pngs, tmp_path):
    sample(workspace, "--n", "20", "--out", str(tmp_path / "s.zip"))
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.read("00000/img00000007.png") == pngs["00000007"]
    assert (tmp_path / "s.zip.sheet.png").is_file() and read_provenance(tmp_path / "s.zip").complete


def test_h5_is_a_store_of_the_codes(workspace, pngs, tmp_path):
    sample(workspace, "--n", "20", "--out", str(tmp_path / "s.h5"))
    store = KeyCodeStore(tmp_path / "s.h5")
    assert list(store.keys) == [f"{seed:08d}" for seed in range(20)] and store.artefact.kind == "samples"
    autoencoder = load_autoencoder(workspace / "runs/autoencoder/a")
    assert store.autoencoder["sha256"] == autoencoder.weights_sha256
    with torch.inference_mode():
        image = to_uint8(autoencoder.decode(torch.from_numpy(store.batch([7]))))[0].astype(int)
    direct = np.asarray(Image.open(workspace / "all" / "00000007.png")).astype(int)
    assert np.abs(image - direct).mean() < 3  # the codes were rounded to 8 bits
    before = (tmp_path / "s.h5").read_bytes()
    sample(workspace, "--n", "20", "--out", str(tmp_path / "s.h5"))
    assert (tmp_path / "s.h5").read_bytes() == before


def test_complete_is_said_and_other_settings_are_refused(workspace, tmp_path, capsys):
    out = ["--out", str(tmp_path / "s"), "--n", "4"]
    sample(workspace, *out)
    before = tree(tmp_path / "s")
    capsys.readouterr()
    sample(workspace, *out)
    assert "complete already" in capsys.readouterr().err
    sample(workspace, *out, "--sampler", "ddim", code=ExitCode.WOULD_OVERWRITE)
    assert tree(tmp_path / "s") == before
    sample(workspace, *out, "--sampler", "ddim", "--overwrite")
    assert tree(tmp_path / "s") != before


def test_dry_run_writes_nothing(workspace, tmp_path, capsys):
    sample(workspace, "--n", "1000", "--out", str(tmp_path / "s"), "--dry-run", "--json")
    planned = json.loads(capsys.readouterr().out)
    assert planned["images"] == 1000 and planned["num_evaluations"] == 3 and planned["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_classes_need_a_model_with_classes(workspace, tmp_path, capsys):
    for flags in (["--class", "1"], ["--guidance", "2"]):
        sample(workspace, "--out", str(tmp_path / "s"), *flags, code=ExitCode.USAGE)
        assert "trained without classes" in capsys.readouterr().err
    conditional = make_workspace(tmp_path / "conditional", num_classes=3)
    sample(conditional, "--out", str(tmp_path / "s"), "--class", "3", code=ExitCode.USAGE)
    assert "classes 0 to 2" in capsys.readouterr().err
    sample(conditional, "--out", str(tmp_path / "s"), "--n", "8", "--guidance", "2")
    with tarfile.open(tmp_path / "s" / "00000.tar") as tar:
        classes = {tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".cls")}
    assert len(classes) > 1 and classes <= {b"0", b"1", b"2"}


def test_the_autoencoder_is_checked_by_its_sha256(tmp_path, capsys):
    workspace = make_workspace(tmp_path / "w")
    other = build_autoencoder(AUTOENCODER)
    save_autoencoder(
        tmp_path / "other/model", config=AUTOENCODER, state=other.state_dict(), details={"transform": "crop-bicubic"}
    )
    sample(workspace, "--ae", str(tmp_path / "other"), "--out", str(tmp_path / "s"), code=ExitCode.ARTEFACT)
    assert "another autoencoder" in capsys.readouterr().err
    (workspace / "runs/autoencoder/a").rename(tmp_path / "elsewhere")
    sample(workspace, "--out", str(tmp_path / "s"), code=ExitCode.ARTEFACT)
    assert "--ae" in capsys.readouterr().err
    sample(workspace, "--ae", str(tmp_path / "elsewhere"), "--n", "2", "--out", str(tmp_path / "s"))


@pytest.mark.parametrize("name", ["s.zip", "s.npz"])
def test_a_killed_file_goes_on_where_it_stopped(workspace, tmp_path, monkeypatch, name):
    monkeypatch.setattr(pieces, "PIECE_SIZE", 50)
    arguments = ["sample", "--workspace", str(workspace), "--n", "200", "--steps", "4", "--batch-size", "25",
                 "--device", "cpu", "--quiet", "--out"]  # fmt: skip
    whole, out = tmp_path / "whole" / name, tmp_path / "cut" / name
    assert run([*arguments, str(whole)]) == ExitCode.DONE
    command = Command([*arguments, str(out)], tmp_path / "log")
    begun = pieces.pieces_directory(out)
    assert command.stop_when(lambda: len(list(begun.glob("*.tar"))) >= 2, signal.SIGKILL) == -9
    assert not out.exists()
    assert run([*arguments, str(out), "--seed", "1"]) == ExitCode.ARTEFACT  # what was begun is of other seeds
    before = {path: path.stat().st_mtime_ns for path in begun.glob("*.tar")}
    monkeypatch.setattr(sample_job, "discard_pieces", lambda path: None)
    assert run([*arguments, str(out)]) == ExitCode.DONE
    assert {path: path.stat().st_mtime_ns for path in before} == before  # none of them was sampled again
    monkeypatch.undo()
    assert run([*arguments, str(out)]) == ExitCode.DONE  # complete; what a kill left of the pieces goes
    assert tree(out.parent).keys() == {name, f"{name}.brics.json", f"{name}.sheet.png"}
    for file in (name, f"{name}.sheet.png"):
        assert tree(out.parent)[file] == tree(whole.parent)[file]


def test_a_killed_zip_without_a_name_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_SIZE", 25)
    root = make_workspace(tmp_path / "w")
    arguments = ["sample", "--workspace", str(root), "--n", "100", "--steps", "4", "--batch-size", "25",
                 "--device", "cpu", "--quiet", "--format", "zip"]  # fmt: skip
    command = Command(arguments, tmp_path / "log")
    assert command.stop_when(lambda: any(root.glob("runs/samples/*.zip.pieces/*.tar")), signal.SIGKILL) == -9
    assert run(arguments) == ExitCode.DONE
    names = sorted(path.name for path in (root / "runs/samples").iterdir())
    assert [name.partition(".zip")[2] for name in names] == ["", ".brics.json", ".sheet.png"]


@pytest.mark.parametrize(("how", "name"), [(signal.SIGKILL, "s"), (signal.SIGINT, "s"), (signal.SIGKILL, "s.h5")])
def test_interrupted_runs_go_on_to_the_same_bytes(workspace, tmp_path, how, name):
    """Stopped in the middle and run again: every shard, and the sheet, as from one run."""
    arguments = ["--workspace", str(workspace), "--n", "300", "--steps", "8", "--batch-size", "50", "--device", "cpu"]
    arguments += ["--shard-size", "100"]
    whole, out = tmp_path / "whole" / name, tmp_path / "cut" / name
    assert run(["sample", *arguments, "--out", str(whole), "--quiet"]) == ExitCode.DONE
    command = [sys.executable, "-m", "brics_cli", "sample", *arguments, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    first = out / "00000.tar" if name == "s" else Path(f"{out}.parts")
    while process.poll() is None and not (first.is_file() or list(first.glob("*0.h5"))):
        time.sleep(0.005)
    process.send_signal(how)
    message = process.communicate(timeout=60)[1]
    if how == signal.SIGINT:
        assert process.returncode == ExitCode.INTERRUPTED
        assert "Go on with: brics sample" in message.splitlines()[-1] and str(out) in message
    assert not (read_provenance(out) or Artefact("samples", out, "", complete=False)).complete
    assert run(["sample", *arguments, "--out", str(out), "--quiet"]) == ExitCode.DONE
    if name == "s":
        assert tree(out) == tree(whole) and len(tree(out)) == 6  # three shards, index, card and the sheet
    else:
        ours, other = KeyCodeStore(out), KeyCodeStore(whole)
        assert ours.sha256 == other.sha256 and list(ours.keys) == list(other.keys)
        assert tree(out.parent)["s.h5.sheet.png"] == tree(whole.parent)["s.h5.sheet.png"]
