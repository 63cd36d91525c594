"""What is wrong with a command is said before any image is read and any model built."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import brics
from diffusion_workspace import make_workspace
from PIL import Image
from random_autoencoder import make_autoencoder

from brics_cli.errors import UsageError
from brics_cli.images.sources.folder import FolderCollection
from brics_cli.jobs.decode import decode, plan_decoding
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.plan import TrainOptions, plan_autoencoder
from brics_cli.workspace import Workspace

WRONG = {
    "train-ae images --recipe tyni": 2,
    "train-ae images --recipe tiny --set optimiser.lrr=1": 2,
    "train-ae images --recipe tiny --device gpu": 2,
    "train-ae images --recipe tiny --out run.zip": 2,
    "train-ae images --recipe tiny --val nowhere": 2,
    "train-ae images --recipe tiny --out mine": 4,
    "train-ae images --recipe tiny --out mine --overwrite": 4,
    "train-ae images --recipe tiny --init-from nowhere": 3,
    "train-ae images --recipe tiny --set loss.perceptual.kind=lpips": 3,
    "train-ae images --out mine": 4,
    "train-ae images --set optimiser.lrr=1": 2,
    "train-diffusion codes.h5 --recipe tyni": 2,
    "train-diffusion codes.h5 --recipe tiny --set denoiser.dim=3": 2,
    "train-diffusion codes.h5 --recipe tiny --out mine": 4,
    "encode-dataset images --ae ae --out mine.h5": 4,
    "encode-dataset images --ae ae --out codes.zip": 2,
    "encode-dataset nowhere --ae ae": 2,
    "encode-dataset images --ae other --size 64 --out codes.h5": 3,
    "encode-dataset images --ae ae --quantisation uint9": 2,
    "decode codes.h5 --out mine": 4,
    "decode codes.h5 --out x.zip --format png": 2,
    "decode codes.h5 --out decoded": 4,
    "decode codes.h5 --out decoded.zip": 3,
    "sample --out mine": 4,
    "sample --out mine.zip": 4,
    "sample --n 2 --sampler ddim --out drawn": 4,
    "sample --sampler dmp": 2,
    "sample --grid 2x2 --out mine.png": 4,
    "eval --metric fid --real images --fake codes.h5": 3,
    "eval --metric psnr --real images --fake codes.h5 --out mine.json": 4,
    "reconstruct images/0.png --ae ae --out mine.png": 4,
    "pack images --out mine": 4,
    "demo --device gpu": 2,
    "demo --out mine": 4,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, two autoencoders, a store, a diffusion model, and files that are the user's."""
    root = make_workspace(tmp_path_factory.mktemp("first"))
    (root / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(root / "images" / f"{number}.png")
    make_autoencoder(root / "ae", seed=0)
    make_autoencoder(root / "other", seed=1)
    brics("encode-dataset", "images", "--ae", "ae", "--out", "codes.h5", cwd=root, check=0)
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").write_text("years of work")
    shutil.copy(root / "images" / "0.png", root / "mine.png")
    brics("encode-dataset", "images", "--limit", 2, "--ae", "ae", "--out", "few.h5", cwd=root, check=0)
    for name in ("decoded", "decoded.zip"):  # the one is finished, the other begun
        place, reporter = Workspace(root), SilentReporter()
        plan = plan_decoding(root / "few.h5", out=root / name, device="cpu", workspace=place, reporter=reporter)
        plan.sink.claim(plan.artefact, overwrite=False)
        if name == "decoded":
            decode(plan, reporter=reporter)
    brics("sample", "--n", 2, "--out", "drawn", "--model", "runs/diffusion/d", cwd=root, check=0)
    for name in ("mine.h5", "mine.zip", "mine.json"):
        (root / name).write_text("years of work")
    return root


@pytest.mark.parametrize("command", WRONG)
def test_nothing_is_read_or_built_before_what_is_wrong_is_said(workspace, command, monkeypatch):
    def fail(what):
        return lambda *args, **kwargs: pytest.fail(f"{what} before the command was known to be wrong")

    monkeypatch.setattr(FolderCollection, "read", fail("an image was read"))
    monkeypatch.setattr(torch.nn.Module, "__init__", fail("a model was built"))
    before = sorted(path for path in workspace.rglob("*") if path.is_file())
    brics(*command.split(), cwd=workspace, check=WRONG[command], BRICS_WEIGHTS=str(workspace / "none"))
    assert sorted(path for path in workspace.rglob("*") if path.is_file()) == before


def test_settings_are_checked_before_images_choose_the_recipe(workspace, monkeypatch):
    """As on a GPU, where the median side decides."""
    monkeypatch.setattr(FolderCollection, "read", lambda *_: pytest.fail("an image was read"))
    monkeypatch.setattr("brics_cli.training.plan.resolve_device", lambda _: torch.device("meta"))
    asked = TrainOptions(str(workspace / "images"), overrides=["optimiser.lrr=1"])
    with pytest.raises(UsageError, match="did you mean 'lr'"):
        plan_autoencoder(asked, workspace=Workspace(workspace), reporter=SilentReporter())
