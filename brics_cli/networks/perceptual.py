"""LPIPS v0.1: the lpips package around a torchvision backbone read from a file (Zhang et al., arXiv 1801.03924).

The linear heads are inside the lpips wheel; the backbone's weights are torchvision's classification weights.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import lpips
import torch
from torch import Tensor

from brics_cli.errors import ArtefactError
from brics_cli.networks.state import read_state
from brics_cli.workspace import sha256_of_file

LpipsNet = Literal["alex", "vgg"]

# Below these sides a pooling layer of the backbone has nothing left to pool.
LPIPS_MIN_SIDE: dict[LpipsNet, int] = {"alex": 31, "vgg": 16}

HEADS_SHA256: dict[LpipsNet, str] = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


def load_lpips(path: Path, *, net: LpipsNet, device: torch.device | str = "cpu") -> lpips.LPIPS:
    """The distance `model(a, b) -> (B, 1, 1, 1)` of images (B, 3, H, W) in [-1, 1], with the backbone in `path`.

    Frozen and in eval mode; gradients reach the images. No random number is drawn. Raises ArtefactError when `path`
    is not the backbone of `net` or when the heads in the installed lpips are not those of v0.1.
    """
    # On the meta device nothing is initialised, so building 138 M parameters costs nothing and draws nothing.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision with an argument it has renamed
        model = lpips.LPIPS(net=net, version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    backbone = read_state(path, what=f"the {net} backbone of torchvision")
    heads = read_state(_heads_path(net), what="a file of LPIPS heads")
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("net."):  # net.slice3.6.weight is torchvision's features.6.weight
            source = "features." + name.split(".", 2)[2]
            if source not in backbone or backbone[source].shape != value.shape:
                raise ArtefactError(f"{path} is not the {net} backbone of torchvision: {source} does not fit")
            state[name] = backbone[source]
        elif name.startswith("lin"):  # lins.2.model.1.weight is another name of lin2.model.1.weight
            state[name] = heads[name.replace("lins.", "lin", 1)]
        else:
            state[name] = value
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval().to(device)


class VggFeatureDistance:
    """L1 between the features of VGG16: the perceptual loss of arXiv 2305.18601, which names the network and no layers.

    Ours are LPIPS' five (the last ReLU of each stage), averaged with equal weight; `model` is `load_lpips(net="vgg")`.
    """

    def __init__(self, model: lpips.LPIPS) -> None:
        self.model = model

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> a scalar."""
        stages = zip(*(self.model.net(self.model.scaling_layer(images)) for images in (a, b)), strict=True)
        return torch.stack([(x - y).abs().mean() for x, y in stages]).mean()


def _heads_path(net: LpipsNet) -> Path:
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    if sha256_of_file(path) != HEADS_SHA256[net]:
        raise ArtefactError(
            f"{path} does not hold the published LPIPS v0.1 heads", next="Reinstall it: pip install lpips==0.1.4"
        )
    return path
