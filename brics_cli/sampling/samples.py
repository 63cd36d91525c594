"""Codes sampled from a diffusion model, batch by batch, each image from its own seed.

Batches are cut where the seed is a multiple of the batch size, and a batch that is wanted in part is computed whole.
So the image of a seed is computed in the same place of the same batch in every run, whatever range was asked for,
wherever it was resumed: equal to the last bit on one kind of device. (Another batch size may change the last bits.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brics_cli.diffusion.classes import Balance
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.diffusion.diffusion import ImageNoise
from brics_cli.diffusion.samplers import Noise, SamplerSettings, check_guide, sample_codes
from brics_cli.errors import ArtefactError, UsageError


class SampleStream:
    """The batches of a range of seeds, `batch_size` images computed at once.

    `class_` is the class of all images; None: every image draws its own, as `balance` says (see `Classes.draw`), or
    there are none. `guide` is the weaker model of autoguidance. Raises UsageError when the settings ask for classes
    that the model has not, for guidance that it was not trained for, or for a guide and no guidance; ArtefactError when
    the guide does not fit the model.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        settings: SamplerSettings,
        *,
        batch_size: int,
        class_: int | None = None,
        balance: Balance | None = None,
        guide: Denoiser | None = None,
    ) -> None:
        self.denoiser, self.settings, self.batch_size, self.class_ = denoiser, settings, batch_size, class_
        self.guide = guide
        num_classes = denoiser.num_classes
        if num_classes == 0 and class_ is not None:
            raise UsageError(f"--class: {denoiser.path} was trained without classes", next="Leave --class out.")
        if num_classes == 0 and guide is None and settings.guidance != 1.0:
            raise UsageError(
                f"--guidance: {denoiser.path} was trained without classes",
                next="Leave --guidance out, or give a weaker model with --guide.",
            )
        if num_classes and guide is None and settings.guidance != 1.0 and denoiser.diffusion.class_dropout == 0:
            raise UsageError(
                f"--guidance: {denoiser.path} was trained with class_dropout 0, and knows no image without a class",
                next="Train with --set diffusion.class_dropout=0.1, or give a weaker model with --guide.",
            )
        if class_ is not None:
            denoiser.classes.check(class_, where=denoiser.path)
        self.balance = self._balance(balance)
        if guide is not None:
            if settings.guidance == 1.0:
                raise UsageError(
                    "--guide: with --guidance 1 the model alone is used", next="Give both, e.g. --guidance 2."
                )
            check_guide(guide, denoiser)

    def _balance(self, asked: Balance | None) -> Balance | None:
        """How classes are drawn; None: there is nothing to choose."""
        denoiser = self.denoiser
        if asked is not None and (denoiser.num_classes == 0 or self.class_ is not None):
            why = "with --class" if denoiser.num_classes else f"{denoiser.path} was trained without classes, so"
            raise UsageError(f"--class-balance {asked}: {why} there is nothing to balance", next="Leave it out.")
        if asked == "proportional" and not denoiser.class_counts:
            raise UsageError(
                f"--class-balance proportional: {denoiser.path} does not say how many images its classes have",
                next="Train again, or use --class-balance even.",
            )
        if denoiser.num_classes == 0 or self.class_ is not None:
            return None
        return asked or ("proportional" if denoiser.class_counts else None)

    @property
    def device(self) -> torch.device:
        """Where codes are computed."""
        return self.denoiser.mean.device

    def compute(
        self, seeds: Sequence[int], *, on_step: Callable[[], None] | None = None
    ) -> tuple[Tensor, list[int] | None]:
        """Codes (B, C, h, w) of the images of these seeds, computed together, and their labels (None: no classes)."""
        noise = ImageNoise(seeds, shape=self.denoiser.code_shape, device=self.device)
        labels = self.labels(seeds)
        return self.codes(noise, labels=labels, on_step=on_step), labels

    def labels(self, seeds: Sequence[int]) -> list[int] | None:
        """The class of each seed's image; None when there are no classes."""
        if self.denoiser.num_classes == 0:
            return None
        if self.class_ is not None:
            return [self.class_] * len(seeds)
        return self.denoiser.classes.draw(seeds, self.balance)

    @torch.inference_mode()
    def codes(self, noise: Noise, *, labels: Sequence[int] | None, on_step: Callable[[], None] | None = None) -> Tensor:
        """Codes (B, C, h, w) from what `noise` draws on this device, of classes `labels` (B,) or None.

        Raises ArtefactError when they are not finite: the model has diverged.
        """
        classes = None if labels is None else torch.tensor(labels, device=self.device)
        codes = sample_codes(
            self.denoiser, noise=noise, settings=self.settings, labels=classes, guide=self.guide, on_step=on_step
        )
        if not bool(torch.isfinite(codes.sum())):  # one sum is finite when all are; the device is waited for
            raise ArtefactError(
                f"{self.denoiser.path} makes codes that are not finite",
                next="Its weights are damaged, or its training diverged: take an earlier checkpoint, or train again.",
            )
        return codes
