"""The autoencoder's config: encoder, bottleneck, decoder. `autoencoder.build` turns it into modules."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from brics_cli.config.base import Config, default_kind
from brics_cli.config.bottlenecks import BottleneckConfig, FeatureGridConfig, GridBottleneckConfig
from brics_cli.config.names import CodeKind
from brics_cli.errors import UsageError

Norm = Literal["group", "place"]


def check_blocks(num_blocks: int | tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Raise ValueError when there is not one number of blocks for each stage."""
    if isinstance(num_blocks, tuple) and len(num_blocks) != len(widths):
        raise ValueError(f"num_blocks has {len(num_blocks)} numbers for {len(widths)} stages (widths)")


class EncoderConfig(Config):
    """Convolutional ResNet: pixels folded into channels, then one stage per width, halving in between."""

    patch: PositiveInt = 1
    """Space-to-depth factor of the stem: a patch x patch block of pixels becomes one position."""
    widths: tuple[PositiveInt, ...] = (64, 128, 256)
    """Channels of each stage, finest first; each stage but the first starts with a 2x downsampling."""
    num_blocks: PositiveInt | tuple[NonNegativeInt, ...] = 2
    """Residual blocks per stage: one number for all, or one for each."""
    norm: Norm = "group"
    """GroupNorm; or `place`, LayerNorm over the channels of each position, with which what is computed of a place
    depends on what is around it alone: a part of an image comes out as it does in the whole."""
    attention: bool = False
    """Self-attention after the coarsest stage."""
    shortcut: bool = True
    """Add a linear map of each f x f block of pixels to the output, past all normalisation."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> EncoderConfig:
        check_blocks(self.num_blocks, self.widths)
        return self


class ResNetDecoderConfig(Config):
    """Convolutional ResNet: one stage per width, coarsest first, nearest 2x upsampling in between."""

    kind: Literal["resnet"] = "resnet"
    widths: tuple[PositiveInt, ...] = (256, 128, 64)
    num_blocks: PositiveInt | tuple[NonNegativeInt, ...] = 2
    norm: Norm = "group"
    """As in the encoder."""
    unpatch: PositiveInt = 1
    """Pixel-shuffle factor of the head: one position becomes an unpatch x unpatch block of pixels."""
    attention: bool = False
    """Self-attention after the coarsest stage."""
    shortcut: bool = True
    """Add a linear map of each input position to its block of pixels, past all normalisation."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> ResNetDecoderConfig:
        check_blocks(self.num_blocks, self.widths)
        return self

    @property
    def upsampling(self) -> int:
        """Image pixels per position of its input and axis."""
        return self.unpatch * 2 ** (len(self.widths) - 1)


class StyleDecoderConfig(Config):
    """The paper's decoder (arXiv 2305.18601): StyleGAN2's synthesis network (arXiv 1912.04958), modulated by a style
    made of its average-pooled input; no noise inputs."""

    kind: Literal["style"] = "style"
    widths: tuple[PositiveInt, ...] = (512, 256, 128)
    """Channels of each stage, coarsest first; each stage but the first starts with a 2x upsampling."""
    style_dim: PositiveInt = 512
    style_layers: PositiveInt = 8
    """Layers of the MLP from the pooled features to the style."""

    @property
    def upsampling(self) -> int:
        """Image pixels per position of its input and axis."""
        return 2 ** (len(self.widths) - 1)


class MlpFeatureConfig(Config):
    """The 1x1 MLP from what the bottleneck retrieves to the decoder's input: two layers over all groups."""

    kind: Literal["mlp"] = "mlp"
    hidden_dim: PositiveInt = 128
    upscale: PositiveInt = 1
    """The decoder starts at `upscale` times the code's resolution: by a pixel shuffle after the MLP, or, with
    positions in the query, because codes are tiled before they are looked up."""


class GroupedFeatureConfig(Config):
    """The paper's: every group its own 1x1 MLP, modulated by the group's average-pooled features; concatenated."""

    kind: Literal["grouped"] = "grouped"
    hidden_dim: PositiveInt = 64
    """Per group."""
    num_layers: PositiveInt = 3
    upscale: PositiveInt = 1
    """As in `mlp`."""


DecoderConfig = Annotated[ResNetDecoderConfig | StyleDecoderConfig, Field(discriminator="kind"), default_kind("resnet")]
FeatureConfig = Annotated[MlpFeatureConfig | GroupedFeatureConfig, Field(discriminator="kind"), default_kind("mlp")]


class AutoencoderConfig(Config):
    """images (B, 3, H, W) -> codes (B, code_channels, H/f, W/f) -> images."""

    image_size: PositiveInt
    code_channels: PositiveInt = 16
    encoder: EncoderConfig = EncoderConfig()
    bottleneck: BottleneckConfig = GridBottleneckConfig()
    features: FeatureConfig = MlpFeatureConfig()
    decoder: DecoderConfig = ResNetDecoderConfig()

    @property
    def downsampling(self) -> int:
        """f: image pixels per code position and axis."""
        return self.encoder.patch * 2 ** (len(self.encoder.widths) - 1)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of images of `image_size`."""
        return self.code_shape_of(self.image_size)

    def code_shape_of(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) of images of `size` px, a multiple of f."""
        side = size // self.downsampling
        return self.code_channels, side, side

    def takes_codes(self, shape: tuple[int, int, int]) -> bool:
        """Whether codes (C, h, w) can be decoded."""
        return shape == self.code_shape or (shape[0] == self.code_channels and self.tied_to_size is None)

    @property
    def tied_to_size(self) -> str | None:
        """What of it was made for images of `image_size` alone; None: images of any multiple of f go through it."""
        if self.encoder.attention or (self.decoder.kind == "resnet" and self.decoder.attention):
            return "self-attention"
        if isinstance(self.bottleneck, FeatureGridConfig) and self.bottleneck.positions == "image":
            return "positions in the image"
        return (
            "styles pooled over the image" if self.decoder.kind == "style" or self.features.kind == "grouped" else None
        )

    @property
    def is_local(self) -> bool:
        """Whether it is fully convolutional: codes and pixels depend on what is around them, not on the whole image."""
        decoder = self.decoder
        by_place = self.encoder.norm == "place" and decoder.kind == "resnet" and decoder.norm == "place"
        return by_place and self.tied_to_size is None

    def largest_size(self, side: int) -> int:
        """The largest multiple of f up to `side` pixels, f at least."""
        return max(side // self.downsampling, 1) * self.downsampling

    def check_size(self, size: int, *, of: str) -> None:
        """Raise UsageError when images of `size` px, as --size asked for, do not go through the autoencoder `of`."""
        if size == self.image_size:
            return
        if (tied := self.tied_to_size) is not None:
            raise UsageError(
                f"--size {size}: {of} has {tied} and takes images of {self.image_size} px alone",
                next="Leave --size out, or train one without it.",
            )
        if size % self.downsampling:
            below = self.largest_size(size)
            raise UsageError(
                f"--size {size} is not a multiple of {self.downsampling}, the pixels per code and axis of {of}",
                next=f"Use --size {below} or {below + self.downsampling}." if below < size else f"Use --size {below}.",
            )

    @property
    def pixels_per_code(self) -> float:
        """Colour values of the image per value of the code."""
        return 3 * self.image_size**2 / math.prod(self.code_shape)

    @property
    def code_kind(self) -> CodeKind:
        """`bounded`: codes are in [0, 1]; `continuous`: they can be any number."""
        return self.bottleneck.code_kind

    @property
    def bits_per_pixel(self) -> float:
        """Bits of an image's codes (see `bits_per_position`) per pixel of the image."""
        return self.bottleneck.bits_per_position(self.code_channels) / self.downsampling**2

    @model_validator(mode="after")
    def _shapes_fit(self) -> AutoencoderConfig:
        if self.image_size % self.downsampling:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the encoder's downsampling {self.downsampling} "
                "(encoder.patch * 2^(stages - 1))"
            )
        upsampling = self.features.upscale * self.decoder.upsampling
        if upsampling != self.downsampling:
            raise ValueError(
                f"the decoder enlarges {upsampling}x (features.upscale * 2^(stages - 1) * decoder.unpatch), "
                f"the encoder reduces {self.downsampling}x"
            )
        self.bottleneck.check(self.code_channels, upscale=self.features.upscale)
        num_groups = self.bottleneck.num_groups(self.code_channels)
        if self.features.kind == "grouped" and self.decoder.widths[0] % num_groups:
            raise ValueError(
                f"features.kind 'grouped' shares decoder.widths[0] = {self.decoder.widths[0]} among {num_groups} "
                "groups, which does not come out even"
            )
        if isinstance(self.bottleneck, FeatureGridConfig) and self.bottleneck.init == "dct" and not self._can_be_linear:
            raise ValueError(
                "bottleneck.init 'dct' needs features of kind 'mlp', upscale 1 and hidden_dim >= 2 x code_channels, a "
                "decoder of kind 'resnet' with widths[0] >= code_channels, and both shortcuts"
            )
        return self

    @property
    def _can_be_linear(self) -> bool:
        return (
            isinstance(self.features, MlpFeatureConfig)
            and self.features.upscale == 1
            and self.features.hidden_dim >= 2 * self.code_channels
            and isinstance(self.decoder, ResNetDecoderConfig)
            and self.decoder.widths[0] >= self.code_channels
            and self.encoder.shortcut
            and self.decoder.shortcut
        )
