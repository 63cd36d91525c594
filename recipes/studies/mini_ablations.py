"""The ablations in recipes/models/brics-mini.md: a recipe trained for some seconds of one core, scored as it is used.

    python recipes/studies/mini_ablations.py 'packs/*/*.tar' PHOTOGRAPHS --seconds 150 --set optimiser.lr=4e-4

The time is the process's own, whatever else the machine does; the learning rate falls by a cosine over that time.
Scores are of the average of the weights, on the centre squares of PHOTOGRAPHS at 256 px through codes of 8 bits.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, to_tensor, to_uint8
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.losses import perceptual_distance
from brics_cli.config import load_recipe
from brics_cli.evaluation.psnr import psnr
from brics_cli.evaluation.reconstruction import ssim
from brics_cli.images import open_collection
from brics_cli.images.pixels import load_pixels
from brics_cli.runtime.distributed import World
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.images import Batch, TrainingImages
from brics_cli.training.state import TrainingState
from brics_cli.training.step import autoencoder_loss, put_batch, read_batch

SIZE, NOISE = 256, 0.02


def scores(model: Autoencoder, images: np.ndarray, *, noise: float) -> tuple[float, float]:
    """Mean PSNR (dB) and SSIM of images (N, S, S, 3) through codes of 8 bits with so much noise."""
    generator, found = torch.Generator().manual_seed(0), []
    with torch.inference_mode():
        for image in images:
            codes = (model.encode(to_tensor(image[None])) * 255).round() / 255
            codes = codes + noise * torch.randn(codes.shape, generator=generator)
            found.append(to_uint8(model.decode(codes.clamp(0, 1)))[0])
    return float(psnr(images, np.stack(found)).mean()), float(ssim(images, np.stack(found)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="what `brics pack --crops` wrote")
    parser.add_argument("photographs", type=Path, help="a folder of JPEGs that are not in it")
    parser.add_argument("--recipe", default="brics-mini")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(asked.recipe, kind="autoencoder", overrides=asked.set)
    schedule, size = recipe.training, recipe.model.image_size
    collection = open_collection(asked.data, labels="none")
    crops = TrainingImages(collection, transform=recipe.data.transform, size=size, num_workers=1)
    crops.cache(limit_gib=math.inf, reporter=SilentReporter())
    paths = sorted(asked.photographs.glob("*.jpg"))
    photographs = np.stack([load_pixels(path.read_bytes(), transform="crop-bicubic", size=SIZE) for path in paths])

    torch.manual_seed(schedule.seed)
    state = TrainingState(
        build_autoencoder(recipe.model).to(memory_format=torch.channels_last),
        optimiser=recipe.optimiser.model_copy(update={"decay": "none"}),
        schedule=schedule,
    )
    rates = [group["base_lr"] for group in state.optimiser.param_groups]
    distance, generator = perceptual_distance(recipe.loss), np.random.default_rng(0)
    world = World(device=torch.device("cpu"))
    start = time.process_time()
    while (share := (time.process_time() - start) / asked.seconds) < 1:
        for group, rate in zip(state.optimiser.param_groups, rates, strict=True):
            group["base_lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        drawn = generator.integers(0, len(crops), schedule.batch_size).tolist()
        read = read_batch(Batch(drawn, crops.load(drawn)), recipe, step=state.step, world=world)
        images, noise = put_batch(read, recipe, step=state.step, world=world)
        loss, _, _ = autoencoder_loss(
            recipe, state.model, images, noise, distance=distance, adversary=None, step=state.step
        )
        loss.backward()
        state.update(loss.detach())
    clean, noisy = (scores(state.ema.model, photographs, noise=noise) for noise in (0.0, NOISE))
    million = sum(parameter.numel() for parameter in state.model.parameters()) / 1e6
    print(
        f"{' '.join(asked.set) or asked.recipe}: {million:.2f} M, {state.step} steps, "
        f"{clean[0]:.2f} dB, SSIM {clean[1]:.4f}; with noise of {NOISE} {noisy[0]:.2f} dB"
    )


if __name__ == "__main__":
    main()
