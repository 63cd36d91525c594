"""Guidance that a model was not trained for is refused before anything is drawn; what drawn images go by."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusion_workspace import AUTOENCODER

from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.config import DiffusionConfig, DiTConfig
from brics_cli.diffusion.denoisers import Denoiser, build_denoiser
from brics_cli.diffusion.samplers import SamplerSettings
from brics_cli.errors import UsageError
from brics_cli.sampling.drawn import DrawnStream
from brics_cli.sampling.models import Models
from brics_cli.workspace import Parent

GUIDED = SamplerSettings(guidance=2.0)


def of_classes(class_dropout: float, *, dim: int = 16) -> Denoiser:
    denoiser = build_denoiser(
        DiTConfig(dim=dim, depth=1, num_heads=2), DiffusionConfig(class_dropout=class_dropout),
        code_shape=(2, 4, 4), num_classes=3, store_mean=[0.5] * 2, store_std=[0.2] * 2,
    )  # fmt: skip
    denoiser.path = Path("run")
    return denoiser


def test_guidance_by_classes_needs_a_model_that_learnt_to_do_without() -> None:
    autoencoder = build_autoencoder(AUTOENCODER)
    Models(of_classes(0.1), autoencoder, GUIDED)
    never_dropped = of_classes(0.0)
    with pytest.raises(UsageError, match="class_dropout 0, so it has no estimate without a class"):
        Models(never_dropped, autoencoder, GUIDED)
    Models(never_dropped, autoencoder)
    Models(never_dropped, autoencoder, GUIDED, guide=of_classes(0.0, dim=8))  # the guide knows the classes


def test_an_unknown_balance_is_refused() -> None:
    with pytest.raises(UsageError, match="--class-balance 'evn' is not a way to draw classes; did you mean 'even'"):
        Models(of_classes(0.1), build_autoencoder(AUTOENCODER), balance="evn")


def test_drawn_images_go_by_every_model_behind_them() -> None:
    """In a report: another guide or another decoder draws other images."""
    denoiser, autoencoder = of_classes(0.1), build_autoencoder(AUTOENCODER)
    denoiser.weights_sha256 = "d" * 64
    identities = {
        DrawnStream(Models(denoiser, autoencoder, parents=(Parent(kind, "run", sha256),)), range(2), path="run",
                    batch_size=2).identity
        for kind in ("autoencoder", "guide") for sha256 in ("a" * 64, "b" * 64)
    }  # fmt: skip
    assert len(identities) == 2
