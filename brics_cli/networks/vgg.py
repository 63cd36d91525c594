"""VGG16's 4096 features of its second fully connected layer, in two versions that are not the same network.

`nvidia-vgg16`: NVIDIA's TorchScript file, the original Caffe weights, as StyleGAN's precision and recall use it; it
resizes by itself. `vgg16-fc2`: torchvision's weights, as torch-fidelity's `vgg16-fc2-relu` (Simonyan and Zisserman,
arXiv 1409.1556).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.errors import ArtefactError, first_line
from brics_cli.networks.features import IMAGENET, FeatureNetwork, normalised, quiet_jit, read_state

SIDE = 224
# torchvision's numbers of the convolutions, each followed by a ReLU, and of those followed by a pooling as well.
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BEFORE_POOLINGS = (2, 7, 14, 21, 28)


class NvidiaVgg16(FeatureNetwork):
    """Features (B, 4096) of NVIDIA's file, which takes pixels of 0-255 at any size."""

    name = "nvidia-vgg16"
    num_features = 4096
    resize = "the network's own to 224x224"

    def __init__(self, network: torch.jit.ScriptModule, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network(batch, return_features=True)  # (B, 4096)
        return features


class TorchvisionVgg16(FeatureNetwork):
    """Features (B, 4096) after the ReLU of fc2."""

    name = "vgg16-fc2-relu"
    num_features = 4096
    resize = "TensorFlow 1's bilinear without antialias to 224x224, not rounded"

    def __init__(self, state: dict[str, Tensor], device: torch.device | str) -> None:
        """`state`: the weights under torchvision's names."""
        super().__init__(device)
        self.state = {
            name: value.to(self.device, memory_format=torch.channels_last if value.ndim == 4 else torch.preserve_format)
            for name, value in state.items()
        }

    def forward(self, batch: Tensor) -> Tensor:
        x = normalised(tensorflow_bilinear(batch, SIDE), *IMAGENET)  # (B, 3, 224, 224)
        for number in _CONVOLUTIONS:
            x = F.relu(F.conv2d(x, *self._layer(f"features.{number}"), padding=1))
            if number in _BEFORE_POOLINGS:
                x = F.max_pool2d(x, 2)
        x = F.adaptive_avg_pool2d(x, 7).flatten(1)  # (B, 512 * 7 * 7)
        for number in (0, 3):
            x = F.relu(F.linear(x, *self._layer(f"classifier.{number}")))  # (B, 4096)
        return x

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]


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
        raise ArtefactError(f"{path} is not NVIDIA's VGG16 ({first_line(error)})") from None
    if shape != (1, vgg.num_features):
        raise ArtefactError(f"{path} is not NVIDIA's VGG16 (its features are {tuple(shape)})")
    return vgg


def load_vgg16(path: Path, *, device: torch.device | str = "cpu") -> TorchvisionVgg16:
    """The network in torchvision's state dict `path`. Raises ArtefactError when it is not VGG16's."""
    state = read_state(path, what="torchvision's VGG16")
    layers = [f"features.{number}" for number in _CONVOLUTIONS] + ["classifier.0", "classifier.3"]
    try:
        kept = {f"{layer}.{part}": state[f"{layer}.{part}"] for layer in layers for part in ("weight", "bias")}
    except KeyError as error:
        raise ArtefactError(f"{path} is not torchvision's VGG16 (it has no {error})") from None
    num_features = len(kept["classifier.3.bias"])
    if num_features != TorchvisionVgg16.num_features:
        raise ArtefactError(f"{path} is not torchvision's VGG16 (its fc2 has {num_features} features)")
    return TorchvisionVgg16(kept, device)
