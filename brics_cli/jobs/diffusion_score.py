"""What `train-diffusion` draws of its model at every snapshot: a sheet of samples, and a quick score.

The score is a Fréchet distance on features that need no weights, between a few hundred samples and decoded codes of
the store. It is a signal along one run: comparable where N is the same, and with nothing published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.codes import KeyCodeStore
from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.diffusion.diffusion import ImageNoise
from brics_cli.diffusion.samplers import DEFAULT_SETTINGS, SamplerSettings, sample_codes
from brics_cli.evaluation.frechet import FrechetReference
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.images import contact_sheet
from brics_cli.networks.random_features import RandomConvolutions

SHEET_SEEDS = range(24)
SHEET_COLUMNS = 8
DEFAULT_FD_SAMPLES = 256
"""On an accelerator: more than there are features, so that their covariance has full rank."""
REFERENCE_PER_SAMPLE = 4
"""Codes of the store that are decoded for each image drawn: the reference's own error is then small beside theirs."""
FD_SAMPLER = SamplerSettings(sampler="dpmpp-2m", steps=10)
BATCH_SIZE = 64


@torch.inference_mode()
def draw_images(
    denoiser: Denoiser, autoencoder: Autoencoder, *, seeds: Sequence[int], settings: SamplerSettings = DEFAULT_SETTINGS
) -> np.ndarray:
    """The images (B, H, W, 3) uint8 of `seeds`, drawn at once."""
    device = denoiser.mean.device
    noise = ImageNoise(list(seeds), shape=denoiser.code_shape, device=device)
    labels = torch.tensor(denoiser.classes.draw(seeds), device=device) if denoiser.num_classes else None
    return to_uint8(autoencoder.decode(sample_codes(denoiser, noise=noise, settings=settings, labels=labels)))


def drawer(denoiser: Denoiser, autoencoder: Autoencoder | None) -> Callable[[Path], None]:
    """A function that writes a sheet of the images of the first few seeds, the same ones every time; it writes none
    where there is no autoencoder."""

    def draw(path: Path) -> None:
        if autoencoder is None:
            return
        images = draw_images(denoiser, autoencoder, seeds=SHEET_SEEDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [list(images[start : start + SHEET_COLUMNS]) for start in range(0, len(images), SHEET_COLUMNS)]
        contact_sheet(rows, path=path)

    return draw


class QuickScore:
    """`val/fd-random` of a model, and the N it was taken at; without an autoencoder, or for N = 0, there is none.

    `num_samples` None: 256, and on the CPU none. The reference is computed at the first score and kept. Its cost is
    that of N samples of 10 evaluations and, once, of 4 N decoded codes.
    """

    def __init__(self, store: KeyCodeStore, autoencoder: Autoencoder | None, *, num_samples: int | None) -> None:
        self.store, self.autoencoder = store, autoencoder
        self.num_samples = num_samples
        if autoencoder is not None and num_samples is None:
            self.num_samples = 0 if _device_of(autoencoder).type == "cpu" else DEFAULT_FD_SAMPLES

    def __call__(self, denoiser: Denoiser) -> dict[str, float]:
        """The scores by name, of the images of seeds 0 to N - 1."""
        autoencoder, num = self.autoencoder, self.num_samples
        if autoencoder is None or not num or len(self.store) < 2:
            return {}
        batches = (range(start, min(start + BATCH_SIZE, num)) for start in range(0, num, BATCH_SIZE))
        drawn = self._moments(draw_images(denoiser, autoencoder, seeds=seeds, settings=FD_SAMPLER) for seeds in batches)
        return {"val/fd-random": self._reference.distance(drawn), "val/fd-random-n": float(num)}

    @cached_property
    def _network(self) -> RandomConvolutions:
        assert self.autoencoder is not None
        return RandomConvolutions(_device_of(self.autoencoder))

    @cached_property
    def _reference(self) -> FrechetReference:
        return FrechetReference(self._moments(self._decoded()))

    @torch.inference_mode()
    def _decoded(self) -> Iterator[np.ndarray]:
        """Images decoded from codes spread evenly over the store."""
        assert self.autoencoder is not None and self.num_samples
        num = min(len(self.store), REFERENCE_PER_SAMPLE * self.num_samples)
        rows = np.linspace(0, len(self.store) - 1, num).round().astype(int)
        for start in range(0, num, BATCH_SIZE):
            codes = torch.from_numpy(self.store.batch(rows[start : start + BATCH_SIZE]))
            yield to_uint8(self.autoencoder.decode(codes.to(_device_of(self.autoencoder))))

    def _moments(self, batches: Iterator[np.ndarray]) -> FeatureMoments:
        moments = FeatureMoments(self._network.num_features)
        for images in batches:  # (B, H, W, 3)
            moments.update(self._network.features(list(images)))
        return moments


def _device_of(autoencoder: Autoencoder) -> torch.device:
    return next(autoencoder.parameters()).device
