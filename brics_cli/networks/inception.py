"""Inception-v3 of 2015 as FID uses it (Heusel et al., arXiv 1706.08500), through clean-fid's resizers and networks.

Modes `clean` and `legacy-tensorflow` take NVIDIA's TorchScript file. The resize of `clean` is Parmar et al., arXiv
2104.11222: per channel, Pillow bicubic in float32 to 299 x 299, clipped to 0-255, not rounded; in `legacy-tensorflow`
the network resizes by itself, bilinear without antialias, as TensorFlow 1 did. Mode `legacy-pytorch` takes
pytorch-fid's weights in clean-fid's patched torchvision network; its resize is torch's bilinear without antialias,
pixels go in as 2x / 255 - 1, and features differ a little from those of the TorchScript file. Features are the 2048 of
the last pooling.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torchvision
from cleanfid import inception_pytorch as patches
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from torch import Tensor, nn

from brics_cli.errors import ArtefactError, first_line
from brics_cli.networks.features import FeatureNetwork, quiet_jit, read_state
from brics_cli.runtime.precision import float32_products

# clean-fid's wrapper opens a file of this name in the directory it is given.
INCEPTION_FILE = "inception-2015-12-05.pt"
NUM_CLASSES = 1008


# Which blocks of torchvision's network the FID network has in another form, and their arguments.
_PATCHED = {
    "Mixed_5b": (patches.FIDInceptionA, {"in_channels": 192, "pool_features": 32}),
    "Mixed_5c": (patches.FIDInceptionA, {"in_channels": 256, "pool_features": 64}),
    "Mixed_5d": (patches.FIDInceptionA, {"in_channels": 288, "pool_features": 64}),
    "Mixed_6b": (patches.FIDInceptionC, {"in_channels": 768, "channels_7x7": 128}),
    "Mixed_6c": (patches.FIDInceptionC, {"in_channels": 768, "channels_7x7": 160}),
    "Mixed_6d": (patches.FIDInceptionC, {"in_channels": 768, "channels_7x7": 160}),
    "Mixed_6e": (patches.FIDInceptionC, {"in_channels": 768, "channels_7x7": 192}),
    "Mixed_7b": (patches.FIDInceptionE_1, {"in_channels": 1280}),
    "Mixed_7c": (patches.FIDInceptionE_2, {"in_channels": 2048}),
}


class Inception(FeatureNetwork):
    """What the modes share: 2048 features, and class scores of them."""

    num_features = 2048
    output: Tensor
    """Weights (1008, 2048) of the layer after the features."""

    def class_scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 2048) -> scores (B, 1008) before the softmax, without the output's bias, as the Inception Score wants."""
        with torch.inference_mode(), float32_products("fp32"):
            rows = torch.from_numpy(features).to(self.device)
            scores: NDArray[np.float32] = (rows @ self.output.float().T).cpu().numpy()
        return scores


class InceptionFeatures(Inception):
    """Pool features (B, 2048), equal to clean-fid's mode `clean`, or with `resize_inside` `legacy_tensorflow`."""

    name = "inception-2015-12-05"

    def __init__(self, network: InceptionV3W, device: torch.device | str, *, resize_inside: bool) -> None:
        super().__init__(device)
        self.network = network.to(self.device).eval()
        self.output = network.base.output.weight
        if resize_inside:
            self.resize = "legacy_tensorflow: the network's own, bilinear without antialias to 299x299"
            self._resize = None
        else:
            self.resize = "clean: Pillow bicubic per channel in float32 to 299x299, clipped, not rounded"
            self._resize = build_resizer("clean")

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.generic]:
        return image if self._resize is None else self._resize(image)  # (299, 299, 3)

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(batch)  # (B, 2048)
        return features


class LegacyPytorchInception(Inception):
    """Pool features (B, 2048), equal to clean-fid's mode `legacy_pytorch`."""

    name = "pt_inception-2015-12-05"
    resize = "legacy_pytorch: torch bilinear without antialias to 299x299, not rounded"

    def __init__(self, network: nn.Module, output: Tensor, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.output = output.to(self.device)
        self._resize = build_resizer("legacy_pytorch")

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        resized: NDArray[np.float32] = self._resize(image)  # (299, 299, 3)
        return resized

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(2 * (batch / 255) - 1)  # (B, 2048)
        return features


def load_inception(path: Path, *, device: torch.device | str = "cpu", resize_inside: bool = False) -> InceptionFeatures:
    """The network in the TorchScript file `path`; with `resize_inside` that of mode `legacy-tensorflow`.

    Raises ArtefactError when it is not that network.
    """
    if path.name != INCEPTION_FILE:
        raise ArtefactError(f"{path} is not named {INCEPTION_FILE}, which clean-fid's loader relies on")
    try:
        with quiet_jit():
            network = InceptionV3W(str(path.parent), download=False, resize_inside=resize_inside)
        classes = tuple(network.base.output.weight.shape)
    except (RuntimeError, AttributeError, ValueError) as error:
        raise ArtefactError(f"{path} is not the Inception network ({first_line(error)})") from None
    if classes != (NUM_CLASSES, InceptionFeatures.num_features):
        raise ArtefactError(f"{path} is not the Inception network (its output is {classes})")
    return InceptionFeatures(network, device, resize_inside=resize_inside)


def fid_inception(*, init_weights: bool) -> torchvision.models.Inception3:
    """The FID network (B, 3, 299, 299) -> (B, 1008), without weights or with random ones."""
    network = torchvision.models.inception_v3(num_classes=NUM_CLASSES, aux_logits=False, init_weights=init_weights)
    for name, (block, arguments) in _PATCHED.items():
        setattr(network, name, block(**arguments))
    return network


def load_inception_pytorch(path: Path, *, device: torch.device | str = "cpu") -> LegacyPytorchInception:
    """The network whose state dict is in `path`. Raises ArtefactError when it is not that of pytorch-fid."""
    state = read_state(path, what="pytorch-fid's Inception")
    with torch.device("meta"):
        network = fid_inception(init_weights=False)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ArtefactError(f"{path} is not pytorch-fid's Inception ({' '.join(str(error).split())[:200]})") from None
    output = cast(Tensor, network.fc.weight).detach()
    network.fc = nn.Identity()
    return LegacyPytorchInception(network.requires_grad_(False), output, device)
