"""The names that recipes, stores and options choose from, each list here alone, with its default.

What a name stands for is registered beside the code that does it; `tests/unit/config/test_names.py` compares.
"""

from __future__ import annotations

from typing import Literal

RecipeKind = Literal["autoencoder", "diffusion"]
"""What a recipe trains."""

Transform = Literal["crop-bicubic", "adm", "edm-lanczos", "none", "crop-bicubic-fast", "crop-bicubic-cuda"]
"""How an image becomes a square (`images.pixels`)."""
DEFAULT_TRANSFORM: Transform = "crop-bicubic"
Labels = Literal["folder", "none"]
"""Where classes of images come from: top-level folders, or nowhere (`images.opening`)."""

Precision = Literal["fp32", "bf16", "tf32"]
"""What networks compute in (`runtime.precision`, which has the default of a device)."""
FloatType = Literal["fp32", "bf16"]
"""The same where there is no TF32: on a CPU, and of numbers as they are kept."""

ExecutorName = Literal["local", "ray"]
"""Where batch commands do their work: this machine (`runtime.executors`) or a Ray cluster (`runtime.on_ray`)."""

CodeKind = Literal["bounded", "continuous"]
"""Codes in [0, 1], or any real numbers."""
Positions = Literal["none", "image", "cell"]
"""What a grid's query holds beside the key: nothing, the place in the image, or the place in a code's cell."""
GridIndex = Literal["tiled", "hash"]
"""How a grid's level with more vertices than rows finds its rows (`kernels.spec`)."""
Quantisation = Literal["uint8", "uint16", "float16"]
"""How a key-code store keeps codes (`codes.format`)."""
DEFAULT_QUANTISATIONS: dict[CodeKind, Quantisation] = {"bounded": "uint8", "continuous": "float16"}

Objective = Literal["eps", "v", "x0", "edm", "flow"]
Schedule = Literal["cosine", "cosine-shifted", "edm-lognormal", "logit-normal"]
Normalise = Literal["store", "none", "probit"]
Weighting = Literal["none", "min-snr", "soft-min-snr", "edm"]
"""Of diffusion (`diffusion.diffusion`). The names of samplers are those of its registry, `diffusion.samplers`."""

ClassBalance = Literal["proportional", "even"]
"""How often each class is drawn: as often as in training, or each alike (`diffusion.classes`)."""

Logger = Literal["tensorboard", "wandb"]
"""Where training logs to besides metrics.jsonl (`training.loggers`)."""

Perceptual = Literal["none", "multiscale", "lpips", "vgg16"]
"""Perceptual distances of the autoencoder's loss (`autoencoder.losses`)."""
GanLoss = Literal["hinge", "non-saturating"]
"""`autoencoder.discriminator`."""
