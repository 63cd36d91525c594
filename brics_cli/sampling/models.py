"""The models of a sampling run: the denoiser (or one of its averages), its guide, and the autoencoder of its codes.

Shapes: B images, codes (B, C, h, w), pixels (B, H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder, to_uint8
from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes.lineage import load_autoencoder_of
from brics_cli.config.changes import run_name
from brics_cli.config.names import ClassBalance, Precision
from brics_cli.config.suggestions import check_known
from brics_cli.diffusion.denoisers import Denoiser, load_denoiser
from brics_cli.diffusion.samplers import (
    DEFAULT_SAMPLER,
    DEFAULT_SETTINGS,
    Noise,
    SamplerSettings,
    check_guide,
    sample_codes,
)
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.runtime.device import place
from brics_cli.runtime.precision import computing
from brics_cli.runtime.randomness import Stream, keyed_generator
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.workspace import Parent, Workspace, provenance_at, read_provenance, sha256_of_file
from brics_cli.workspace.files import PROVENANCE_FILE
from brics_cli.workspace.naming import WEIGHTS_NAME
from brics_cli.workspace.places import locate, reference

OnStep = Callable[[], None]
"""Called between two evaluations of the network; what it raises ends the sampling."""
CodesOfSeeds = tuple[Tensor, list[int] | None]
"""Codes (B, C, h, w) that are computed together, and their labels (None: no classes)."""


class ImageNoise:
    """The normal draws of the images with these seeds: one stream per image, so no image depends on another.

    Each call gives the next (B, C, h, w); the first is the latent noise.
    """

    def __init__(self, seeds: Sequence[int], *, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = tuple(seeds)
        self.streams = [keyed_generator(seed, stream=Stream.IMAGE_NOISE) for seed in self.seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        drawn = np.stack([stream.standard_normal(self.shape, dtype=np.float32) for stream in self.streams])
        return torch.from_numpy(drawn).to(self.device)


@dataclass
class Models:
    """Loaded models, and how images are drawn from them.

    `guide` is the weaker model of autoguidance. `class_` is the class of all images; None: every image draws its own,
    as `balance` says (see `Classes.draw`), or there are none. `precision` is what the networks compute in; codes and
    the sampler's state are float32. Where the models are from files: `ema` is the width of the denoiser's average
    (None: the plain one), `parents` are what samples are made from, `name` is that of the denoiser's run without its
    date, and `loaded_with` are the arguments of `load_models`.

    Raises UsageError for classes that the model does not have, guidance that it was not trained for, a guide without
    guidance; ArtefactError for a guide that does not fit.
    """

    denoiser: Denoiser
    autoencoder: Autoencoder
    settings: SamplerSettings = DEFAULT_SETTINGS
    guide: Denoiser | None = None
    class_: int | None = None
    balance: ClassBalance | None = None
    ema: float | None = None
    precision: Precision = "fp32"
    parents: tuple[Parent, ...] = ()
    name: str = ""
    loaded_with: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        denoiser, guided = self.denoiser, self.settings.guidance != 1.0
        if denoiser.num_classes == 0 and self.class_ is not None:
            raise UsageError(f"--class: {denoiser.path} was trained without classes", next="Leave --class out.")
        if denoiser.num_classes == 0 and self.guide is None and guided:
            raise UsageError(
                f"--guidance: {denoiser.path} was trained without classes",
                next="Leave --guidance out, or give a weaker model with --guide.",
            )
        if denoiser.num_classes and self.guide is None and guided and denoiser.diffusion.class_dropout == 0:
            raise UsageError(
                f"--guidance: {denoiser.path} was trained with class_dropout 0, so it has no estimate without a class",
                next="Train with --set diffusion.class_dropout=0.1, or give a weaker model with --guide.",
            )
        if self.class_ is not None:
            denoiser.classes.check(self.class_, where=denoiser.path)
        check_known(self.balance, get_args(ClassBalance), option="--class-balance", what="way to draw classes")
        if self.balance is not None and (denoiser.num_classes == 0 or self.class_ is not None):
            why = "with --class" if denoiser.num_classes else f"{denoiser.path} was trained without classes, so"
            raise UsageError(f"--class-balance {self.balance}: {why} there is nothing to balance", next="Leave it out.")
        if self.balance == "proportional" and not denoiser.class_counts:
            raise UsageError(
                f"--class-balance proportional: {denoiser.path} does not say how many images its classes have",
                next="Train again, or use --class-balance even.",
            )
        if self.balance is None and self.class_ is None and denoiser.num_classes and denoiser.class_counts:
            self.balance = "proportional"
        if self.guide is not None:
            if not guided:
                raise UsageError(
                    "--guide: with --guidance 1 the model alone is used", next="Give both, e.g. --guidance 2."
                )
            check_guide(self.guide, denoiser)

    @property
    def device(self) -> torch.device:
        return self.denoiser.mean.device

    @property
    def image_size(self) -> int:
        """Of what is drawn, px."""
        return self.denoiser.code_shape[1] * self.autoencoder.config.downsampling

    def to(self, device: torch.device) -> Self:
        """Move all of them."""
        for model in (self.denoiser, self.autoencoder, self.guide):
            if model is not None:
                place(model, device)
        return self

    def compute(self, seeds: Sequence[int], on_step: OnStep | None = None) -> CodesOfSeeds:
        """The codes of the images of these seeds."""
        labels = self.labels(seeds)
        noise = ImageNoise(seeds, shape=self.denoiser.code_shape, device=self.device)
        return self.codes(noise, labels=labels, on_step=on_step), labels

    def labels(self, seeds: Sequence[int]) -> list[int] | None:
        """The class of each seed's image; None when there are no classes."""
        if self.denoiser.num_classes == 0:
            return None
        if self.class_ is not None:
            return [self.class_] * len(seeds)
        return self.denoiser.classes.draw(seeds, self.balance)

    @torch.inference_mode()
    def codes(self, noise: Noise, *, labels: Sequence[int] | None, on_step: OnStep | None = None) -> Tensor:
        """Codes (B, C, h, w) from what `noise` draws on this device, of classes `labels` (B,) or None.

        Raises ArtefactError when they are not finite: the model has diverged.
        """
        classes = None if labels is None else torch.tensor(labels, device=self.device)
        with computing(self.precision, self.device):
            codes = sample_codes(
                self.denoiser, noise=noise, settings=self.settings, labels=classes, guide=self.guide, on_step=on_step
            )
        if not bool(torch.isfinite(codes.sum())):  # one sum is finite when all are; the device is waited for
            raise ArtefactError(
                f"{self.denoiser.path} makes codes that are not finite",
                next="Its weights are damaged, or its training diverged: take an earlier checkpoint, or train again.",
            )
        return codes

    @torch.inference_mode()
    def pixels(self, codes: Tensor) -> np.ndarray:
        """Codes (B, C, h, w) -> (B, H, W, 3) uint8, in the memory of the host."""
        with computing(self.precision, codes.device):
            return to_uint8(self.autoencoder.decode(codes))

    def record(self, *, batch_size: int) -> dict[str, Any]:
        """What images depend on besides their seeds and the parents. What was not asked for is not named."""
        record = self.settings.record | {"class": self.class_, "batch_size": batch_size}
        if self.balance is not None:
            record["class_balance"] = self.balance
        if self.precision != "fp32":
            record["precision"] = self.precision
        if self.ema is not None:
            record |= {"ema": self.ema, "ema_sha256": self.denoiser.weights_sha256}
        return record

    @property
    def sha256s(self) -> list[str]:
        """Of all files that they were loaded from."""
        return [self.denoiser.weights_sha256, *(parent.sha256 for parent in self.parents)]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is how they were loaded: another process loads the same files, on the CPU."""
        return _load_again, (self.loaded_with, self.sha256s)


def _load_again(loaded_with: dict[str, Any], sha256s: list[str]) -> Models:
    models = load_models(**loaded_with, device=torch.device("cpu"))
    if models.sha256s != sha256s:
        raise ArtefactError(
            f"{models.denoiser.path} was written again while it was being loaded (is it still being trained?)",
            next="Run the same command again, or give the model of a checkpoint.",
        )
    return models


def load_models(
    model: Path | None,
    *,
    sampler: str = DEFAULT_SAMPLER,
    steps: int | None = None,
    guidance: float = 1.0,
    clip: bool = True,
    guide: Path | None = None,
    class_: int | str | None = None,
    class_balance: ClassBalance | None = None,
    ema: float | None = None,
    autoencoder: Path | None = None,
    precision: Precision = "fp32",
    workspace: Workspace,
    device: torch.device,
    reporter: Reporter | None = None,
) -> Models:
    """Load the run `model` (its average of width `ema`), the `guide` of autoguidance and the autoencoder of the codes.

    What is left out is looked up, and the reporter told; see `brics_cli.api.sample` for the rest. Raises ArtefactError
    for a missing or damaged model, average, guide or autoencoder, and what `SamplerSettings` and `Models` raise.
    """
    settings = SamplerSettings(sampler=sampler, steps=steps, guidance=guidance, clip=clip)
    reporter = reporter or SilentReporter()
    model = _run_of(workspace.resolve("diffusion", model, argument="--model", reporter=reporter))
    denoiser = load_denoiser(model, device=device, ema=ema)
    weaker = None if guide is None else load_denoiser(_run_of(locate(guide, reporter=reporter)), device=device)
    if weaker is not None and weaker.weights_sha256 == denoiser.weights_sha256:
        raise UsageError(
            f"--guide {guide} is the model itself, and would have no effect",
            next="Give a smaller model, or one trained for fewer steps.",
        )
    if isinstance(class_, str):
        class_ = denoiser.classes.find(class_, where=denoiser.path) if denoiser.num_classes else 0  # 0 is refused
    lineage = denoiser.lineage
    run = read_provenance(model)
    origin = run or provenance_at(lineage["store_path"])
    store = None if run is None else run.parent("store")
    found = workspace.ancestor(origin, "autoencoder") if origin is not None else None
    decoder = load_autoencoder_of(
        model,
        made_by="model",
        sha256=lineage["autoencoder_sha256"],
        recorded=found.path if found is not None else None,
        workspace=workspace,
        reporter=reporter,
        ae_path=autoencoder,
        device=device,
    )
    if not decoder.config.takes_codes(denoiser.code_shape):
        raise ArtefactError(
            f"{model} makes codes {denoiser.code_shape}, {decoder.path} takes {decoder.config.code_shape}"
        )
    plain_sha256 = denoiser.weights_sha256  # what the run goes by, whichever average was loaded
    if ema is not None:
        plain_sha256 = sha256_of_file(read_model_config(model, kind="diffusion")[1] / WEIGHTS_NAME)
    parents = [
        Parent("diffusion", reference(model), plain_sha256),
        store or Parent("store", lineage["store_path"], lineage["store_sha256"]),
        Parent("autoencoder", decoder.reference, decoder.weights_sha256),
    ]
    if weaker is not None:
        parents.append(Parent("guide", reference(weaker.path), weaker.weights_sha256))
    name = (run_name(run.details) if run is not None else "") or model.name
    loaded_with = {
        "model": model, "sampler": sampler, "steps": steps, "guidance": guidance, "clip": clip,
        "guide": None if weaker is None else weaker.path,
        "class_": class_, "class_balance": class_balance, "ema": ema, "autoencoder": decoder.path,
        "precision": precision, "workspace": workspace,
    }  # fmt: skip
    return Models(
        denoiser, decoder, settings, weaker, class_, class_balance, ema, precision, tuple(parents), name, loaded_with
    )


def _run_of(model: Path) -> Path:
    """The run that `model` is inside: it says more than the model itself."""
    return model.parent if model.name == "model" and (model.parent / PROVENANCE_FILE).is_file() else model
