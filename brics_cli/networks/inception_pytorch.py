"""pytorch-fid's Inception (mode `legacy-pytorch`): its weights in clean-fid's patched torchvision network.

The resize is torch's bilinear without antialias to 299 x 299; pixels go in as 2x / 255 - 1. Features are the 2048 of
the last pooling; they differ a little from those of the TorchScript file.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torchvision
from cleanfid import inception_pytorch as patches
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from torch import Tensor, nn

from brics_cli.errors import ArtefactError
from brics_cli.networks.features import FeatureNetwork
from brics_cli.networks.inception import NUM_CLASSES, scores_of
from brics_cli.networks.state import read_state

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


class LegacyPytorchInception(FeatureNetwork):
    """Pool features (B, 2048), equal to clean-fid's mode `legacy_pytorch`."""

    name = "pt_inception-2015-12-05"
    num_features = 2048
    resize = "legacy_pytorch: torch bilinear without antialias to 299x299, not rounded"

    def __init__(self, network: nn.Module, output: Tensor, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self._output = output.to(self.device)
        self._resize = build_resizer("legacy_pytorch")

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        resized: NDArray[np.float32] = self._resize(image)  # (299, 299, 3)
        return resized

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(2 * (batch / 255) - 1)  # (B, 2048)
        return features

    def class_scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 2048) -> scores (B, 1008) before the softmax, without the output's bias."""
        return scores_of(features, self._output, device=self.device)


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
