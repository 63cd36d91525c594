"""A workspace with an untrained autoencoder and diffusion model, as the training commands would leave it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from brics_cli.autoencoder.autoencoder import save_autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import AutoencoderConfig, DiffusionConfig, DiTConfig, EncoderConfig, ResNetDecoderConfig
from brics_cli.diffusion.denoisers import build_denoiser, save_denoiser
from brics_cli.workspace import Artefact, Parent, write_provenance

AUTOENCODER = AutoencoderConfig(
    image_size=16,
    code_channels=4,
    encoder=EncoderConfig(widths=(8, 8, 8), num_blocks=1),
    decoder=ResNetDecoderConfig(widths=(8, 8, 8), num_blocks=1),
)


def make_workspace(root: Path, *, num_classes: int = 0) -> Path:
    """Runs `autoencoder/a` and `diffusion/d`; the latter has an average of width 0.05 beside the plain one."""
    torch.manual_seed(0)
    ae_run = root / "runs/autoencoder/a"
    autoencoder = build_autoencoder(AUTOENCODER)
    for parameter in autoencoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ae_run.mkdir(parents=True)
    ae_sha = save_autoencoder(
        ae_run / "model", config=AUTOENCODER, state=autoencoder.state_dict(), details={"transform": "crop-bicubic"}
    )
    write_provenance(Artefact("autoencoder", ae_run, "2026-01-01T00:00:00+00:00", details={"sha256": ae_sha}))
    make_model(root, "d", ae_sha=ae_sha, num_classes=num_classes)
    return root


def make_model(root: Path, name: str, *, ae_sha: str, num_classes: int = 0, dim: int = 16, mean: float = 0.5) -> str:
    """The run `diffusion/<name>` with random weights of torch's generator; the sha256 of its plain average."""
    run_path = root / "runs/diffusion" / name
    denoiser = build_denoiser(
        DiTConfig(dim=dim, depth=1, num_heads=2),
        DiffusionConfig(),
        code_shape=AUTOENCODER.code_shape,
        num_classes=num_classes,
        store_mean=[mean] * 4,
        store_std=[0.2] * 4,
    )
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    run_path.mkdir(parents=True)
    lineage = {"autoencoder_sha256": ae_sha, "store_sha256": "c" * 64, "store_path": str(root / "gone.h5")}
    state = denoiser.state_dict()
    averages = {"0.05": {key: tensor * 0.9 for key, tensor in state.items()}}
    sha = save_denoiser(run_path / "model", denoiser=denoiser, state=state, lineage=lineage, averages=averages)
    parents = (Parent("store", str(root / "gone.h5"), "c" * 64),)
    details = {"sha256": sha, "recipe": "tiny"}
    write_provenance(Artefact("diffusion", run_path, f"2026-01-02T00:00:0{name == 'd':d}", True, parents, details))
    return sha


def tree(path: Path) -> dict[str, str]:
    """sha256 of every file below `path` but the provenance, which carries times."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "brics.json"
    }
