"""Recipes: everything a training run depends on, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from brics_cli.config.autoencoder import AutoencoderConfig
from brics_cli.config.base import Config
from brics_cli.config.diffusion import DenoiserConfig, DiffusionConfig


class OptimiserConfig(Config):
    """AdamW. Learning rates are used as written, whatever the batch size or the number of devices."""

    lr: float = Field(default=1e-3, gt=0, le=100)
    grid_lr: float = Field(default=3e-3, gt=0, le=100)
    """Of feature grids, which get no weight decay and eps 1e-15 (Instant-NGP, arXiv 2201.05989)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: NonNegativeInt = 100
    decay: Literal["none", "cosine"] = "cosine"
    """`cosine` falls to a hundredth of lr at the last step."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""


class LossConfig(Config):
    """Weights of the reconstruction loss; images are in [-1, 1]."""

    l1: float = Field(default=1.0, ge=0)
    l2: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _something_is_minimised(self) -> LossConfig:
        if not (self.l1 or self.l2):
            raise ValueError("all weights are 0: nothing would be minimised")
        return self


class DataConfig(Config):
    """How images reach the model."""

    transform: Literal["crop-bicubic", "adm", "edm-lanczos", "none"] = "crop-bicubic"
    flip: bool = True
    """Mirror half of the training images."""
    val_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Held out by hash of the key when no --val is given."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Decoded images are kept in memory when all of them fit in this."""


class ScheduleConfig(Config):
    """How long, how often, how precise."""

    steps: PositiveInt = 100_000
    batch_size: PositiveInt = 32
    """Images per optimiser step, over all devices."""
    accumulate: PositiveInt = 1
    """Micro-batches per step; divides batch_size."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast on CUDA; ignored on the CPU, where it is slower."""
    compile: bool = False
    seed: int = Field(default=0, ge=0, lt=2**63)
    ema_half_life_kimg: float = Field(default=10.0, gt=0)
    """Thousands of images after which a weight's share in the average has halved."""
    ema_warmup: float = Field(default=0.05, gt=0, le=1)
    """Early on, the half-life is this fraction of the images seen (EDM's ramp-up ratio)."""
    log_every: PositiveInt = 50
    val_every: PositiveInt = 1000
    snapshot_every: PositiveInt = 5000
    checkpoint_every: PositiveInt = 5000
    keep_checkpoints: PositiveInt = 2


RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that can be part of a directory's."""


class AutoencoderRecipe(Config):
    """A recipe of `brics train-ae`."""

    kind: Literal["autoencoder"]
    name: RecipeName
    about: str
    """One line for `brics recipes`."""
    model: AutoencoderConfig
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    data: DataConfig = DataConfig()
    training: ScheduleConfig = ScheduleConfig()


class DiffusionRecipe(Config):
    """A recipe of `brics train-diffusion`. Data are the codes of a store, so there is no transform here."""

    kind: Literal["diffusion"]
    name: RecipeName
    about: str
    denoiser: DenoiserConfig = DenoiserConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    training: ScheduleConfig = ScheduleConfig()


Recipe = AutoencoderRecipe | DiffusionRecipe
