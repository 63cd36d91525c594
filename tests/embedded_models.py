"""A stand-in for the embedded models: what is done with them is tested, not how good they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_autoencoder import make_autoencoder

from brics_cli.workspace import embedded, sha256_of_file
from brics_cli.workspace.embedded import EmbeddedModel


def embed(folder: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 7) -> EmbeddedModel:
    """Let `folder` be where embedded models lie, and its one model an autoencoder with random weights."""
    name = "stand-in"
    (make_autoencoder(folder / "run", seed=seed) / "model").rename(folder / name)
    model = EmbeddedModel(name, "autoencoder", sha256_of_file(folder / name / "model.safetensors"))
    monkeypatch.setattr(embedded, "FOLDER", folder)
    monkeypatch.setattr(embedded, "MODELS", (model,))
    return model
