"""VGG16's 4096 features of its second fully connected layer, in two versions that are not the same network.

`nvidia-vgg16`: NVIDIA's TorchScript file, the original Caffe weights, as StyleGAN's precision and recall use it; it
resizes by itself. `vgg16-fc2`: torchvision's weights, as torch-fidelity's `vgg16-fc2-relu` (Simonyan and Zisserman,
arXiv 1409.1556).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from brics_cli.errors import ArtefactError
from brics_cli.networks.features import FeatureNetwork, quiet_jit
from brics_cli.networks.state import read_state

SIDE = 224
# torchvision's layer numbers: convolutions, each followed by a ReLU, and the poolings.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_POOLINGS = (4, 9, 16, 23, 30)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NvidiaVgg16(FeatureNetwork):
    """Features (B, 4096) of NVIDIA's file, which takes pixels of 0-255 at any size."""

    name = "nvidia-vgg16"
    num_features = 4096
    resize = "the network's own to 224x224"

    def __init__(self, network: torch.jit.ScriptModule, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(batch, return_features=True)  # (B, 4096)
        return features


class TorchvisionVgg16(FeatureNetwork):
    """Features (B, 4096) after the ReLU of fc2."""

    name = "vgg16-fc2-relu"
    num_features = 4096
    resize = "TensorFlow 1's bilinear without antialias to 224x224, not rounded"

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last).eval()
        self.mean = torch.tensor(_MEAN, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(_STD, device=self.device).view(1, 3, 1, 1)

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image

    def forward(self, batch: Tensor) -> Tensor:
        resized = tensorflow_bilinear(batch, SIDE)  # (B, 3, 224, 224)
        features: Tensor = self.network((resized / 255 - self.mean) / self.std)  # (B, 4096)
        return features


def tensorflow_bilinear(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, side, side): corner at corner, pixel i of the result read at i * H / side of the image.

    TensorFlow 1's resize_bilinear(align_corners=False): half a pixel off all others, no antialias.
    """

    def along(extent: int) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(side, device=images.device, dtype=torch.float32) * (extent / side)
        low = at.floor().long().clamp(max=extent - 1)
        return low, (low + 1).clamp(max=extent - 1), at - low

    top, bottom, down = along(images.shape[2])
    left, right, across = along(images.shape[3])
    rows = torch.lerp(images[:, :, top], images[:, :, bottom], down[:, None])  # (B, 3, side, W)
    return torch.lerp(rows[..., left], rows[..., right], across)  # (B, 3, side, side)


def load_nvidia_vgg16(path: Path, *, device: torch.device | str = "cpu") -> NvidiaVgg16:
    """The network in NVIDIA's TorchScript file `path`. Raises ArtefactError when it gives no 4096 features."""
    try:
        with quiet_jit():
            network = torch.jit.load(path, map_location=torch.device(device)).eval()
        vgg = NvidiaVgg16(network, device)
        with torch.inference_mode():
            shape = vgg.forward(torch.zeros(1, 3, 64, 64, device=vgg.device)).shape
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} is not NVIDIA's VGG16 ({str(error).splitlines()[0]})") from None
    if shape != (1, vgg.num_features):
        raise ArtefactError(f"{path} is not NVIDIA's VGG16 (its features are {tuple(shape)})")
    return vgg


def load_vgg16(path: Path, *, device: torch.device | str = "cpu") -> TorchvisionVgg16:
    """The network in torchvision's state dict `path`. Raises ArtefactError when it is not VGG16's."""
    state = read_state(path, what="torchvision's VGG16")
    layers: list[nn.Module] = []
    try:
        for number in range(_POOLINGS[-1] + 1):
            if number in _CONVOLUTIONS:
                layers.append(_Convolution(state[f"features.{number}.weight"], state[f"features.{number}.bias"]))
            else:
                layers.append(nn.MaxPool2d(2) if number in _POOLINGS else nn.ReLU())
        layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
        for number in (0, 3):
            weight, bias = state[f"classifier.{number}.weight"], state[f"classifier.{number}.bias"]
            layers += [_Linear(weight, bias), nn.ReLU()]
    except KeyError as error:
        raise ArtefactError(f"{path} is not torchvision's VGG16 (it has no {error})") from None
    if weight.shape[0] != TorchvisionVgg16.num_features:
        raise ArtefactError(f"{path} is not torchvision's VGG16 (its fc2 has {weight.shape[0]} features)")
    return TorchvisionVgg16(nn.Sequential(*layers).requires_grad_(False), device)


class _Convolution(nn.Module):
    """3 x 3, padding 1, with the weights of the file."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class _Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
