"""The models that ship with brics: their names, their sha256, and where they lie in the package. No torch.

An embedded model is known by the sha256 of its weights: a file that was cut or changed is refused, and a store finds
the model that made it on any machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brics_cli.errors import ArtefactError
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME

FOLDER = Path(__file__).parents[1] / "autoencoder" / "embedded"
"""Of each model its directory NAME, as `autoencoder.model_files` reads it: config.json and model.safetensors."""
AGAIN = "Install brics again: pip install --force-reinstall --no-deps brics-cli"


@dataclass(frozen=True)
class EmbeddedModel:
    """`sha256` is of its model.safetensors."""

    name: str
    kind: Literal["autoencoder", "diffusion"]
    sha256: str

    @property
    def directory(self) -> Path:
        return FOLDER / self.name

    def check(self) -> None:
        """Raise ArtefactError when its weights are not those that brics was released with."""
        weights = self.directory / WEIGHTS_NAME
        if not weights.is_file():
            raise ArtefactError(f"{self.name} is not in this installation of brics: {weights} is missing", next=AGAIN)
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ArtefactError(
                f"{self.name} is damaged: {weights} has sha256 {found[:12]}, and not {self.sha256[:12]}", next=AGAIN
            )


MODELS: tuple[EmbeddedModel, ...] = (
    EmbeddedModel("brics-mini", "autoencoder", "808328d834b67f76a409d44f54bcc4d2ad3455885c494e4934feb78ab8965a69"),
)
"""The first of a kind is used where nothing of that kind is trained."""


def embedded_at(path: str | Path) -> EmbeddedModel | None:
    """The embedded model that `path` names (`brics-mini`, unless a model of the user's is there) or where it lies."""
    path = Path(path)
    model = next((model for model in MODELS if path == model.directory or str(path) == model.name), None)
    if model is None or path == model.directory:
        return model
    theirs = (path / "model").is_dir() or (path / CONFIG_NAME).is_file()
    return None if theirs else model


def embedded_default(kind: str) -> EmbeddedModel | None:
    """The embedded model that is used where nothing of `kind` is trained."""
    return next((model for model in MODELS if model.kind == kind), None)


def embedded_with(sha256: str) -> EmbeddedModel | None:
    """The embedded model whose weights have this sha256."""
    return next((model for model in MODELS if model.sha256 == sha256), None)
