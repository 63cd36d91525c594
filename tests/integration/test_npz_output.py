"""ADM's npz through the commands: written by sample and decode, read by eval and pack; endings that are not meant."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import brics, error_line
from diffusion_workspace import make_workspace
from killing import Command
from PIL import Image

from brics_cli.images import open_collection
from brics_cli.images.pixels import load_pixels
from brics_cli.images.sinks import pieces

COMMON = ["--model", "runs/diffusion/d", "--steps", "3", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """With 20 samples of two classes as `s.npz`, as `pngs` and, of the same images, as shards `s`."""
    root = make_workspace(tmp_path_factory.mktemp("npz"), num_classes=2)
    for out, format in (("s.npz", "npz"), ("pngs", "png"), ("s", "wds")):
        brics("sample", *COMMON, "--n", "20", "--out", out, "--format", format, cwd=root)
    return root


def saved(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_samples_are_the_same_images_and_labels_in_every_form(workspace):
    arrays = saved(workspace / "s.npz")
    pngs = [np.asarray(Image.open(path)) for path in sorted((workspace / "pngs").glob("*.png"))]
    assert np.array_equal(arrays["arr_0"], pngs)
    shards = list(open_collection(workspace / "s").iter_shard(0))
    assert arrays["arr_1"].tolist() == [raw.label for raw in shards] and arrays["arr_1"].dtype == np.int64
    assert set(arrays["arr_1"].tolist()) == {0, 1}
    assert [key.decode() for key in arrays["keys"]] == [f"{seed:08d}" for seed in range(20)]


def test_the_bytes_do_not_depend_on_the_number_of_processes(workspace):
    brics("sample", *COMMON, "--n", "20", "--out", "two.npz", "--device", "cpu,cpu", "--shard-size", "8", cwd=workspace)
    assert (workspace / "two.npz").read_bytes() == (workspace / "s.npz").read_bytes()


def test_a_killed_decode_goes_on_to_the_same_bytes(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    brics("sample", *COMMON, "--n", "3000", "--codes", "--out", "many.h5", "--batch-size", "500", cwd=workspace)
    arguments = ["decode", "many.h5", "--batch-size", "50", "--out"]
    brics(*arguments, "whole.npz", cwd=workspace)
    command = Command([*arguments, "cut.npz"], tmp_path / "log")
    begun = pieces.pieces_directory(workspace / "cut.npz")
    assert command.stop_when(lambda: any(begun.glob("*.tar")), signal.SIGKILL) == -9
    assert not Path("cut.npz").exists()
    said = brics(*arguments, "cut.npz", cwd=workspace).stderr
    assert "going on after" in said and not begun.exists()
    assert Path("cut.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert len(saved(Path("cut.npz"))["arr_0"]) == 3000


def test_eval_takes_an_npz_on_both_sides(workspace, tmp_path):
    for real, fake in (("s.npz", "pngs"), ("pngs", "s.npz"), ("s.npz", "s")):
        measured = brics("eval", "--metric", "psnr", "--metric", "fd-random", "--real", real, "--fake", fake, "--json",
                         cwd=workspace)  # fmt: skip
        psnr, fd = json.loads(measured.stdout)["results"]
        assert psnr["value"] is None  # infinite: they are equal
        assert abs(fd["value"]) < 1e-3


def test_pack_takes_an_npz_with_its_labels(workspace):
    brics("pack", "s.npz", "--out", "packed", "--size", "16", cwd=workspace)
    packed = list(open_collection(workspace / "packed").iter_shard(0))
    arrays = saved(workspace / "s.npz")
    assert [raw.label for raw in packed] == arrays["arr_1"].tolist()
    assert np.array_equal([load_pixels(raw.data, transform="none", size=16) for raw in packed], arrays["arr_0"])


def test_statistics_and_images_are_not_taken_for_each_other(workspace):
    np.savez(workspace / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    assert "holds statistics (mu, sigma), not images" in error_line(
        brics("pack", "stats.npz", "--out", "nothing", cwd=workspace, check=2)
    )
    np.savez(workspace / "floats.npz", np.zeros((4, 8, 8, 3), np.float32))
    for side in (("--real", "floats.npz", "--fake", "s.npz"), ("--fake", "floats.npz", "--real", "s.npz")):
        line = error_line(brics("eval", "--metric", "psnr", *side, cwd=workspace, check=2))
        assert "arr_0 is float32 (4, 8, 8, 3), and images are uint8" in line
    given = ("eval", "--metric", "psnr", "--real", "stats.npz", "--fake", "s.npz")
    line = error_line(brics(*given, cwd=workspace, check=2))
    assert "saved statistics hold none" in line


REFUSED = [
    ("sample", "--out", "s2.npz", "--format", "png"),
    ("sample", "--out", "s2.npz", "--format", "h5"),
    ("sample", "--out", "s2", "--format", "npz"),
    ("sample", "--out", "s2.zip", "--format", "npz"),
    ("sample", "--out", "four.bmp", "--n", "4"),
    ("sample", "--out", "four.jpg", "--n", "4", "--format", "png"),
    ("sample", "--out", "x.tar.gz"),
    ("sample", "--out", "x.NPZ"),
    ("decode", "codes.h5", "--out", "x.npz", "--format", "wds"),
    ("decode", "codes.h5", "--out", "x.tar", "--format", "png"),
    ("decode", "codes.h5", "--out", "x.png"),
    ("decode", "codes.h5", "--out", "x.safetensors"),
    ("decode", "codes.h5", "--out", "x.npz", "--nested"),
    ("pack", "pngs", "--out", "x.npz"),
    ("pack", "pngs", "--out", "x.png"),
    ("encode-dataset", "pngs", "--ae", "runs/autoencoder/a", "--out", "codes.npz"),
    ("reconstruct", "pngs/00000000.png", "--ae", "runs/autoencoder/a", "--out", "sheet.npz"),
    ("eval", "--metric", "psnr", "--real", "pngs", "--fake", "s.npz", "--out", "r.png"),
    ("train-ae", "pngs", "--recipe", "tiny", "--out", "run.npz"),
    ("demo", "--out", "demo.zip"),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_an_ending_that_is_not_meant_is_refused_before_any_work(workspace, arguments):
    """The store that `decode` would read is not even there."""
    before = sorted(workspace.iterdir())
    given = [*arguments, *(COMMON if arguments[0] == "sample" else [])]
    line = error_line(brics(*given, cwd=workspace, check=2))
    out = arguments[arguments.index("--out") + 1]
    assert f"--out {out}" in line or "--nested" in line
    assert sorted(workspace.iterdir()) == before


def test_what_the_ending_was_taken_for_is_said(workspace):
    said = brics("sample", *COMMON, "--n", "8", "--out", "said.npz", "--dry-run", cwd=workspace)
    assert "--format not given: npz, by the ending of said.npz" in said.stderr
    assert "as npz into said.npz" in said.stdout
