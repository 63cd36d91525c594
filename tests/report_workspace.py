"""A small workspace with a bit of everything, made by the commands, for tests of `brics report`."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

from commands import brics


def make_workspace(root: Path, photographs: Path) -> Path:
    """48 photographs, a few steps of training, codes, reconstructions, samples and scores."""
    root.mkdir()
    shutil.copytree(photographs, root / "images")
    for line in (
        ("pack", "images", "--size", 64, "--out", "shards"),
        ("train-ae", "shards", "--val", "shards", "--recipe", "tiny", "--steps", 20, "--set", "training.log_every=5",
         "--set", "training.val_every=10", "--out", "runs/autoencoder/a"),
        ("encode-dataset", "shards", "--ae", "runs/autoencoder/a", "--out", "codes.h5"),
        ("decode", "codes.h5", "--out", "decoded"),
        ("train-diffusion", "codes.h5", "--recipe", "tiny", "--steps", 10, "--set", "training.log_every=2",
         "--set", "training.fd_samples=0", "--out", "runs/diffusion/d"),
        ("sample", "--model", "runs/diffusion/d", "--n", 12, "--steps", 2, "--out", "runs/samples/s"),
        ("eval", "--metric", "psnr", "--metric", "ssim", "--metric", "usage", "--real", "shards", "--fake", "codes.h5",
         "--out", "scores.json"),
    ):  # fmt: skip
        brics(*line, cwd=root, check=0)
    return root


def page_of(root: Path) -> str:
    return (root / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader without a browser sees of a page: no tags, white space as it comes."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"[ \n]+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))
