"""The config of every bottleneck: one class per `kind`, and its place in `BottleneckConfig`; `autoencoder.bottlenecks`
has the module of each.

`code_kind` says what its codes are: `bounded` to [0, 1], or `continuous`, any real number, which a key-code store
keeps as float16.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PositiveInt, model_validator

from brics_cli.config.base import Config
from brics_cli.config.names import DEFAULT_QUANTISATIONS, CodeKind, Positions, Quantisation

STORED_BITS: dict[Quantisation, int] = {"uint8": 8, "uint16": 16, "float16": 16}

MAX_GRID_ENTRIES = 2**30
"""4 GiB of float32, and three times that in the optimiser and the average: a forgotten cap."""


class _BottleneckConfig(Config):
    code_kind: ClassVar[CodeKind] = "bounded"

    def check(self, code_channels: int, *, upscale: int) -> None:
        """Raise ValueError for a number of channels, or of decoder inputs per code and axis, that does not fit."""

    def num_groups(self, code_channels: int) -> int:
        """Groups of channels that are looked up on their own."""
        return 1

    def bits_per_position(self, code_channels: int) -> float:
        """Bits that the codes of one position take: as a store keeps them, or as indices where there is a codebook."""
        return STORED_BITS[DEFAULT_QUANTISATIONS[self.code_kind]] * code_channels


class BoundedConfig(_BottleneckConfig):
    """What the bottlenecks share whose codes are bounded by a sigmoid."""

    noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Standard deviation of the training noise on the codes, in code units ([0, 1]); reflected at the walls."""
    noise_varies: bool = False
    """Every image's noise has a standard deviation of its own, uniform between 0 and `noise`: what decodes noisy codes
    well learns to decode clean ones better."""


class FeatureGridConfig(BoundedConfig):
    """Groups of multi-resolution feature grids looked up by the codes (arXiv 2305.18601)."""

    key_dim: Literal[1, 2, 3] = 2
    """Code channels per group: the dimension of its grids, without positions."""
    resolutions: tuple[Annotated[int, Field(ge=1)], ...] = (4, 8, 16, 32)
    """Cells per axis of each level; a level of N cells has N + 1 vertices per axis."""
    level_dim: PositiveInt = 4
    """Features per vertex."""
    table_cap: PositiveInt | None = None
    """Rows per level and group at most: a level with more vertices shares them. None: every vertex has its row."""
    positions: Positions = "none"
    """Add (y, x) to the query: the place in the image, or the place inside the cell of one code. Codes are then
    tiled to `features.upscale` times their resolution and looked up there."""
    init: Literal["identity", "dct", "normal", "uniform"] = "identity"
    """`identity`: the first key_dim features of the levels below the cap are the key itself plus noise; `dct`: so that
    the whole autoencoder starts as a linear one (`autoencoder.linear_start`); `uniform`: Instant-NGP's."""
    init_std: float = Field(default=0.1, ge=0.0)
    """Standard deviation of the noise of `identity` and `normal`."""

    def check(self, code_channels: int, *, upscale: int) -> None:
        if code_channels % self.key_dim:
            raise ValueError(f"code_channels {code_channels} is not a multiple of bottleneck.key_dim {self.key_dim}")
        if self.positions == "cell" and upscale == 1:
            raise ValueError("bottleneck.positions 'cell' needs features.upscale > 1: a code would have one place")
        num_entries = self.num_entries(code_channels)
        if num_entries > MAX_GRID_ENTRIES:
            raise ValueError(
                f"the grids would have {num_entries / 1e6:,.0f} M parameters, more than "
                f"{MAX_GRID_ENTRIES / 1e6:,.0f} M: lower bottleneck.resolutions, or set bottleneck.table_cap"
            )

    def num_groups(self, code_channels: int) -> int:
        return code_channels // self.key_dim

    def num_entries(self, code_channels: int) -> int:
        """Features in the tables of all groups together: the parameters of the grids."""
        axes = self.key_dim + (0 if self.positions == "none" else 2)
        rows = [(cells + 1) ** axes for cells in self.resolutions]
        if self.table_cap is not None:
            rows = [min(each, self.table_cap) for each in rows]
        return self.num_groups(code_channels) * self.level_dim * sum(rows)

    @model_validator(mode="after")
    def _identity_fits(self) -> FeatureGridConfig:
        if self.init in ("identity", "dct") and self.level_dim < self.key_dim:
            raise ValueError(f"init {self.init!r} needs level_dim >= key_dim, got {self.level_dim} < {self.key_dim}")
        if self.init == "dct" and (self.positions != "none" or self.table_cap is not None):
            raise ValueError("init 'dct' needs grids without positions and without table_cap")
        if not self.resolutions:
            raise ValueError("resolutions is empty: a grid needs at least one level")
        return self


class GridBottleneckConfig(FeatureGridConfig):
    """BRICS: the vertices of a level above the cap take its rows in turn (`tiled`)."""

    kind: Literal["grid"] = "grid"


class HashBottleneckConfig(FeatureGridConfig):
    """BRIGHT, the predecessor: a level above the cap is indexed by Instant-NGP's spatial hash (arXiv 2201.05989)."""

    kind: Literal["hash"] = "hash"
    table_cap: PositiveInt = 512


class NoneBottleneckConfig(BoundedConfig):
    """The rival to beat: the same bounded codes through a 1x1 MLP, no grids."""

    kind: Literal["none"] = "none"


class KlBottleneckConfig(_BottleneckConfig):
    """A diagonal Gaussian per code value, as in latent diffusion (arXiv 2112.10752, appendix G)."""

    code_kind: ClassVar[CodeKind] = "continuous"
    kind: Literal["kl"] = "kl"
    weight: float = Field(default=1e-6, ge=0.0)
    """Of the KL divergence: the sum over an image's codes, in nats, over the number of the image's colour values.
    This is latent diffusion's balance, where both are sums per image."""


class _CodebookConfig(_BottleneckConfig):
    code_kind: ClassVar[CodeKind] = "continuous"
    codebook_size: Annotated[int, Field(ge=2)] = 1024
    """Entries per codebook."""
    commitment: float = Field(default=0.25, ge=0.0)
    """Weight of the commitment loss (arXiv 1711.00937, equation 3)."""
    decay: float = Field(default=0.99, gt=0.0, lt=1.0)
    """Of the moving averages that entries follow (arXiv 1711.00937, appendix A.1)."""
    restart_below: float = Field(default=0.1, ge=0.0)
    """An entry hit less often than this per batch, on average, restarts at a vector of the batch; 0: never."""


class VqBottleneckConfig(_CodebookConfig):
    """VQ-VAE: every position's vector becomes its nearest entry of one codebook (arXiv 1711.00937)."""

    kind: Literal["vq"] = "vq"

    def bits_per_position(self, code_channels: int) -> float:
        return math.log2(self.codebook_size)


class RqBottleneckConfig(_CodebookConfig):
    """RQ-VAE: the vector is a sum of `depth` entries, each the nearest to what is left (arXiv 2203.01941)."""

    kind: Literal["rq"] = "rq"
    depth: Annotated[int, Field(ge=1, le=64)] = 4
    """Codebooks, and entries per position."""

    def bits_per_position(self, code_channels: int) -> float:
        return self.depth * math.log2(self.codebook_size)


class FsqBottleneckConfig(_BottleneckConfig):
    """Finite scalar quantisation: every code value is rounded to a few levels (arXiv 2309.15505)."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=256)], ...] = (8,)
    """Values that a channel can take, evenly spaced in [0, 1]: one number for all channels, or one per channel."""

    def check(self, code_channels: int, *, upscale: int) -> None:
        if len(self.levels) not in (1, code_channels):
            raise ValueError(
                f"bottleneck.levels has {len(self.levels)} numbers: give one for all channels, or {code_channels}"
            )

    def channel_levels(self, code_channels: int) -> list[int]:
        """Levels of each channel."""
        return list(self.levels) * code_channels if len(self.levels) == 1 else list(self.levels)

    def bits_per_position(self, code_channels: int) -> float:
        return sum(math.log2(levels) for levels in self.channel_levels(code_channels))


BottleneckConfig = Annotated[
    GridBottleneckConfig
    | HashBottleneckConfig
    | NoneBottleneckConfig
    | KlBottleneckConfig
    | VqBottleneckConfig
    | RqBottleneckConfig
    | FsqBottleneckConfig,
    Field(discriminator="kind"),
]

BOTTLENECK_CONFIGS: dict[str, type[_BottleneckConfig]] = {
    config.model_fields["kind"].default: config for config in get_args(get_args(BottleneckConfig)[0])
}
"""By `kind`."""
CONTINUOUS_KINDS = [kind for kind, config in BOTTLENECK_CONFIGS.items() if config.code_kind == "continuous"]
