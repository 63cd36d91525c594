"""The autoencoder's config: encoder, bottleneck, decoder. `core.build` turns it into modules."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from brics_cli.config.base import Config


class EncoderConfig(Config):
    """Convolutional ResNet: pixels folded into channels, then one stage per width, halving in between."""

    patch: PositiveInt = 1
    """Space-to-depth factor of the stem: a patch x patch block of pixels becomes one position."""
    widths: tuple[PositiveInt, ...] = (64, 128, 256)
    """Channels of each stage, finest first; each stage but the first starts with a 2x downsampling."""
    num_blocks: PositiveInt = 2
    """Residual blocks per stage."""
    attention: bool = False
    """Self-attention after the coarsest stage."""
    shortcut: bool = True
    """Add a linear map of each f x f block of pixels to the output, beside all normalisation."""


class DecoderConfig(Config):
    """Convolutional ResNet: one stage per width, coarsest first, nearest 2x upsampling in between."""

    widths: tuple[PositiveInt, ...] = (256, 128, 64)
    num_blocks: PositiveInt = 2
    unpatch: PositiveInt = 1
    """Pixel-shuffle factor of the head: one position becomes an unpatch x unpatch block of pixels."""
    attention: bool = False
    """Self-attention after the coarsest stage."""
    shortcut: bool = True
    """Add a linear map of each input position to its block of pixels, beside all normalisation."""


class FeatureConfig(Config):
    """The 1x1 MLP from what the bottleneck retrieves to the decoder's input: the same under every bottleneck."""

    hidden_dim: PositiveInt = 128
    upscale: PositiveInt = 1
    """Pixel-shuffle factor after the MLP: the decoder starts at `upscale` times the code's resolution."""


class BoundedConfig(Config):
    """What all bounded bottlenecks share."""

    noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Standard deviation of the training noise on the codes, in code units ([0, 1]); reflected at the walls."""


class GridBottleneckConfig(BoundedConfig):
    """BRICS: groups of multi-resolution feature grids looked up by the codes (arXiv 2305.18601)."""

    kind: Literal["grid"] = "grid"
    key_dim: Literal[1, 2, 3] = 2
    """Code channels per group: the dimension of its grids."""
    resolutions: tuple[Annotated[int, Field(ge=1)], ...] = (4, 8, 16, 32)
    """Cells per axis of each level; a level of N cells has N + 1 vertices per axis."""
    level_dim: PositiveInt = 4
    """Features per vertex."""
    init: Literal["identity", "normal", "uniform"] = "identity"
    """`identity`: the first key_dim features are the coordinate itself plus noise; `uniform`: Instant-NGP's."""
    init_std: float = Field(default=0.1, ge=0.0)
    """Standard deviation of the noise of `identity` and `normal`."""

    @model_validator(mode="after")
    def _identity_fits(self) -> GridBottleneckConfig:
        if self.init == "identity" and self.level_dim < self.key_dim:
            raise ValueError(f"init 'identity' needs level_dim >= key_dim, got {self.level_dim} < {self.key_dim}")
        if not self.resolutions:
            raise ValueError("resolutions is empty: a grid needs at least one level")
        return self


class NoneBottleneckConfig(BoundedConfig):
    """The rival to beat: the same bounded codes through a 1x1 MLP, no grids."""

    kind: Literal["none"] = "none"


BottleneckConfig = Annotated[GridBottleneckConfig | NoneBottleneckConfig, Field(discriminator="kind")]


class AutoencoderConfig(Config):
    """images (B, 3, H, W) -> codes (B, code_channels, H/f, W/f) -> images."""

    image_size: PositiveInt
    code_channels: PositiveInt = 16
    encoder: EncoderConfig = EncoderConfig()
    bottleneck: BottleneckConfig = GridBottleneckConfig()
    features: FeatureConfig = FeatureConfig()
    decoder: DecoderConfig = DecoderConfig()

    @property
    def downsampling(self) -> int:
        """f: image pixels per code position and axis."""
        return self.encoder.patch * 2 ** (len(self.encoder.widths) - 1)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        side = self.image_size // self.downsampling
        return self.code_channels, side, side

    @property
    def pixels_per_code(self) -> float:
        """Colour values of the image per value of the code."""
        return 3 * self.image_size**2 / math.prod(self.code_shape)

    @model_validator(mode="after")
    def _shapes_fit(self) -> AutoencoderConfig:
        if self.image_size % self.downsampling:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the encoder's downsampling {self.downsampling} "
                "(encoder.patch * 2^(stages - 1))"
            )
        upsampling = self.features.upscale * 2 ** (len(self.decoder.widths) - 1) * self.decoder.unpatch
        if upsampling != self.downsampling:
            raise ValueError(
                f"the decoder enlarges {upsampling}x (features.upscale * 2^(stages - 1) * decoder.unpatch), "
                f"the encoder reduces {self.downsampling}x"
            )
        if isinstance(self.bottleneck, GridBottleneckConfig) and self.code_channels % self.bottleneck.key_dim:
            raise ValueError(
                f"code_channels {self.code_channels} is not a multiple of bottleneck.key_dim {self.bottleneck.key_dim}"
            )
        return self
