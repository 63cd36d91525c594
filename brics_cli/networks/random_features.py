"""Features of a convolutional network with fixed random weights: no file is needed, on any machine the same network.

Random embeddings tell distributions of images apart where pretrained ones fit badly (Naeem et al., arXiv 2002.09797,
section 4, with random VGG16). This one is a pyramid of strided convolutions made for speed: 17 MFLOP per image. Its
Fréchet distance follows a training run; it is comparable with nothing else. B images, S = 128, K filters per level.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.networks.features import FeatureNetwork, bicubic

SIDE = 128
KEY = 2002_09797
"""Of the weights."""
NUM_FILTERS = 16
KERNELS = (5, 3, 3, 3)
"""Side of each level's filters. Every level halves the image, and sees it beside what the level before made of it."""
GAIN = 2.0
"""Brings the filters' mean responses on photographs to the order of the pixels."""
FLOOR = 0.01
"""Responses below one grey level count as none."""
LAYOUT = 4
"""Side of the thumbnail whose colours are features too."""


class RandomConvolutions(FeatureNetwork):
    """Features (B, 112): the log of each filter's mean response, and the colours of a 4 x 4 thumbnail."""

    name = key = "random-conv"
    num_features = len(KERNELS) * NUM_FILTERS + 3 * LAYOUT**2
    resize = f"Pillow bicubic to {SIDE}x{SIDE}"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        self.filters = []
        # The raw words of a Philox generator are the same for every version of numpy; its distributions need not be.
        generator, digest = np.random.Philox(key=KEY), hashlib.sha256()
        for level, side in enumerate(KERNELS):
            shape = (NUM_FILTERS, 3 + (NUM_FILTERS if level else 0), side, side)
            words = generator.random_raw(int(np.prod(shape)))
            digest.update(words.astype("<u8").tobytes())
            drawn = (words >> np.uint64(11)).astype(np.float64).reshape(shape)
            drawn -= drawn.mean(axis=(2, 3), keepdims=True)  # a plain surface gives no response
            drawn /= np.linalg.norm(drawn.reshape(NUM_FILTERS, -1), axis=1)[:, None, None, None]
            self.filters.append(torch.from_numpy(drawn.astype(np.float32)).to(self.device))
        self.weights_sha256 = digest.hexdigest()

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[:2] == (SIDE, SIDE):
            return image
        return bicubic(image, SIDE)

    def forward(self, batch: Tensor) -> Tensor:
        image = seen = batch.float() / 127.5 - 1  # (B, 3, S, S)
        features = []
        for filters in self.filters:
            pad = filters.shape[-1] // 2
            response = F.conv2d(F.pad(seen, (pad,) * 4, mode="reflect"), filters, stride=2).abs() * GAIN
            features.append((FLOOR + response.mean(dim=(2, 3))).log())  # (B, K)
            image = F.avg_pool2d(image, 2)
            seen = torch.cat([image, response], dim=1)  # (B, 3 + K, half, half)
        layout = F.adaptive_avg_pool2d(image, LAYOUT).flatten(1)  # (B, 48)
        return torch.cat([*features, layout], dim=1)


def load_random(path: None, *, device: torch.device | str = "cpu") -> RandomConvolutions:
    """The network, for `load_network`: there is no file."""
    return RandomConvolutions(device)
