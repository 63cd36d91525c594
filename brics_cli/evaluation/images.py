"""Images from a collection or from a key-code store (decoded on the fly), read the same way.

Decoded pixels are rounded to uint8 exactly as a PNG would hold them, so that a store and the files that
`brics decode` writes from it have the same scores. B images, (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder, to_uint8
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.lineage import load_store_autoencoder
from brics_cli.config.names import Precision
from brics_cli.images import open_collection
from brics_cli.images.loader import CollectionStream, Image, ImageStream, in_batches
from brics_cli.runtime.precision import computing
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace
from brics_cli.workspace.naming import is_store
from brics_cli.workspace.places import reference


class StoreStream(ImageStream):
    """The reconstructions in a key-code store: codes through its autoencoder's decoder, rounded to uint8."""

    kind = "store"

    def __init__(
        self,
        store: KeyCodeStore,
        autoencoder: Autoencoder,
        *,
        device: torch.device,
        batch_size: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(batch_size=batch_size)
        self.store = store
        self.autoencoder = autoencoder
        self._loaded_by = autoencoder.reference
        self.device = device
        self.path = reference(store.path)
        self.precision = precision
        self.identity = store.sha256 if precision == "fp32" else f"{store.sha256}-{precision}"
        if autoencoder.weights_sha256 != store.autoencoder["sha256"]:  # another decoder of the same codes
            self.identity += f"-{autoencoder.weights_sha256}"
        self.keys = list(store.keys)

    def __getstate__(self) -> dict[str, Any]:
        """Without the network, which `on` loads again."""
        return {name: value for name, value in vars(self).items() if name != "autoencoder"}

    def on(self, device: torch.device, *, num_workers: int) -> Self:
        self.autoencoder, self.device = load_autoencoder(self._loaded_by, device=device), device
        return self

    def classes_of(self, positions: Sequence[int]) -> list[str | None]:
        """The classes of the images at `positions`, by name where they have one; None without a label."""
        names, labels = self.store.class_names, self.store.labels[list(positions)].tolist()
        return [None if label < 0 else names[label] if label < len(names) else str(label) for label in labels]

    def describe(self) -> str:
        return f"{len(self):,} images, key-code store, decoded to {self.store.image_size} px"

    def read(self, positions: Sequence[int] | None = None) -> Iterator[list[Image | None]]:
        order = range(len(self)) if positions is None else positions
        for batch in in_batches(order, self.batch_size):
            codes = torch.from_numpy(self.store.batch(batch)).to(self.device)  # (B, C, h, w)
            with torch.inference_mode(), computing(self.precision, self.device):
                images = to_uint8(self.autoencoder.decode(codes))  # (B, H, W, 3)
            yield list(images)


def open_images(
    path: str | Path,
    *,
    workspace: Workspace,
    transform: str | None = None,
    size: int | None = None,
    autoencoder: Path | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    num_workers: int | None = None,
    reporter: Reporter | None = None,
) -> ImageStream:
    """The images at `path`: a key-code store (`*.h5`) or any collection that `open_collection` reads.

    `transform` and `size` apply to a collection; a store already has both, and is decoded by `autoencoder` (None: the
    one it names) in `precision`. `reporter` hears what of a collection is not read. Raises UsageError and ArtefactError
    as `open_collection`, `KeyCodeStore` and `load_store_autoencoder` do.
    """
    if is_store(path):
        store = KeyCodeStore(Path(path))
        decoder = load_store_autoencoder(
            store, workspace=workspace, ae_path=autoencoder, reporter=reporter, device=device
        )
        return StoreStream(store, decoder, device=torch.device(device), batch_size=batch_size, precision=precision)
    return CollectionStream(
        open_collection(path, labels="none", reporter=reporter),
        transform=transform,
        size=size,
        batch_size=batch_size,
        num_workers=num_workers,
    )
