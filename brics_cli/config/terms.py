"""Terms of the autoencoder's training that make its codes easier to diffuse, each off by default.

`autoencoder.terms` has the file of each. Fine-tuning with them (`brics train-ae --init-from`, a few thousand steps) is
the usual way: the papers train their terms on finished autoencoders.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brics_cli.config.base import Config

Share = Annotated[float, Field(gt=0, le=1)]


class ScaleEquivarianceConfig(Config):
    """The decoder makes smaller images of smaller codes (Skorokhodov et al., arXiv 2502.14831)."""

    weight: float = Field(default=0.0, ge=0)
    """Of the reconstruction loss of averaged codes against averaged images. The paper's is 0.25."""
    factors: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(2, 4), min_length=1)
    """By how much; one of them is drawn at every step. They divide the sides of the codes."""


class EquivarianceConfig(Config):
    """The decoder makes scaled and turned images of scaled and turned codes (EQ-VAE, arXiv 2502.09509)."""

    weight: float = Field(default=0.0, ge=0)
    """Of the reconstruction loss of transformed codes against transformed images."""
    least_scale: Share = 0.25
    """The scale of each axis is drawn from here to 1 at every step."""
    turns: bool = True
    """Turn by a multiple of 90°, drawn at every step, as well."""


class SpectrumConfig(Config):
    """Spectrum matching (arXiv 2603.14645), of the encoder and of the decoder."""

    weight: float = Field(default=0.0, ge=0)
    """Of the divergence of the codes' spectrum from the images' (encoding spectrum matching)."""
    flatten: Share = 1.0
    """The power that the images' spectrum is raised to before: below 1 the codes' may be flatter."""
    mask_weight: float = Field(default=0.0, ge=0)
    """Of the reconstruction loss of codes without their high frequencies against images without the same (decoding
    spectrum matching)."""
    least_band: Share = 0.25
    """The share of the frequencies that is kept is drawn from here to 1 at every step."""


class MarginalsConfig(Config):
    """The distribution of each channel's codes, by its first four moments (orthogonal polynomials)."""

    weight: float = Field(default=0.0, ge=0)
    target: Literal["uniform", "gaussian"] = "gaussian"
    """`uniform` on [0, 1], of bounded codes; `gaussian`, of the logits of bounded codes, of others as they are."""
    std: float = Field(default=1.0, gt=0)
    """Standard deviation of `gaussian`."""


class WhiteningConfig(Config):
    """Channels that do not correlate (the covariance term of VICReg, arXiv 2105.04906)."""

    weight: float = Field(default=0.0, ge=0)
    """Of the mean squared correlation of two channels at one position."""


class NoiseScheduleConfig(Config):
    """Training noise that changes: `model.bottleneck.noise` times a factor."""

    factors: tuple[tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]], ...] = ()
    """(share of the steps, factor), linear in between: [[0, 0], [0.5, 0], [1, 1]] begins half-way. Empty: always 1."""

    @model_validator(mode="after")
    def _in_order(self) -> NoiseScheduleConfig:
        if any(later[0] <= earlier[0] for earlier, later in pairwise(self.factors)):
            raise ValueError("factors are not in the order of their shares of the steps")
        return self


class TermsConfig(Config):
    """What is added to the reconstruction loss, and the schedule of the noise."""

    scale_equivariance: ScaleEquivarianceConfig = ScaleEquivarianceConfig()
    equivariance: EquivarianceConfig = EquivarianceConfig()
    spectrum: SpectrumConfig = SpectrumConfig()
    marginals: MarginalsConfig = MarginalsConfig()
    whitening: WhiteningConfig = WhiteningConfig()
    noise: NoiseScheduleConfig = NoiseScheduleConfig()

    @property
    def transform(self) -> bool:
        """Whether transformed codes are decoded."""
        return bool(self.scale_equivariance.weight or self.equivariance.weight or self.spectrum.mask_weight)

    @property
    def penalise(self) -> bool:
        """Whether the codes themselves are looked at."""
        return bool(self.spectrum.weight or self.marginals.weight or self.whitening.weight)
