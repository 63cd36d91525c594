"""Codes sampled from a diffusion model, batch by batch, each image from its own seed.

Batches are cut where the seed is a multiple of the batch size, and a batch that is wanted in part is computed whole.
So the image of a seed is computed in the same place of the same batch in every run, whatever range was asked for,
wherever it was resumed: equal to the last bit on one kind of device. (Another batch size may change the last bits.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brics_cli.core.denoisers import Denoiser
from brics_cli.core.diffusion import ImageNoise
from brics_cli.core.samplers import SamplerSettings, sample_codes
from brics_cli.errors import UsageError


@dataclass(frozen=True)
class SampledBatch:
    """`codes` (B, C, h, w) in [0, 1] on the model's device, B the full batch; `rows` of it were asked for.

    `seeds` and `labels` (None: no classes) are those of `rows`, in order.
    """

    codes: Tensor
    rows: slice
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None

    @property
    def labels_or_none(self) -> Sequence[int | None]:
        """One entry per row: its label, or None."""
        return self.labels if self.labels is not None else [None] * len(self.seeds)


class SampleStream:
    """The batches of a range of seeds, `batch_size` images computed at once.

    `class_` is the class of all images; None: every image draws its own, or there are none. Raises UsageError when
    the settings ask for classes that the model has not.
    """

    def __init__(
        self, denoiser: Denoiser, settings: SamplerSettings, *, batch_size: int, class_: int | None = None
    ) -> None:
        self.denoiser, self.settings, self.batch_size, self.class_ = denoiser, settings, batch_size, class_
        num_classes = denoiser.num_classes
        if num_classes == 0 and (class_ is not None or settings.guidance != 1.0):
            flag = "--class" if class_ is not None else "--guidance"
            raise UsageError(
                f"{flag}: {denoiser.path} was trained without classes", next="Leave --class and --guidance out."
            )
        if class_ is not None and not 0 <= class_ < num_classes:
            raise UsageError(f"--class {class_}: {denoiser.path} knows classes 0 to {num_classes - 1}")

    def batches(self, seeds: range, *, on_step: Callable[[], None] | None = None) -> Iterator[SampledBatch]:
        """The batches of `seeds`, a range with step 1, in order. `on_step` is called after every evaluation."""
        if not seeds:
            return
        size = self.batch_size
        for number in range(seeds.start // size, (seeds.stop - 1) // size + 1):
            first = number * size
            rows = slice(max(seeds.start - first, 0), min(seeds.stop - first, size))
            codes, labels = self._compute(range(first, first + size), on_step)
            wanted = range(first + rows.start, first + rows.stop)
            yield SampledBatch(codes, rows, tuple(wanted), None if labels is None else tuple(labels[rows].tolist()))

    @torch.inference_mode()
    def _compute(self, seeds: range, on_step: Callable[[], None] | None) -> tuple[Tensor, Tensor | None]:
        """Codes (B, C, h, w) and labels (B,) of one batch of seeds."""
        device = self.denoiser.mean.device
        noise = ImageNoise(seeds, shape=self.denoiser.code_shape, device=device)
        labels = None
        if self.class_ is not None:
            labels = torch.full((len(seeds),), self.class_, device=device)
        elif self.denoiser.num_classes:
            labels = noise.labels(self.denoiser.num_classes)
        codes = sample_codes(self.denoiser, noise=noise, settings=self.settings, labels=labels, on_step=on_step)
        return codes, labels
