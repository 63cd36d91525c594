"""LPIPS v0.1: the lpips package around a torchvision backbone read from a file (Zhang et al., arXiv 1801.03924).

The linear heads are inside the lpips wheel; the backbone's weights are torchvision's classification weights. As a
loss it is `load_lpips`, as features, and as the distance of pairs of uint8 images, `load_lpips_features`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lpips
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.networks.features import FeatureNetwork, Image, Prepared, read_state
from brics_cli.workspace import sha256_of_file

LpipsNet = Literal["alex", "vgg"]

# Below these sides a pooling layer of the backbone has nothing left to pool.
LPIPS_MIN_SIDE: dict[LpipsNet, int] = {"alex": 31, "vgg": 16}

OTHER_FEATURES = (
    "Make them the same size with brics pack, or look in features that resize: --neighbours-by inception-clean."
)

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


class LpipsFeatures(FeatureNetwork):
    """LPIPS as features: the squared distance of two rows is the LPIPS of the two images.

    LPIPS is a sum over layers of the mean over positions of w_c (a_c - b_c)², with a and b of unit length over
    channels and w >= 0: the rows are sqrt(w_c / positions) a_c. E features, which depends on the size of the images.
    """

    resize = "none: images in [-1, 1] as they are"

    def __init__(self, model: lpips.LPIPS, *, device: torch.device | str) -> None:
        super().__init__(device)
        self.model = model
        self._remembered: dict[bytes, NDArray[np.float32]] = {}
        self.name = f"lpips-{model.pnet_type}"
        self.num_features = 0

    def prepare(self, image: Image) -> Image:
        smallest = LPIPS_MIN_SIDE[self.model.pnet_type]
        if min(image.shape[:2]) < smallest:
            raise UsageError(
                f"LPIPS ({self.model.pnet_type}) needs images of at least {smallest} px, "
                f"these are {image.shape[1]} x {image.shape[0]}"
            )
        return image

    def of_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        if len({each.shape for each in prepared}) > 1:
            raise UsageError(
                "nearest neighbours: images of one side differ in size, and LPIPS compares pixel by pixel",
                next=OTHER_FEATURES,
            )
        if not self.num_remembered:
            return self._run(np.stack(list(prepared)))
        names = [hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in prepared]
        new = {name: each for name, each in zip(names, prepared, strict=True) if name not in self._remembered}
        if new:
            self._remembered.update(zip(new, self._run(np.stack(list(new.values()))), strict=True))
        rows = np.stack([self._remembered[name] for name in names])
        while len(self._remembered) > self.num_remembered:
            del self._remembered[next(iter(self._remembered))]
        return rows

    def distance(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
        """LPIPS (N,), at least 0, of pairs (N, H, W, 3); of rows that are remembered, else by the package's own sum.

        Raises UsageError for images that are too small for the backbone.
        """
        self.prepare(a[0])
        if self.num_remembered:
            of_a, of_b = self.features(list(a)), self.features(list(b))
            return np.asarray(np.square(of_a - of_b).sum(axis=1, dtype=np.float64))
        # LPIPS wants [-1, 1] and says nothing when it gets [0, 1].
        x, y = (torch.from_numpy(side).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1 for side in (a, b))
        with torch.inference_mode():
            return np.asarray(self.model(x, y).flatten().double().cpu().numpy())  # (N, 1, 1, 1) -> (N,)

    def forward(self, batch: Tensor) -> Tensor:
        layers = self.model.net(self.model.scaling_layer(batch / 127.5 - 1))
        parts = []
        for layer, head in zip(layers, self.model.lins, strict=True):
            weight = head.model[-1].weight.clamp(min=0)  # (1, C, 1, 1)
            positions = layer.shape[2] * layer.shape[3]
            parts.append((lpips.normalize_tensor(layer) * (weight / positions).sqrt()).flatten(1))
        return torch.cat(parts, dim=1)  # (B, E)


def load_lpips_features(path: Path, *, net: LpipsNet, device: torch.device | str = "cpu") -> LpipsFeatures:
    """LPIPS with the backbone of `net` in `path`, as `load_lpips` reads it."""
    return LpipsFeatures(load_lpips(path, net=net, device=device), device=device)


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
