"""The networks of `brics bench eval`: the published files where they are there, else the same architectures with random
weights."""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from brics_cli.networks.clip import ClipFeatures, load_clip
from brics_cli.networks.features import FeatureNetwork, quiet_jit
from brics_cli.networks.inception import INCEPTION_FILE, NUM_CLASSES, fid_inception, load_inception
from brics_cli.networks.weights import find


@dataclass(frozen=True)
class Networks:
    """Inception, the file it was loaded from, and CLIP."""

    inception: FeatureNetwork
    clip: FeatureNetwork
    inception_file: Path


class _Inception(nn.Module):
    """The signature of NVIDIA's file around `layers`."""

    def __init__(self, layers: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, NUM_CLASSES)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        features: Tensor = self.layers((img - 128) / 128)
        if return_features:
            return features
        logits: Tensor = self.output(features)
        return logits


def standin_networks(directory: Path, *, device: torch.device) -> Networks:
    """The networks on `device`; what has to be written goes to `directory`."""
    with torch.random.fork_rng(), warnings.catch_warnings(), quiet_jit():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = fid_inception(init_weights=True).eval()
        published = find("inception")
        file = directory / INCEPTION_FILE
        if published is not None:
            shutil.copy(published.path, file)
        else:
            model.fc = nn.Identity()
            layers = torch.jit.trace(model, torch.zeros(2, 3, 299, 299), check_trace=False)
            torch.jit.script(_Inception(layers)).save(str(file))
        inception = load_inception(file, device=device)
        inception.key = "inception-clean"
        found = find("clip-vit-b-32")
        if found is not None:
            clip = load_clip(found.path, device=device)
        else:
            logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of the random weights that are wanted
            network = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, precision="fp32", device=device)
            network.visual.image_mean, network.visual.image_std = (
                open_clip.OPENAI_DATASET_MEAN,
                open_clip.OPENAI_DATASET_STD,
            )
            clip = ClipFeatures(network, device)
        clip.key = "clip"
    return Networks(inception, clip, file)
