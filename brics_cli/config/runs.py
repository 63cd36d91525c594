"""Recipes: everything a training run depends on, and nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from brics_cli.config.autoencoder import AutoencoderConfig
from brics_cli.config.base import Config
from brics_cli.config.diffusion import DenoiserConfig, DiffusionConfig, DiTConfig
from brics_cli.config.names import DEFAULT_TRANSFORM, FloatType, GanLoss, Logger, Perceptual, Precision, Transform
from brics_cli.config.terms import TermsConfig


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


SMALLEST_SIDE = {"none": 1, "multiscale": 11, "lpips": 16, "vgg16": 16}
"""Pixels that a perceptual distance needs: the window of SSIM, the pooling layers of VGG16."""


class PerceptualConfig(Config):
    """A perceptual distance between reconstruction and image, weighted into the loss. Never swapped for another one."""

    kind: Perceptual = "none"
    """`multiscale`: L1 + Laplacian pyramid + MS-SSIM, without weights; `lpips`: LPIPS v0.1 on VGG16; `vgg16`: L1 of
    VGG16 features (the paper's). The last two need vgg16's weights: `brics weights list`."""
    weight: float = Field(default=1.0, ge=0)


class LossConfig(Config):
    """Weights of the reconstruction loss; images are in [-1, 1]."""

    l1: float = Field(default=1.0, ge=0)
    l2: float = Field(default=0.0, ge=0)
    perceptual: PerceptualConfig = PerceptualConfig()

    @model_validator(mode="after")
    def _something_is_minimised(self) -> LossConfig:
        if not (self.l1 or self.l2 or (self.perceptual.kind != "none" and self.perceptual.weight)):
            raise ValueError("all weights are 0: nothing would be minimised")
        return self


class GanConfig(Config):
    """The discriminator and its share in the autoencoder's loss. `weight: 0` is training without one."""

    weight: float = Field(default=0.0, ge=0)
    """Of the adversarial loss, once ramped in; under `adaptive`, its gradient relative to the reconstruction's."""
    loss: GanLoss = "hinge"
    ramp_steps: NonNegativeInt = 2000
    """The discriminator learns from step 0; its weight in the autoencoder's loss grows from 0 over these steps."""
    adaptive: bool = True
    """Multiply by |gradient of reconstruction| / |gradient of GAN| at the last layer (arXiv 2012.09841, equation 7)."""
    adaptive_max: float = Field(default=10.0, gt=0)
    """Largest factor of `adaptive`: without a limit a confident discriminator is given ever more weight."""
    r1_gamma: float = Field(default=0.01, ge=0)
    """Of the penalty on the discriminator's gradient at real images, per patch (R1, arXiv 1801.04406); 0 for none.
    Patches need little: at 1 this one tells nothing from nothing, its logits all 0 (64 px, hinge)."""
    r1_every: PositiveInt = 16
    """Steps between two penalties, each this many times as strong (lazy regularisation, arXiv 1912.04958)."""
    widths: tuple[PositiveInt, ...] = (64, 128, 256)
    """Channels of the discriminator, one strided convolution each: patches of 2^stages pixels and more are judged."""
    norm: Literal["group", "none"] = "group"
    """Per image alone: with batch statistics, loss would depend on how a batch is split over micro-batches or GPUs."""
    lr: float = Field(default=4e-4, gt=0, le=100)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.0, 0.99)

    @model_validator(mode="after")
    def _has_layers(self) -> GanConfig:
        if not self.widths:
            raise ValueError("widths is empty: a discriminator needs at least one layer")
        return self


class DataConfig(Config):
    """How images reach the model."""

    transform: Transform = DEFAULT_TRANSFORM
    flip: bool = True
    """Mirror half of the training images."""
    turn: bool = False
    """Turn them by quarter turns as well: eight views of an image, for what has no up and down (textures)."""
    val_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Held out by hash of the key when no --val is given."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Decoded images are kept in memory when all of them fit in this, over all processes of a machine."""
    shuffle_window: PositiveInt = 16_384
    """Images shuffled together, rounded up to whole shards, as far as training.read_ahead_gib goes."""


class ScheduleConfig(Config):
    """How long, how often, how precise."""

    steps: PositiveInt = 100_000
    batch_size: PositiveInt = 32
    """Images per optimiser step, over all devices."""
    accumulate: PositiveInt = 1
    """Micro-batches per step; divides batch_size."""
    precision: Precision = "bf16"
    """On CUDA; bf16 is autocast, tf32 float32 with its tensor cores' products. The CPU has its own."""
    cpu_precision: FloatType = "fp32"
    """The same on the CPU, where bf16 is slower, except on one that multiplies it (avx512_bf16, AMX): twice as fast."""
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
    """The newest ones that are kept."""
    keep_best: Literal["psnr", "ssim", "none"] = "psnr"
    """Autoencoders keep in `best/` the model that scored best on this in validation; diffusion models do not score."""
    loggers: tuple[Logger, ...] = ("tensorboard",)
    """What else gets scalars, sheets and the config, beside metrics.jsonl and images/; `wandb` needs brics-cli[wandb],
    and goes by its own settings (WANDB_MODE, WANDB_PROJECT, ...)."""


class AutoencoderScheduleConfig(ScheduleConfig):
    """What autoencoders have in addition."""

    freeze_encoder: bool = False
    """With --init-from: the encoder stays as it is, and with it the codes of its stores and diffusion models. What is
    behind the codes learns: to decode noisier ones say, as those that diffusion draws are (arXiv 2510.11690)."""
    read_ahead_gib: Annotated[float, Field(gt=0)] | None = 2.0
    """Files that are read ahead where decoded images do not fit in memory, over all processes of a machine: two
    windows of the order. A window that would be more than half of this is cut into smaller ones. null: no limit, as in
    runs before there was one."""


class DiffusionScheduleConfig(ScheduleConfig):
    """What diffusion models have in addition."""

    gradient_checkpointing: bool = False
    """Compute the activations inside each of the denoiser's blocks again in the backward pass instead of keeping them:
    less memory, the same result, the time of one more forward pass."""
    ema_widths: tuple[Annotated[float, Field(gt=0, le=0.28)], ...] = (0.05, 0.1)
    """Relative widths of the averages kept beside the plain one (EDM2, arXiv 2312.02696, section 3.1), to choose from
    after training: `brics sample --ema 0.05`. Each costs one more copy of the weights; [] keeps none."""
    store_on_device: Literal["auto", "always", "never"] = "auto"
    """Keep the whole store on the device; `auto`: on a GPU, where it takes up to a quarter of the memory that is free.
    Otherwise codes are read from the memory-mapped file. The batches are the same."""
    shuffle_window: PositiveInt | None = None
    """Codes shuffled together, rounded up to whole shards of the store. Left out: all of a store in one file, and
    262,144 of one that is a folder or larger than the machine's memory (1 GiB at 4 KiB each), so that reading it stays
    near-sequential."""
    val_fraction: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the store that is not trained on, by hash of the key as in `data.val_fraction`, for `val/loss` by noise
    level; 0 for none, so that a recipe without it trains on every code, as it always did."""
    fd_samples: NonNegativeInt | None = None
    """Images drawn at every snapshot for `val/fd-random`, their Fréchet distance to the decoded store on features that
    need no weights; 0 for none. Left out: 256, and on the CPU none."""

    @model_validator(mode="after")
    def _averages_differ(self) -> DiffusionScheduleConfig:
        if len(set(self.ema_widths)) < len(self.ema_widths):
            raise ValueError(f"ema_widths {list(self.ema_widths)} names one twice")
        if self.fd_samples == 1:
            raise ValueError("fd_samples 1 gives no distance: it takes 2 images at least, or 0 for none")
        return self


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
    gan: GanConfig = GanConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    data: DataConfig = DataConfig()
    training: AutoencoderScheduleConfig = AutoencoderScheduleConfig()
    terms: TermsConfig = TermsConfig()
    """For codes that are easier to diffuse; all off."""

    @model_validator(mode="after")
    def _terms_fit(self) -> AutoencoderRecipe:
        bottleneck, terms = self.model.bottleneck, self.terms
        if terms.noise.factors and not getattr(bottleneck, "noise", 0.0):
            raise ValueError(
                "terms.noise.factors multiply model.bottleneck.noise, which is 0 or which this kind has not"
            )
        if terms.noise.factors and getattr(bottleneck, "noise_varies", False):
            raise ValueError("terms.noise.factors and model.bottleneck.noise_varies both vary the noise: take one")
        if terms.penalise and self.training.freeze_encoder:
            raise ValueError("terms.spectrum, .marginals and .whitening train the encoder: not with freeze_encoder")
        if terms.penalise and bottleneck.kind in ("vq", "rq"):
            raise ValueError(
                f"terms.spectrum, .marginals and .whitening are not for entries of codebooks ({bottleneck.kind})"
            )
        if terms.marginals.weight and terms.marginals.target == "uniform" and self.model.code_kind != "bounded":
            raise ValueError(
                f"terms.marginals.target uniform is for codes in [0, 1], not for those of {bottleneck.kind}"
            )
        if terms.transform and not (self.loss.l1 or self.loss.l2):
            raise ValueError("terms that transform codes need loss.l1 or loss.l2")
        side = self.model.code_shape[1]
        for factor in terms.scale_equivariance.factors if terms.scale_equivariance.weight else ():
            if side % factor:
                raise ValueError(f"terms.scale_equivariance.factors: {factor} does not divide codes of {side} x {side}")
        return self

    @model_validator(mode="after")
    def _images_are_large_enough(self) -> AutoencoderRecipe:
        kind, size = self.loss.perceptual.kind, self.model.image_size
        if size < SMALLEST_SIDE[kind]:
            raise ValueError(
                f"loss.perceptual.kind {kind} needs images of at least {SMALLEST_SIDE[kind]} px, not {size}"
            )
        patch = 2 ** len(self.gan.widths)
        if self.gan.weight and size < 2 * patch:
            raise ValueError(f"gan.widths has {len(self.gan.widths)} stages for images of {2 * patch} px, not {size}")
        return self


class DiffusionRecipe(Config):
    """A recipe of `brics train-diffusion`. Data are the codes of a store, so there is no transform here."""

    kind: Literal["diffusion"]
    name: RecipeName
    about: str
    denoiser: DenoiserConfig = DiTConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    training: DiffusionScheduleConfig = DiffusionScheduleConfig()


Recipe = AutoencoderRecipe | DiffusionRecipe
