"""Every list of names in config has what it names registered, and nothing else is."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from brics_cli.autoencoder.bottlenecks import BOTTLENECKS
from brics_cli.autoencoder.build import DECODERS
from brics_cli.autoencoder.discriminator import GAN_LOSSES
from brics_cli.autoencoder.losses import PERCEPTUAL
from brics_cli.codes.format import QUANTISATIONS
from brics_cli.config import DecoderConfig, DiffusionConfig, names
from brics_cli.config.bottlenecks import BOTTLENECK_CONFIGS
from brics_cli.config.runs import SMALLEST_SIDE
from brics_cli.diffusion import diffusion
from brics_cli.images.pixels import TRANSFORM_VERSIONS


def test_transforms_quantisations_and_their_defaults() -> None:
    assert set(get_args(names.Transform)) == set(TRANSFORM_VERSIONS)
    assert set(get_args(names.Quantisation)) == set(QUANTISATIONS)
    assert set(names.DEFAULT_QUANTISATIONS) == set(get_args(names.CodeKind))


@pytest.mark.parametrize(
    ("key", "computes"),
    [
        ("objective", lambda config, x: diffusion.parametrisation(config, x).out),
        ("schedule", diffusion.sampling_log_snr),
        ("weighting", diffusion.weight),
    ],
)
def test_every_name_of_diffusion_computes_something(key, computes) -> None:
    times = torch.tensor([0.25, 0.75])
    for name in get_args(getattr(names, key.capitalize())):
        assert computes(DiffusionConfig.model_validate({key: name}), times).shape == times.shape, name


def test_losses_bottlenecks_and_decoders() -> None:
    assert {"none", *PERCEPTUAL} == set(get_args(names.Perceptual))
    assert set(GAN_LOSSES) == set(get_args(names.GanLoss))
    assert set(SMALLEST_SIDE) == set(get_args(names.Perceptual))
    assert set(BOTTLENECK_CONFIGS) == set(BOTTLENECKS)
    assert {config.model_fields["kind"].default for config in get_args(get_args(DecoderConfig)[0])} == set(DECODERS)
