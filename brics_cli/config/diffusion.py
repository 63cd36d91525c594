"""The diffusion model's config: the denoiser and what it is trained to predict. `diffusion.denoisers` makes modules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from brics_cli.config.base import Config, default_kind
from brics_cli.config.names import Normalise, Objective, Schedule, Weighting


class DiTConfig(Config):
    """Diffusion transformer (arXiv 2212.09748) with RMSNorm, qk-norm, 2D RoPE, SwiGLU."""

    kind: Literal["dit"] = "dit"
    dim: PositiveInt = 384
    depth: PositiveInt = 12
    num_heads: PositiveInt = 6
    patch: PositiveInt = 1
    """A patch x patch block of code positions becomes one token."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Cost of the feed-forward layer relative to a plain one of this ratio; SwiGLU is 2/3 of it wide."""

    @model_validator(mode="after")
    def _heads_fit(self) -> DiTConfig:
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} is not a multiple of 4 * num_heads = {4 * self.num_heads} (2D RoPE splits a head in 4)"
            )
        return self


class UNetConfig(Config):
    """U-Net of ADM (arXiv 2105.05233): residual blocks, self-attention on the coarser levels."""

    kind: Literal["unet"] = "unet"
    dim: PositiveInt = 192
    multipliers: tuple[PositiveInt, ...] = Field(default=(1, 2, 3), min_length=1)
    """Channels of each level in units of dim, finest first; each level but the first has half the rows and columns of
    the one before it, rounded up. A side of one position is not halved any more."""
    num_blocks: PositiveInt = 2
    """Residual blocks per level on the way down; one more per level on the way up."""
    attention_levels: tuple[NonNegativeInt, ...] = (1, 2)
    """Levels whose blocks end in self-attention, 0 the finest; there is always one in the middle."""
    head_dim: PositiveInt = 64
    """Channels of an attention head."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a value inside a residual block is set to 0 in training."""

    @property
    def num_levels(self) -> int:
        return len(self.multipliers)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.dim * multiplier for multiplier in self.multipliers)

    @model_validator(mode="after")
    def _attention_fits(self) -> UNetConfig:
        for level in self.attention_levels:
            if level >= self.num_levels:
                raise ValueError(
                    f"attention_levels names level {level}, and {self.num_levels} multipliers make levels 0 to "
                    f"{self.num_levels - 1}"
                )
        for level in sorted({*self.attention_levels, self.num_levels - 1}):
            if self.widths[level] % self.head_dim:
                raise ValueError(
                    f"head_dim {self.head_dim} does not divide the {self.widths[level]} channels of level {level}, "
                    "which has attention"
                )
        return self


DenoiserConfig = Annotated[DiTConfig | UNetConfig, Field(discriminator="kind"), default_kind("dit")]


class DiffusionConfig(Config):
    """What the denoiser learns (DESIGN section 3.6); x are the normalised codes, snr the signal-to-noise ratio."""

    objective: Objective = "edm"
    schedule: Schedule = "edm-lognormal"
    weighting: Weighting = "edm"
    normalise: Normalise = "store"
    """`store`: per channel by the store's mean and std; `none`: x = 2z - 1 alone, as in the paper; `probit`: codes in
    [0, 1] made Gaussian, channel by channel, by the store's distribution function; its inverse stays in [0, 1]."""
    sigma_data: float = Field(default=1.0, gt=0)
    """Standard deviation of x that objective and weighting `edm` assume: 1 under `normalise: store` and `probit`."""
    p_mean: float = -0.4
    """Mean of ln(noise / signal) in training, schedules `edm-lognormal` and `logit-normal`."""
    p_std: float = Field(default=1.2, gt=0)
    """Its standard deviation."""
    cosine_start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Part of the cosine that schedule `cosine-shifted` begins at (arXiv 2301.10972)."""
    cosine_end: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    cosine_tau: float = Field(default=1.5, gt=0)
    """Its exponent: alpha^2 goes as cos^(2 tau)."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """Where weightings `min-snr` and `soft-min-snr` stop following the snr."""
    sigma_min: float = Field(default=0.002, gt=0)
    """Least noise / signal that samplers with Karras steps visit before 0."""
    sigma_max: float = Field(default=80.0, gt=0)
    """The noise / signal they start from."""
    class_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Chance that a label is dropped in training, for classifier-free guidance; without labels unused."""

    @model_validator(mode="after")
    def _ends_fit(self) -> DiffusionConfig:
        if self.cosine_start >= self.cosine_end:
            raise ValueError(f"cosine_start {self.cosine_start} is not below cosine_end {self.cosine_end}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}")
        return self
