"""Inception-v3 of 2015 as FID uses it: NVIDIA's TorchScript file through clean-fid's resizer and wrapper.

Heusel et al., arXiv 1706.08500; the resize of mode `clean` is Parmar et al., arXiv 2104.11222: per channel, Pillow
bicubic in float32 to 299 x 299, clipped to 0-255, not rounded. In mode `legacy-tensorflow` the network resizes by
itself, bilinear without antialias, as TensorFlow 1 did. Features are the 2048 of the last pooling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import ArtefactError
from brics_cli.networks.features import FeatureNetwork, full_float32, quiet_jit

# clean-fid's wrapper opens a file of this name in the directory it is given.
INCEPTION_FILE = "inception-2015-12-05.pt"
NUM_CLASSES = 1008


class InceptionFeatures(FeatureNetwork):
    """Pool features (B, 2048), equal to clean-fid's mode `clean`."""

    name = "inception-2015-12-05"
    num_features = 2048
    resize = "clean: Pillow bicubic per channel in float32 to 299x299, clipped, not rounded"

    def __init__(self, network: InceptionV3W, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).eval()
        self._resize = build_resizer("clean")

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        resized: NDArray[np.float32] = self._resize(image)  # (299, 299, 3)
        return resized

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(batch)  # (B, 2048)
        return features

    def class_scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, 2048) -> scores (B, 1008) before the softmax, without the output's bias, as the Inception Score wants."""
        return scores_of(features, self.network.base.output.weight, device=self.device)


class LegacyTensorflowInception(InceptionFeatures):
    """Pool features (B, 2048), equal to clean-fid's mode `legacy_tensorflow`: the network resizes."""

    resize = "legacy_tensorflow: the network's own, bilinear without antialias to 299x299"

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:  # type: ignore[override]
        return image


def scores_of(features: NDArray[np.float32], weight: Tensor, *, device: torch.device) -> NDArray[np.float32]:
    """(B, 2048) times (1008, 2048) transposed -> (B, 1008)."""
    with torch.inference_mode(), full_float32():
        scores: NDArray[np.float32] = (torch.from_numpy(features).to(device) @ weight.float().T).cpu().numpy()
    return scores


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
        raise ArtefactError(f"{path} is not the Inception network ({str(error).splitlines()[0]})") from None
    if classes != (NUM_CLASSES, InceptionFeatures.num_features):
        raise ArtefactError(f"{path} is not the Inception network (its output is {classes})")
    return (LegacyTensorflowInception if resize_inside else InceptionFeatures)(network, device)
