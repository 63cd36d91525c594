"""Which model draws, and pictures of it: `--ema`, `--guide`, `--grid`, `--interpolate`; and what cannot be meant."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, error_line
from diffusion_workspace import make_model, make_workspace
from PIL import Image

from brics_cli import load_denoiser
from brics_cli.diffusion.classes import Classes
from brics_cli.jobs.sample_picture import spherical
from brics_cli.sampling.models import ImageNoise
from brics_cli.workspace import Workspace, read_provenance

FAST = ("sample", "--steps", "3", "--batch-size", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `d`, a weaker one `weak`, a foreign one `foreign`, a model with 3 classes in another workspace."""
    root = make_workspace(tmp_path_factory.mktemp("models"))
    ae_sha = load_denoiser(root / "runs/diffusion/d").lineage["autoencoder_sha256"]
    make_model(root, "weak", ae_sha=ae_sha, dim=8)
    make_model(root, "foreign", ae_sha=ae_sha, mean=0.4)
    make_workspace(root / "classes", num_classes=3)
    pngs(root, "plain")
    return root


def pngs(root: Path, name: str, *flags: object) -> dict[str, np.ndarray]:
    """Seeds 0 to 7 (unless flags say otherwise), key -> (H, W, 3)."""
    which = [] if "--seeds" in flags else ["--n", 8]
    brics(*FAST, *which, *flags, "--format", "png", "--out", root / name, cwd=root, check=0)
    return images(root / name)


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))}


def tiles(picture: Path, *, num_rows: int, num_columns: int, labelled: bool) -> list[np.ndarray]:
    """The images in a picture of 16 px images enlarged 8 times, row by row."""
    side, gap, title, caption = 128, 2, 24, 16 if labelled else 0
    sheet = np.asarray(Image.open(picture)).astype(int)
    found = []
    for row in range(num_rows):
        top = title + gap + row * (side + caption + gap) + caption
        for column in range(num_columns):
            left = gap + column * (side + gap)
            found.append(sheet[top : top + side : 8, left : left + side : 8])
    return found


def test_an_average_gives_its_own_images_and_is_on_record(workspace):
    plain, other = images(workspace / "plain"), pngs(workspace, "ema", "--ema", "0.05")
    assert max(np.abs(plain[key] - other[key]).max() for key in plain) > 20
    artefact = read_provenance(workspace / "ema")
    averaged = load_denoiser(workspace / "runs/diffusion/d", ema=0.05)
    assert artefact.details["settings"]["ema"] == 0.05
    assert artefact.details["settings"]["ema_sha256"] == averaged.weights_sha256
    run = Workspace(workspace).newest("diffusion")  # found again by the sha256 that it goes by
    assert artefact.parent("diffusion").sha256 == run.details["sha256"] != averaged.weights_sha256
    assert "ema" not in read_provenance(workspace / "plain").details["settings"]
    refused = brics(*FAST, "--n", 8, "--format", "png", "--out", "ema", cwd=workspace, check=4)
    assert "--overwrite" in error_line(refused)


def test_a_guide_leads_away_from_itself_and_is_on_record(workspace):
    plain = images(workspace / "plain")
    guided = pngs(workspace, "guided", "--guide", "runs/diffusion/weak/model", "--guidance", "1.5")
    assert max(np.abs(plain[key] - guided[key]).max() for key in plain) > 20
    weak = load_denoiser(workspace / "runs/diffusion/weak")
    artefact = read_provenance(workspace / "guided")
    assert artefact.parent("guide").sha256 == weak.weights_sha256
    assert Path(artefact.parent("guide").path) == (workspace / "runs/diffusion/weak").resolve()
    assert artefact.details["settings"]["guidance"] == 1.5


def test_a_store_knows_its_guide(workspace):
    flags = (*FAST, "--n", 8, "--codes", "--out", "guided.h5", "--guidance", 1.5, "--guide")
    brics(*flags, "runs/diffusion/weak", cwd=workspace, check=0)
    ae_sha = load_denoiser(workspace / "runs/diffusion/d").lineage["autoencoder_sha256"]
    make_model(workspace, "weaker", ae_sha=ae_sha, dim=8)
    other = brics(*flags, "runs/diffusion/weaker", cwd=workspace, check=3)
    assert "is a store of other inputs: source: was" in error_line(other)


def test_a_grid_shows_its_seeds(workspace):
    said = brics(*FAST, "--grid", "2x3", "--seed", 2, "--out", "grid.png", "--json", cwd=workspace, check=0)
    result = json.loads(said.stdout)
    assert result["seeds"] == [2, 3, 4, 5, 6, 7] and result["labels"] is None
    plain = images(workspace / "plain")
    for seed, tile in zip(range(2, 8), tiles(workspace / "grid.png", num_rows=2, num_columns=3, labelled=True),
                          strict=True):  # fmt: skip
        assert np.abs(tile - plain[f"{seed:08d}"]).max() <= 1
    artefact = read_provenance(workspace / "grid.png")
    assert artefact.kind == "pictures" and artefact.details["settings"]["grid"] == "2x3"
    assert Workspace(workspace).newest("samples").path.name != "grid.png"  # not what `brics eval` measures
    brics(*FAST, "--grid", "2x3", "--out", "grid.png", cwd=workspace, check=4)
    brics(*FAST, "--grid", "1x2", "--out", "grid.png", "--overwrite", cwd=workspace, check=0)


def test_a_grid_of_classes_has_one_per_row(workspace):
    root = workspace / "classes"
    said = brics(*FAST, "--grid", "3x4", "--out", "grid.png", "--json", cwd=root, check=0)
    result = json.loads(said.stdout)
    assert result["seeds"] == [0, 1, 2, 3] * 3 and result["labels"] == [0] * 4 + [1] * 4 + [2] * 4
    shown = tiles(root / "grid.png", num_rows=3, num_columns=4, labelled=True)
    for class_ in range(3):
        of_class = pngs(root, f"class-{class_}", "--class", class_)
        for seed in range(4):
            assert np.abs(shown[4 * class_ + seed] - of_class[f"{seed:08d}"]).max() <= 1
    assert np.abs(shown[0] - shown[4]).max() > 20
    refused = brics(*FAST, "--grid", "4x4", "--out", "more.png", cwd=root, check=2)
    assert "--grid 4x4 needs a class for each row, and runs/diffusion/d has 3" in error_line(refused)
    brics(*FAST, "--grid", "4x4", "--class", 1, "--out", "more.png", cwd=root, check=0)


def test_an_interpolation_begins_and_ends_with_its_seeds(workspace):
    said = brics(*FAST, "--interpolate", 3, 7, "--frames", 10, "--out", "way", "--json", cwd=workspace, check=0)
    result = json.loads(said.stdout)
    frames = list(images(workspace / "way").items())[:10]
    assert [name for name, _ in frames] == [f"frame-{i:02d}" for i in range(10)]
    assert result["frames"][-1].endswith("way/frame-09.png") and result["path"].endswith("way/strip.png")
    plain = images(workspace / "plain")
    for frame, key in ((frames[0][1], "00000003"), (frames[-1][1], "00000007")):
        assert np.abs(frame - plain[key]).max() <= 1
    steps = [np.abs(a - b).mean() for (_, a), (_, b) in pairwise(frames)]
    apart = np.abs(plain["00000003"] - plain["00000007"]).mean()
    assert min(steps) > 0 and max(steps) < apart  # no jump
    for (_, frame), tile in zip(frames, tiles(workspace / "way/strip.png", num_rows=1, num_columns=10, labelled=False),
                                strict=True):  # fmt: skip
        assert (frame == tile).all()
    assert read_provenance(workspace / "way").details["settings"]["interpolate"] == [3, 7]
    brics(*FAST, "--interpolate", 3, 7, "--out", "way", "--overwrite", cwd=workspace, check=0)
    assert len(list((workspace / "way").glob("frame-*.png"))) == 12


def test_frames_of_a_model_with_classes_are_of_one(workspace):
    finished = brics(*FAST, "--interpolate", 0, 1, "--out", "way", cwd=workspace / "classes", check=0)
    label = Classes(3).draw([0])[0]
    assert f"--class not given: class {label}, that of seed 0, for all frames" in finished.stderr


def test_the_arc_keeps_the_length_of_noise():
    a, b = ImageNoise([1, 2], shape=(16, 8, 8))()
    assert torch.equal(spherical(a, b, 0.0), a) and torch.equal(spherical(a, b, 1.0), b)
    half = spherical(a, b, 0.5)
    assert half.norm() == pytest.approx(float((a.norm() + b.norm()) / 2), rel=0.02)
    assert ((a + b) / 2).norm() < 0.75 * half.norm()  # what a straight line would give
    assert torch.allclose(half, spherical(b, a, 0.5))


BAD = [
    (["--ema", "0.3"], 3, "runs/diffusion/d/model holds no average of width 0.3: it has those of width 0.05."),
    (["--guide", "runs/diffusion/weak"], 2, "--guide: with --guidance 1 the model alone is used."),
    (["--guide", "runs/diffusion/d", "--guidance", "2"], 2, "is the model itself, and would have no effect."),
    (["--guide", "nowhere", "--guidance", "2"], 3, "no diffusion run at nowhere."),
    (["--guide", "runs/diffusion/foreign", "--guidance", "2"], 3, "does not fit"),
    (["--guidance", "nan"], 2, "--guidance nan is not a number."),
    (["--guidance", "2"], 2, "--guidance: runs/diffusion/d was trained without classes."),
    (["--interpolate", "3", "7", "--sampler", "ddpm"], 2, "--interpolate with --sampler ddpm: it draws new noise"),
    (["--interpolate", "3", "3"], 2, "--interpolate 3 3: both ends are the same seed."),
    (["--interpolate", "-1", "3"], 2, "--interpolate -1 3: seed -1 is not from 0"),
    (["--interpolate", "1", "3", "--n", "5"], 2, "--interpolate takes no --n."),
    (["--interpolate", "1", "3", "--out", "x.png"], 2, "--out x.png is named like a .png file"),
    (["--interpolate", "1", "3", "--frames", "1"], 2, "--frames"),
    (["--frames", "5"], 2, "--frames goes with --interpolate."),
    (["--grid", "2x2", "--interpolate", "1", "2"], 2, "--grid and --interpolate were both given."),
    (["--grid", "4"], 2, "--grid 4 is not ROWSxCOLS, each from 1 to 256."),
    (["--grid", "0x4"], 2, "--grid 0x4 is not ROWSxCOLS"),
    (["--grid", "2x2", "--codes"], 2, "--grid takes no --codes."),
    (["--grid", "2x2", "--out", "grid.jpg"], 2, "--out grid.jpg does not end in .png."),
    (["--grid", "2x2", "--device", "cpu,cpu"], 2, "--device cpu,cpu: a picture is drawn on one device."),
    (["--codes", "--format", "png"], 2, "--codes and --format png disagree."),
    (["--codes", "--out", "x.zip"], 2, "--out x.zip does not go with --format h5."),
    (["--device", "cpu,abacus"], 2, "--device 'abacus' is not a device."),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "code", "said"), BAD, ids=[" ".join(flags) for flags, _, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(workspace, flags, code, said):
    before = set(workspace.iterdir())
    given = (
        "sample",
        "--steps",
        3,
        "--model",
        "runs/diffusion/d",
        "--device",
        "cpu",
        *flags,
    )  # the last --device counts
    assert said in error_line(brics(*given, cwd=workspace, check=code))
    assert set(workspace.iterdir()) == before


def test_weights_that_are_not_finite_are_said(workspace, tmp_path):
    from safetensors.torch import load_file, save_file

    root = make_workspace(tmp_path / "w")
    weights = root / "runs/diffusion/d/model/model.safetensors"
    state = load_file(weights)
    state["network.head.bias"][:] = float("nan")
    save_file(state, weights)
    line = error_line(brics(*FAST, "--n", 8, "--out", "s", cwd=root, check=3))
    assert "holds values that are not finite (NaN or infinity), first in 'network.head.bias'" in line
