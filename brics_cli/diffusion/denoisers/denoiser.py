"""The denoiser: a network, what its output means, and the normalisation of the codes it was trained on.

Codes z (B, C, h, w) in [0, 1] become x = (2z - 1 - mean) / std, per channel. Under `normalise: store` mean and std
are those of 2z - 1 over the store, so that x has mean 0 and standard deviation 1; under `none` they are 0 and 1. Under
`probit` x follows a Gaussian, channel by channel (`diffusion.normalisation`).
Continuous codes (of the bottlenecks `kl`, `vq`, `rq`) go the same way, and are never clamped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brics_cli.config import CodeKind, DenoiserConfig, DiffusionConfig
from brics_cli.diffusion.classes import Classes
from brics_cli.diffusion.denoisers.parts import dropout_keys
from brics_cli.diffusion.diffusion import Draws, alpha_sigma, parametrisation, training_log_snr, weight
from brics_cli.diffusion.normalisation import to_x, x_to_codes


class DiffusionLoss(NamedTuple):
    """`per_sample` (B,) float32, the mean squared error of F times its weight, and the noise level (B,) it was at."""

    per_sample: Tensor
    log_snr: Tensor


class Denoiser(nn.Module):
    """Noisy codes -> the estimate of the clean ones.

    `code_shape` is (C, h, w); `num_classes` is 0 for an unconditional model; `code_kind` is `bounded` when codes are in
    [0, 1]; `class_counts` and `class_names` are as in `Classes`. A loaded denoiser also says where it came from:
    `path`, `weights_sha256`, and `lineage`, the autoencoder and store named in its config.
    """

    path: Path
    weights_sha256: str
    lineage: dict[str, str]
    class_counts: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        *,
        config: DenoiserConfig,
        diffusion: DiffusionConfig,
        code_shape: tuple[int, int, int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        levels: Sequence[Sequence[float]] | None = None,
        code_kind: CodeKind = "bounded",
    ) -> None:
        super().__init__()
        self.network = network
        self.config, self.diffusion = config, diffusion
        self.code_shape, self.num_classes, self.code_kind = code_shape, num_classes, code_kind
        # Not in the weights file: config.json says them, once.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).reshape(-1, 1, 1), persistent=False)
        self.levels: Tensor | None  # (C, 256), of `probit`
        self.register_buffer("levels", None if levels is None else torch.tensor(levels), persistent=False)

    @property
    def classes(self) -> Classes:
        """What it can be asked for."""
        return Classes(self.num_classes, self.class_counts, self.class_names)

    def to_x(self, codes: Tensor) -> Tensor:
        """Codes (B, C, h, w) in [0, 1] -> x, the space that diffusion runs in."""
        return to_x(codes, self.mean, self.std, self.levels)

    def to_codes(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> codes, clamped to [0, 1] when that is their range."""
        if self.levels is not None:
            return x_to_codes(x, self.levels)
        codes = (x * self.std + self.mean + 1) / 2
        return codes.clamp(0, 1) if self.code_kind == "bounded" else codes

    def clip(self, x: Tensor) -> Tensor:
        """x limited to what codes in [0, 1] can be: per channel, exactly. Continuous codes have no limits."""
        if self.code_kind != "bounded":
            return x
        if self.levels is not None:
            return x.clamp(min=self.levels[:, :1, None], max=self.levels[:, -1:, None])
        return x.clamp(min=(-1 - self.mean) / self.std, max=(1 - self.mean) / self.std)

    def predict(
        self, x_t: Tensor, log_snr: Tensor, labels: Tensor | None = None, *, keys: Tensor | None = None
    ) -> Tensor:
        """F: the network's output at x_t (B, C, h, w) and log_snr (B,); labels (B,) int64, `num_classes` for no class.

        `keys` (B,) int32: those of a U-Net's dropout in training (`parts.dropout_keys`).
        """
        scale = parametrisation(self.diffusion, log_snr).in_
        # EDM's c_noise = ln(sigma_e) / 4 = -log_snr / 8
        inputs = (x_t * scale[:, None, None, None], -log_snr / 8, labels if self.num_classes else None)
        f: Tensor = self.network(*inputs) if keys is None else self.network(*inputs, keys)
        return f

    def denoise(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        *,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        clip: bool = True,
    ) -> Tensor:
        """The estimate of x from x_t = alpha x + sigma eps (B, C, h, w) at log_snr (B,).

        `labels` (B,) int64; None: no class. `guidance` w extrapolates from the estimate without class to the one
        with it (classifier-free guidance, arXiv 2207.12598): none + w (class - none), so 1 is no guidance.
        `clip`: the result is limited to what codes can be. Raises ValueError for guidance without labels.
        """
        if self.num_classes == 0 and labels is not None:
            raise ValueError("labels need a model that was trained with classes")
        null = torch.full((len(x_t),), self.num_classes, device=x_t.device)
        if guidance == 1.0:
            f = self.predict(x_t, log_snr, null if labels is None else labels)
        elif labels is None:
            raise ValueError("guidance needs labels")
        else:
            both = self.predict(torch.cat([x_t, x_t]), log_snr.repeat(2), torch.cat([labels, null]))
            with_class, without = both.chunk(2)
            f = without + guidance * (with_class - without)  # x is linear in F, so F may be mixed in its place
        _, skip, out, _, _ = (part[:, None, None, None] for part in parametrisation(self.diffusion, log_snr))
        x = skip * x_t + out * f.to(x_t.dtype)
        return self.clip(x) if clip else x

    def loss(self, codes: Tensor, draws: Draws, *, labels: Tensor | None = None) -> DiffusionLoss:
        """The training loss of codes (B, C, h, w) in [0, 1] under `draws`; labels (B,) int64, -1 for none."""
        x = self.to_x(codes)
        log_snr = training_log_snr(self.diffusion, draws.u)
        alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(log_snr))
        x_t = alpha * x + sigma * draws.eps
        kept = torch.full((len(x),), self.num_classes, device=x.device)
        if self.num_classes and labels is not None:
            dropped = (draws.drop < self.diffusion.class_dropout) | (labels < 0)
            kept = torch.where(dropped, self.num_classes, labels)
        drops = self.training and getattr(self.network, "dropout", 0.0) > 0
        f = self.predict(x_t, log_snr, kept, keys=dropout_keys(draws.eps) if drops else None).float()
        to_x, to_eps = (part[:, None, None, None] for part in parametrisation(self.diffusion, log_snr)[3:])
        squared_error = (f - (to_x * x + to_eps * draws.eps)).square().mean(dim=(1, 2, 3))  # (B,)
        return DiffusionLoss(weight(self.diffusion, log_snr) * squared_error, log_snr)

    def forward(self, codes: Tensor, draws: Draws, *, labels: Tensor | None = None) -> DiffusionLoss:
        """`loss`: so that one call through a wrapper (DDP, compile) is a training pass."""
        return self.loss(codes, draws, labels=labels)
