"""What all feature networks share: uint8 images in, one feature row per image out; and loading them by name.

B batch, H x W the image's own size, S the network's input size, D features.
"""

from __future__ import annotations

import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from brics_cli.errors import ArtefactError, MachineError, first_line, machine_error
from brics_cli.networks.registry import NETWORKS
from brics_cli.runtime.precision import float32_products

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of its channels, in 0-1."""

Image = NDArray[np.uint8]
Prepared = NDArray[np.generic]


def load_network(
    key: str, path: Path | None, *, sha256: str | None = None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The network `key` of the registry's NETWORKS, loaded from the file `path`, of `sha256` (None: it needs none).

    Raises ArtefactError when the file is something else.
    """
    entry = NETWORKS[key]
    load = resolve_name(f"brics_cli.networks.{entry.loader}")
    network: FeatureNetwork = load(path, device=torch.device(device), **entry.arguments)
    network.key, network.weights_sha256 = key, sha256 or network.weights_sha256
    return network


def read_state(path: Path, *, what: str) -> dict[str, Tensor]:
    """The tensors in `path`, by name, on the CPU: nothing is unpickled. Raises ArtefactError, naming `what` it should
    be."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        if (said := machine_error(error, where=path)) is not None:
            raise said from None
        raise ArtefactError(f"{path} is not {what} ({first_line(error)})") from None
    if not isinstance(state, dict):
        raise ArtefactError(f"{path} is not {what} (it holds a {type(state).__name__})")
    return state


def normalised(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (B, 3, H, W) of 0-255 -> those of 0-1, less the mean of each channel, over its deviation."""
    return (batch / 255 - batch.new_tensor(mean)[:, None, None]) / batch.new_tensor(std)[:, None, None]


@contextmanager
def quiet_jit() -> Iterator[None]:
    """Without the warning that torch.jit is deprecated: these files are published in that format and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        yield


def bicubic(image: Image, side: int) -> Image:
    """(H, W, 3) -> (side, side, 3) by Pillow, rounded to uint8."""
    return np.array(PillowImage.fromarray(image).resize((side, side), PillowImage.Resampling.BICUBIC))


class FeatureNetwork(ABC):
    """A pretrained network with its own resize, on one device, in float32.

    `name`, `num_features` (D) and `resize` (in words, for the provenance) say what it is; so do `weights_sha256` and
    `key`, which `load_network` fills in.
    """

    name: str
    num_features: int
    resize: str
    key: str = ""
    weights_sha256: str = ""
    num_remembered: int = 0
    """Rows that are kept for images which come again at once; only some networks keep any."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def prepare(self, image: Image) -> Prepared:
        """One image (H, W, 3), RGB, 0-255, as the network's input (S, S, 3), 0-255; as it is, for networks that resize
        themselves. Runs in worker threads."""
        return image

    @abstractmethod
    def forward(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) float32, 0-255, channels last, on the device -> features (B, D)."""

    def features(self, images: Sequence[Image], *, pool: ThreadPoolExecutor | None = None) -> NDArray[np.float32]:
        """Features (B, D) of `images`, each (H, W, 3) of any size. Resizing runs in `pool`: Pillow lets threads run.

        Raises MachineError when a feature is not finite, which a sound image and sound weights never give.
        """
        features = self.of_prepared(list((pool.map if pool else map)(self.prepare, images)))
        if not np.isfinite(features).all():
            raise MachineError(
                f"{self.name} gave features that are not finite", next="Check its weights: brics weights verify"
            )
        return features

    def submit(self, images: Sequence[Image], pool: ThreadPoolExecutor) -> list[Future[Prepared]]:
        """Start resizing `images` in `pool`; `of_prepared` takes the results."""
        return [pool.submit(self.prepare, image) for image in images]

    def of_prepared(self, prepared: Sequence[Prepared]) -> NDArray[np.float32]:
        """Features (B, D) of inputs that `prepare` made; inputs of different sizes (legacy modes) run size by size."""
        features = np.empty((len(prepared), self.num_features), np.float32)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, each in enumerate(prepared):
            by_shape.setdefault(each.shape, []).append(index)
        for indices in by_shape.values():
            features[indices] = self._run(np.stack([prepared[index] for index in indices]))
        return features

    def _run(self, inputs: Prepared) -> NDArray[np.float32]:
        """(B, S, S, 3) -> (B, D). TensorFloat-32 would cost three digits that published figures have."""
        batch = torch.from_numpy(inputs).to(self.device)
        # Rows of pixels with their channels together are what channels-last convolutions read: no copy is made.
        batch = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)  # (B, 3, S, S)
        with torch.inference_mode(), float32_products("fp32"):
            features: NDArray[np.float32] = self.forward(batch).float().cpu().numpy()  # (B, D)
        return features
