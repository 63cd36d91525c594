"""CLIP ViT-B/32's image tower as CLIP-FID uses it, from OpenAI's own JIT archive through open_clip, in float32.

Kynkäänniemi et al., arXiv 2203.06026, in clean-fid's manner: Pillow bicubic to 224 on the short side, rounded to
uint8, centre crop, CLIP's mean and std, `encode_image`, 512 features, not normalised. open_clip builds the model
with OpenAI's QuickGELU from such a file; its plain `ViT-B-32` would be 0.8% off without a word.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from brics_cli.errors import ArtefactError, first_line
from brics_cli.networks.features import FeatureNetwork, normalised, quiet_jit


class ClipFeatures(FeatureNetwork):
    """Image embeddings (B, 512), equal to clean-fid's `clip_vit_b_32` in float32."""

    name = "clip-vit-b-32"
    num_features = 512
    input_side = 224
    resize = "Pillow bicubic to 224 on the short side, rounded to uint8, centre crop 224x224"

    def __init__(self, network: CLIP, device: torch.device | str) -> None:
        super().__init__(device)
        self.network = network.eval()
        visual: Any = network.visual
        self.channels = visual.image_mean, visual.image_std
        self._crop = Compose([Resize(self.input_side, InterpolationMode.BICUBIC), CenterCrop(self.input_side)])

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.array(self._crop(Image.fromarray(image)))  # (224, 224, 3)

    def forward(self, batch: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(normalised(batch, *self.channels))  # (B, 512)
        return features


def load_clip(path: Path, *, device: torch.device | str = "cpu") -> ClipFeatures:
    """The network in OpenAI's file `path`. Raises ArtefactError when it is not a CLIP model of that format."""
    try:
        # A path with a directory in it is never taken for one of open_clip's model names, which would download.
        with quiet_jit():
            network = open_clip.load_openai_model(str(path.resolve()), precision="fp32", device=device)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        LookupError,
        AttributeError,
        TypeError,
        EOFError,
        ValueError,
    ) as error:
        raise ArtefactError(f"{path} is not OpenAI's ViT-B-32.pt ({first_line(error)})") from None
    clip = ClipFeatures(network, device)
    size = network.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    if side != clip.input_side:
        raise ArtefactError(f"{path} is a CLIP model for {side} px, not ViT-B/32")
    return clip
