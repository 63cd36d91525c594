"""What a step makes of a batch of images before it trains on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brics_cli.autoencoder.autoencoder import to_uint8
from brics_cli.config import load_recipe
from brics_cli.runtime.distributed import World
from brics_cli.training.images import Batch
from brics_cli.training.step import put_batch, read_batch


@pytest.mark.parametrize(
    ("flip", "turn", "num_views"), [("false", "false", 1), ("true", "false", 2), ("true", "true", 8)]
)
def test_images_are_mirrored_and_turned_as_the_recipe_says(flip: str, turn: str, num_views: int) -> None:
    asked = ["model.image_size=8", f"data.flip={flip}", f"data.turn={turn}"]
    recipe = load_recipe("brics-mini", kind="autoencoder", overrides=asked)
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    world = World(device=torch.device("cpu"))
    read = read_batch(Batch(range(200), np.stack([image] * 200)), recipe, step=0, world=world)
    images, _ = put_batch(read, recipe, step=0, world=world)
    found = {view.tobytes() for view in to_uint8(images)}
    turned = [np.rot90(side, number) for side in (image, image[:, ::-1]) for number in range(4)]
    assert len(found) == num_views and found <= {view.tobytes() for view in turned}
