"""The estimate of x that samplers go by, guided or not, and which model may guide which.

Both kinds of guidance go from a worse estimate through a better one and beyond: worse + w (better - worse), w = 1 being
none. Classifier-free guidance (Ho & Salimans, arXiv 2207.12598): without the class -> with it. Autoguidance (Karras
et al., arXiv 2406.02507): a guide (a smaller model, or one trained for less) -> the model itself, same class.

Shapes: x_t (B, C, h, w) noisy normalised codes; log_snr (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.diffusion.denoisers import Denoiser
from brics_cli.errors import ArtefactError


def estimate(
    denoiser: Denoiser,
    x_t: Tensor,
    log_snr: Tensor,
    *,
    guidance: float = 1.0,
    guide: Denoiser | None = None,
    labels: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """The estimate of x from x_t = alpha x + sigma eps (B, C, h, w) at log_snr (B,).

    `guidance` is w: of autoguidance when there is a `guide`, else of classifier-free guidance. `labels` (B,) int64 or
    None go to both models. `clip`: the guided estimate is limited to what codes can be. At w = 1 the denoiser alone is
    evaluated. Raises ValueError for classifier-free guidance without labels.
    """
    if guide is None or guidance == 1.0:
        return denoiser.denoise(x_t, log_snr, labels=labels, guidance=guidance, clip=clip)
    better = denoiser.denoise(x_t, log_snr, labels=labels, clip=False)
    worse = guide.denoise(x_t, log_snr, labels=labels if guide.num_classes else None, clip=False)
    x = worse + guidance * (better - worse)
    return denoiser.clip(x) if clip else x


def check_guide(guide: Denoiser, denoiser: Denoiser) -> None:
    """Raise ArtefactError unless `guide` can guide `denoiser`.

    Both make codes of one shape and kind, under one normalisation and, where both say it, of one autoencoder; the guide
    knows the same classes, or none.
    """
    misfit = _misfit(guide, denoiser)
    if misfit is not None:
        guide_name, model_name = getattr(guide, "path", "given"), getattr(denoiser, "path", "the model")
        raise ArtefactError(
            f"the guide {guide_name} does not fit {model_name}: {misfit}",
            next="Train a guide on the same store, with a smaller recipe or fewer steps.",
        )


def _misfit(guide: Denoiser, denoiser: Denoiser) -> str | None:
    def shape(each: Denoiser) -> str:
        return " x ".join(str(side) for side in each.code_shape)

    def autoencoder(each: Denoiser) -> str | None:
        lineage: dict[str, str] | None = getattr(each, "lineage", None)  # of a loaded model
        return None if lineage is None else lineage["autoencoder_sha256"]

    if guide.code_shape != denoiser.code_shape:
        return f"it makes codes of {shape(guide)}, the model of {shape(denoiser)}"
    if guide.code_kind != denoiser.code_kind:
        return f"it makes {guide.code_kind} codes, the model {denoiser.code_kind} ones"
    made_by = [autoencoder(each) for each in (guide, denoiser)]
    if None not in made_by and made_by[0] != made_by[1]:
        return "its codes are of another autoencoder"
    if not (torch.equal(guide.mean, denoiser.mean) and torch.equal(guide.std, denoiser.std)):
        return "it normalises codes by other statistics"
    if guide.num_classes not in (0, denoiser.num_classes):
        return f"it was trained with {guide.num_classes} classes, the model with {denoiser.num_classes}"
    return None
