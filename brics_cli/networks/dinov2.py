"""DINOv2 ViT-L/14's class token as FD-DINOv2 uses it (Oquab et al., arXiv 2304.07193; Stein et al., arXiv 2306.04675).

dgm-eval's numerics: Pillow bicubic to 224 x 224, rounded to uint8, ImageNet's mean and std, the class token after the
last norm. Meta's state dict goes into timm's network; its positions, made for 37 x 37 patches, are resized to 16 x 16
the way Meta's own code does (bicubic by the factor 16.1 / 37), not timm's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from brics_cli.errors import ArtefactError
from brics_cli.networks.features import IMAGENET, FeatureNetwork, bicubic, normalised, read_state

SIDE, PATCH = 224, 14
HEAD_FEATURES = 64


class DinoFeatures(FeatureNetwork):
    """The class token (B, 1024)."""

    name = "dinov2-vit-l-14"
    resize = "Pillow bicubic to 224x224, rounded to uint8"

    def __init__(self, network: VisionTransformer, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.to(self.device).eval()
        self.num_features = network.embed_dim

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return bicubic(image, SIDE)

    def forward(self, batch: Tensor) -> Tensor:
        tokens = self.network.forward_features(normalised(batch, *IMAGENET))  # (B, 1 + 16 * 16, D)
        return tokens[:, 0]


def load_dinov2(path: Path, *, device: torch.device | str = "cpu") -> DinoFeatures:
    """The network in Meta's state dict `path`; width and depth are read from it. Raises ArtefactError otherwise."""
    state = read_state(path, what="Meta's DINOv2 ViT-L/14")
    try:
        width = int(state["cls_token"].shape[-1])
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        state["pos_embed"] = _resized_positions(state["pos_embed"], SIDE // PATCH)
        state.pop("mask_token", None)  # of its training alone
        with torch.device("meta"):
            network = VisionTransformer(
                img_size=SIDE,
                patch_size=PATCH,
                embed_dim=width,
                depth=depth,
                num_heads=width // HEAD_FEATURES,
                init_values=1e-5,  # the layer scales, whose values are in the file
                num_classes=0,
            )
        network.load_state_dict(state, assign=True)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(f"{path} is not Meta's DINOv2 ViT-L/14 ({reason})") from None
    return DinoFeatures(network.requires_grad_(False), device)


def _resized_positions(positions: Tensor, side: int) -> Tensor:
    """(1, 1 + M², D) -> (1, 1 + side², D)."""
    old = round((positions.shape[1] - 1) ** 0.5)
    token, grid = positions[:, :1], positions[:, 1:]
    if old == side:
        return positions
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, M, M)
    factor = (side + 0.1) / old  # Meta's offset, against a size rounded down
    grid = F.interpolate(grid.float(), scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return torch.cat([token, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], dim=1)
