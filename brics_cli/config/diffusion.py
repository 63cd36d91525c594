"""The diffusion model's config: the denoiser and what it is trained to predict. `core.build` makes modules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from brics_cli.config.base import Config


class DiTConfig(Config):
    """Diffusion transformer (arXiv 2212.09748) with RMSNorm, qk-norm, 2D RoPE, SwiGLU."""

    kind: Literal["dit"] = "dit"
    dim: PositiveInt = 384
    depth: PositiveInt = 12
    num_heads: PositiveInt = 6
    patch: PositiveInt = 1
    mlp_ratio: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> DiTConfig:
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} is not a multiple of 4 * num_heads = {4 * self.num_heads} (2D RoPE splits a head in 4)"
            )
        return self


DenoiserConfig = DiTConfig


class DiffusionConfig(Config):
    """What the denoiser learns (DESIGN section 3.6)."""

    objective: Literal["eps", "v", "x0", "edm", "flow"] = "edm"
    schedule: Literal["cosine", "cosine-shifted", "edm-lognormal", "logit-normal"] = "edm-lognormal"
    weighting: Literal["none", "min-snr", "soft-min-snr", "edm"] = "edm"
    normalise: Literal["store", "none"] = "store"
    """`store`: per channel by the store's mean and std; `none`: x = 2z - 1 alone, as in the paper."""
    class_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Chance that a label is dropped in training, for classifier-free guidance; without labels unused."""
