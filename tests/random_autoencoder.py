"""An autoencoder that nobody trained, for tests of what is done with its codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from brics_cli.autoencoder.autoencoder import save_autoencoder
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import AutoencoderRecipe, load_recipe
from brics_cli.workspace import Artefact, write_provenance
from brics_cli.workspace.artefacts import now


def make_autoencoder(path: Path, *, seed: int, transform: str = "crop-bicubic", overrides: Sequence[str] = ()) -> Path:
    """Write the run `path` of the recipe `tiny`, with `overrides`, with random weights; returns it."""
    torch.manual_seed(seed)
    recipe = load_recipe("tiny", kind="autoencoder", overrides=overrides)
    assert isinstance(recipe, AutoencoderRecipe)
    state = build_autoencoder(recipe.model).state_dict()
    sha256 = save_autoencoder(path / "model", config=recipe.model, state=state, details={"transform": transform})
    write_provenance(Artefact("autoencoder", path, now(), True, (), {"sha256": sha256}))
    return path
