"""One place that turns the name of a feature network and its verified file into the network."""

from __future__ import annotations

from pathlib import Path

import torch

from brics_cli.networks.features import FeatureNetwork


def load_network(key: str, path: Path, *, sha256: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network `key` (a key of the metrics' table NETWORK_WEIGHTS, LPIPS apart) from `path`, of `sha256`.

    Raises ArtefactError when the file is something else.
    """
    network = _load(key, path, torch.device(device))
    network.key, network.weights_sha256 = key, sha256
    return network


def _load(key: str, path: Path, device: torch.device) -> FeatureNetwork:
    if key in {"inception-clean", "inception-legacy-tensorflow"}:
        from brics_cli.networks.inception import load_inception

        return load_inception(path, device=device, resize_inside=key == "inception-legacy-tensorflow")
    if key == "inception-legacy-pytorch":
        from brics_cli.networks.inception_pytorch import load_inception_pytorch

        return load_inception_pytorch(path, device=device)
    if key == "clip":
        from brics_cli.networks.clip import load_clip

        return load_clip(path, device=device)
    if key == "dinov2":
        from brics_cli.networks.dinov2 import load_dinov2

        return load_dinov2(path, device=device)
    if key == "nvidia-vgg16":
        from brics_cli.networks.vgg import load_nvidia_vgg16

        return load_nvidia_vgg16(path, device=device)
    if key == "vgg16-fc2":
        from brics_cli.networks.vgg import load_vgg16

        return load_vgg16(path, device=device)
    raise ValueError(f"no feature network {key!r}")
