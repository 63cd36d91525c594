"""What all feature networks share: uint8 images in, one feature row per image out.

B batch, H x W the image's own size, S the network's input size, D features.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import MachineError


@contextmanager
def quiet_jit() -> Iterator[None]:
    """Without the warning that torch.jit is deprecated: these files are published in that format and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        yield


class FeatureNetwork(ABC):
    """A pretrained network with its own resize, on one device, in float32.

    `name`, `num_features` (D), `input_side` (S) and `resize` (in words, for the provenance) say what it is.
    """

    name: str
    num_features: int
    input_side: int
    resize: str

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.generic]:
        """One image (H, W, 3), RGB, 0-255, as the network's input (S, S, 3), 0-255. Runs in worker threads."""

    @abstractmethod
    def forward(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) float32, 0-255, on the device -> features (B, D)."""

    def features(
        self, images: Sequence[NDArray[np.uint8]], *, pool: ThreadPoolExecutor | None = None
    ) -> NDArray[np.float32]:
        """Features (B, D) of `images`, each (H, W, 3) of any size. Resizing runs in `pool`: Pillow lets threads run.

        Raises MachineError when a feature is not finite, which a sound image and sound weights never give.
        """
        prepared = list((pool.map if pool else map)(self.prepare, images))
        batch = torch.from_numpy(np.stack(prepared)).to(self.device)  # (B, S, S, 3)
        batch = batch.permute(0, 3, 1, 2).to(torch.float32).contiguous()  # (B, 3, S, S)
        with torch.inference_mode():
            features = self.forward(batch).float().cpu().numpy()  # (B, D)
        if not np.isfinite(features).all():
            raise MachineError(
                f"{self.name} gave features that are not finite", next="Check its weights: brics weights verify"
            )
        return features
