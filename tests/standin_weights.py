"""Stand-ins for pretrained weights: small files in the real formats, which go through the real loaders.

They say nothing about published figures; results from them are never comparable.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

INCEPTION_FILE = "inception-2015-12-05.pt"
CLIP_FILE = "ViT-B-32.pt"


class StandInInception(nn.Module):
    """NVIDIA's file as clean-fid sees it: `.layers` ending in 2048 features, `.output`, this `forward`."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, 1008)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        features = self.layers((img - 128) / 128).flatten(1)
        if return_features:
            return features
        return self.output(features)


def save_colour_inception(directory: Path) -> Path:
    """Features are the mean colour turned by orthonormal columns: FID is then the 3-D distance of the colours."""
    turn = torch.linalg.qr(torch.randn(2048, 3, generator=torch.Generator().manual_seed(0))).Q
    conv = nn.Conv2d(3, 2048, 1, bias=False)
    conv.weight = nn.Parameter(turn[:, :, None, None])
    return _script(nn.Sequential(nn.AdaptiveAvgPool2d(1), conv), directory)


def save_random_inception(directory: Path) -> Path:
    """A small random network whose 2048 features differ between images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 32, 13, stride=13), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 2048)
        )
    return _script(layers, directory)


def save_clip(directory: Path, *, image_size: int = 224) -> Path:
    """A CLIP of one narrow layer in OpenAI's format: a JIT archive of half-precision weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.model.CLIP(
            embed_dim=512,
            vision_cfg=open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=32, image_size=image_size),
            text_cfg=open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=64, heads=1, layers=1),
            quick_gelu=True,
        ).eval()
        mask = model.attn_mask
        del model.attn_mask
        model.attn_mask = mask  # OpenAI's archive has it as a constant, not in its state dict
        pixels = torch.zeros(1, 3, image_size, image_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            archive = torch.jit.trace_module(
                model, {"forward": (pixels, torch.zeros(1, 8, dtype=torch.long))}, check_trace=False
            )
    path = directory / CLIP_FILE
    archive.half().save(str(path))
    return path


def save_backbone(path: Path, features: nn.Module) -> Path:
    """The state dict of a torchvision classifier: its `features`, and a classifier that LPIPS has no use for."""
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


def _script(layers: nn.Module, directory: Path) -> Path:
    path = directory / INCEPTION_FILE
    torch.jit.script(StandInInception(layers).eval()).save(str(path))
    return path
