"""Stand-ins for pretrained weights: small files in the real formats, which go through the real loaders.

They say nothing about published figures; results from them are never comparable.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import open_clip
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from brics_cli.networks.inception import fid_inception

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


class _StandInVgg(nn.Module):
    """NVIDIA's VGG16 as its callers see it: pixels of 0-255 at any size, 4096 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 4096), nn.ReLU())

    def forward(
        self, img: Tensor, resize_images: bool = True, return_features: bool = False, return_lpips: bool = False
    ) -> Tensor:
        return self.layers((img - 128) / 128)


def save_nvidia_vgg16(directory: Path) -> Path:
    """A small network behind the signature of NVIDIA's TorchScript file."""
    path = directory / "vgg16.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.jit.script(_StandInVgg().eval()).save(str(path))
    return path


VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def save_vgg16(directory: Path, *, widths: tuple[int, ...] = (8,) * 13) -> Path:
    """torchvision's VGG16 of other widths: the names, and 4096 features; VGG16_WIDTHS are those LPIPS needs."""
    path = directory / "vgg16-397923af.pth"
    generator = torch.Generator().manual_seed(0)
    state, width = {}, 3
    for number, wide in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), widths, strict=True):
        state[f"features.{number}.weight"] = torch.randn(wide, width, 3, 3, generator=generator) / (4.5 * width) ** 0.5
        state[f"features.{number}.bias"] = torch.randn(wide, generator=generator) * 0.01
        width = wide
    for number, (rows, columns) in {0: (64, width * 49), 3: (4096, 64)}.items():
        state[f"classifier.{number}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        state[f"classifier.{number}.bias"] = torch.zeros(rows)
    torch.save(state, path)
    return path


def save_dinov2(directory: Path, *, width: int = 64, depth: int = 2) -> Path:
    """A narrow, shallow DINOv2 in Meta's format: its names, 37 x 37 positions, a mask token."""
    path = directory / "dinov2_vitl14_pretrain.pth"
    generator = torch.Generator().manual_seed(0)
    network = VisionTransformer(
        img_size=518,
        patch_size=14,
        embed_dim=width,
        depth=depth,
        num_heads=width // 64,
        init_values=1e-5,
        num_classes=0,
    )
    state = {
        name: torch.randn(value.shape, generator=generator) / max(value.shape[-1], 1) ** 0.5
        for name, value in network.state_dict().items()
    }
    state["mask_token"] = torch.zeros(1, width)
    torch.save(state, path)
    return path


def save_efficientnet(directory: Path) -> Path:
    """EfficientNet-Lite0 of random weights, its tensors named as efficientnet-lite-pytorch does."""
    stem = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    convolutions = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    layers = {**stem, **convolutions, "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}  # does not expand
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0")
    state, numbers = {}, dict[str, int]()
    for name, value in network.state_dict().items():
        *block, layer, tensor = name.split(".")
        inside = [f"_blocks.{numbers.setdefault('.'.join(block), len(numbers))}"] if block else []
        state[".".join([*inside, (first if block == ["blocks", "0", "0"] else layers)[layer], tensor])] = value
    path = directory / "efficientnet-lite0-57934424.pth"
    torch.save(state, path)
    return path


def save_alexnet(directory: Path) -> Path:
    """torchvision's AlexNet of random weights: only the convolutions, of their real size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torchvision.models.alexnet(weights=None).features
    return save_backbone(directory / "alexnet-owt-7be5be79.pth", features)


def save_inception_pytorch(directory: Path) -> Path:
    """pytorch-fid's Inception of random weights, of its real size: clean-fid's own class must take it."""
    path = directory / "pt_inception-2015-12-05-6726825d.pth"
    with torch.device("meta"):
        network = fid_inception(init_weights=False)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            state[name] = torch.zeros(value.shape, dtype=value.dtype)
        elif "running_var" in name or "bn.weight" in name:
            state[name] = torch.rand(value.shape, generator=generator) * 0.5 + 0.75
        else:
            fan_in = max(value[0].numel(), 1) if value.ndim else 1
            state[name] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    torch.save(state, path)
    return path
