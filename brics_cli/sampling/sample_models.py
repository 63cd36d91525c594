"""The models of a sampling run: the denoiser (or one of its averages), its guide, and the autoencoder of its codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder
from brics_cli.autoencoder.model_files import WEIGHTS_NAME, read_model_config
from brics_cli.codes.lineage import load_autoencoder_of
from brics_cli.diffusion.classes import Balance
from brics_cli.diffusion.denoisers import Denoiser, load_denoiser
from brics_cli.diffusion.samplers import SamplerSettings
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.sampling.samples import SampleStream
from brics_cli.workspace import Parent, Workspace, read_provenance, sha256_of_file
from brics_cli.workspace.files import PROVENANCE_FILE


@dataclass(frozen=True)
class SampleModels:
    """Loaded models, and where they came from.

    `ema` is the width of the denoiser's average (None: the plain one); `parents` are what samples are made from;
    `recipe` names the denoiser's run.
    """

    stream: SampleStream
    autoencoder: Autoencoder
    ema: float | None
    parents: tuple[Parent, ...]
    recipe: str

    @property
    def settings(self) -> dict[str, Any]:
        """What images depend on beside their seeds and the parents. What was not asked for is not named."""
        sampler, denoiser = self.stream.settings, self.stream.denoiser
        settings = {
            "sampler": sampler.sampler,
            "steps": sampler.num_steps,
            "guidance": sampler.guidance,
            "clip": sampler.clip,
            "class": self.stream.class_,
            "batch_size": self.stream.batch_size,
        }
        if self.stream.balance is not None:
            settings["class_balance"] = self.stream.balance
        if self.ema is not None:
            settings |= {"ema": self.ema, "ema_sha256": denoiser.weights_sha256}
        return settings

    @property
    def files(self) -> ModelFiles:
        guide = self.stream.guide
        return ModelFiles(
            denoiser=self.stream.denoiser.path,
            denoiser_sha256=self.stream.denoiser.weights_sha256,
            ema=self.ema,
            guide=None if guide is None else guide.path,
            guide_sha256=None if guide is None else guide.weights_sha256,
            autoencoder=self.autoencoder.path,
            sampler=self.stream.settings,
            batch_size=self.stream.batch_size,
            class_=self.stream.class_,
            balance=self.stream.balance,
        )


@dataclass(frozen=True)
class ModelFiles:
    """All that another process needs to load the same models. Picklable."""

    denoiser: Path
    denoiser_sha256: str
    ema: float | None
    guide: Path | None
    guide_sha256: str | None
    autoencoder: Path
    sampler: SamplerSettings
    batch_size: int
    class_: int | None
    balance: Balance | None

    def load(self, device: torch.device) -> tuple[SampleStream, Autoencoder]:
        """The models on `device`. Raises ArtefactError when a file is no longer the one that was planned with."""
        denoiser = _unchanged(load_denoiser(self.denoiser, device=device, ema=self.ema), self.denoiser_sha256)
        guide = None
        if self.guide is not None and self.guide_sha256 is not None:
            guide = _unchanged(load_denoiser(self.guide, device=device), self.guide_sha256)
        stream = SampleStream(
            denoiser, self.sampler, batch_size=self.batch_size, class_=self.class_, balance=self.balance, guide=guide
        )
        return stream, load_autoencoder(self.autoencoder, device=device)


def _unchanged(denoiser: Denoiser, sha256: str) -> Denoiser:
    if denoiser.weights_sha256 != sha256:
        raise ArtefactError(
            f"{denoiser.path} was written again while it was being loaded (is it still being trained?)",
            next="Run the same command again, or give the model of a checkpoint.",
        )
    return denoiser


def load_sample_models(
    model: Path,
    *,
    settings: SamplerSettings,
    batch_size: int,
    workspace: Workspace,
    device: torch.device,
    class_: int | str | None = None,
    balance: Balance | None = None,
    ema: float | None = None,
    guide: Path | None = None,
    ae_path: Path | None = None,
) -> SampleModels:
    """Load the model (its average of width `ema`), the `guide` of autoguidance and the autoencoder of their codes.

    `class_` is a class's number, or what a user calls it.

    Raises ArtefactError for a missing or damaged model, average, guide or autoencoder, and for a guide that does not
    fit; UsageError for classes, guidance or a guide that cannot be meant.
    """
    model = _run_of(model)
    denoiser = load_denoiser(model, device=device, ema=ema)
    weaker = None if guide is None else load_denoiser(_run_of(guide), device=device)
    if weaker is not None and weaker.weights_sha256 == denoiser.weights_sha256:
        raise UsageError(
            f"--guide {guide} is the model itself, and would change nothing",
            next="Give a smaller model, or one trained for fewer steps.",
        )
    if isinstance(class_, str) and denoiser.num_classes:
        class_ = denoiser.classes.find(class_, where=denoiser.path)
    number = 0 if isinstance(class_, str) else class_  # without classes any is refused
    stream = SampleStream(denoiser, settings, batch_size=batch_size, class_=number, balance=balance, guide=weaker)
    lineage = denoiser.lineage
    run, store = read_provenance(model), read_provenance(Path(lineage["store_path"]))
    origin = run or store
    found = workspace.ancestor(origin, "autoencoder") if origin is not None else None
    autoencoder = load_autoencoder_of(
        model,
        made_by="model",
        sha256=lineage["autoencoder_sha256"],
        recorded=found.path if found is not None else None,
        workspace=workspace,
        ae_path=ae_path,
        device=device,
    )
    if autoencoder.config.code_shape != denoiser.code_shape:
        raise ArtefactError(
            f"{model} makes codes {denoiser.code_shape}, {autoencoder.path} takes {autoencoder.config.code_shape}"
        )
    parents = [
        Parent("diffusion", str(model.resolve()), _plain_sha256(denoiser, ema)),
        Parent("store", lineage["store_path"], lineage["store_sha256"]),
        Parent("autoencoder", str(autoencoder.path.resolve()), autoencoder.weights_sha256),
    ]
    if weaker is not None:
        parents.append(Parent("guide", str(weaker.path.resolve()), weaker.weights_sha256))
    recipe = str(run.details.get("recipe", model.name)) if run is not None else model.name
    return SampleModels(stream, autoencoder, ema, tuple(parents), recipe)


def _run_of(model: Path) -> Path:
    """The run that `model` stands in: it says more than the model inside it."""
    if model.name == "model" and (model.parent / PROVENANCE_FILE).is_file():
        return model.parent
    return model


def _plain_sha256(denoiser: Denoiser, ema: float | None) -> str:
    """The sha256 that the run of `denoiser` goes by: of its plain average, whichever one was loaded."""
    if ema is None:
        return denoiser.weights_sha256
    return sha256_of_file(read_model_config(denoiser.path, kind="diffusion")[1] / WEIGHTS_NAME)
