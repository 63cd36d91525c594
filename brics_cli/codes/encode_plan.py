"""What `brics encode-dataset` will do, fixed before any image is decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.codes import Quantisation, StoreHeader, StoreShard
from brics_cli.config.names import DEFAULT_QUANTISATIONS
from brics_cli.errors import UsageError
from brics_cli.images import TRANSFORM_VERSIONS, Collection, open_collection
from brics_cli.images.collection import Labels
from brics_cli.images.selection import every_nth_shard, select_keys
from brics_cli.runtime.precision import default_precision
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace.naming import STORE, form_of_output


@dataclass(frozen=True)
class EncodePlan:
    """What would be encoded, with what, and where to: of the `whole` collection what is in `collection`.

    `source_bytes_per_image` is the whole's, on disk.
    """

    whole: Collection
    collection: Collection
    autoencoder: Autoencoder
    header: StoreHeader
    shards: list[StoreShard]
    out: Path
    transform: str
    devices: list[torch.device]
    source_bytes_per_image: float

    @property
    def store_bytes(self) -> int:
        """Of the codes; the merge needs it twice."""
        return self.header.bytes_per_image * self.header.num_images

    @property
    def ratio_to_pixels(self) -> float:
        """Bytes of an image's pixels over bytes of its codes."""
        return 3 * self.header.image_size**2 / self.header.bytes_per_image

    @property
    def ratio_to_source(self) -> float:
        """Bytes of an image in the collection over bytes of its codes."""
        return self.source_bytes_per_image / self.header.bytes_per_image


def plan_encoding(
    data: str,
    autoencoder: Autoencoder,
    *,
    out: Path,
    device: torch.device | list[torch.device],
    quantisation: Quantisation | None = None,
    precision: str | None = None,
    transform: str | None = None,
    flips: bool = False,
    limit: int | None = None,
    keys: list[str] | None = None,
    part: tuple[int, int] | None = None,
    subset: str | None = None,
    labels: Labels | None = None,
    image_field: str | None = None,
    reporter: Reporter | None = None,
) -> EncodePlan:
    """Look at the collection and fix every setting; `reporter` hears what of it is not read.

    `quantisation` None is uint8 for bounded codes, float16 for continuous ones; `precision` None is bf16 on CUDA,
    fp32 elsewhere; `transform` None is the one the autoencoder was trained with. Of the collection (its `subset`, the
    images `image_field`, with the classes that `labels` names, see `open_collection`) the images of `keys` are taken,
    of these the first `limit`, and of those part i of n: (i, n).
    Raises UsageError and ArtefactError as `open_collection`; UsageError for keys that are not there, and for
    continuous codes in a type that holds [0, 1].
    """
    form_of_output(out, STORE)
    kind = autoencoder.config.code_kind
    quantisation = quantisation or DEFAULT_QUANTISATIONS[kind]
    if kind == "continuous" and quantisation != "float16":
        raise UsageError(
            f"--quantisation {quantisation} holds codes in [0, 1], and those of {autoencoder.path} are not bounded",
            next="Use --quantisation float16.",
        )
    devices = device if isinstance(device, list) else [device]
    whole = open_collection(data, subset=subset, labels=labels, image_field=image_field, reporter=reporter)
    collection: Collection = whole if keys is None else select_keys(whole, keys)
    collection = collection if limit is None else collection.first(limit)
    collection = collection if part is None else every_nth_shard(collection, part=part[0], num_parts=part[1])
    transform = transform or autoencoder.transform
    header = StoreHeader(
        code_shape=autoencoder.config.code_shape,
        image_size=autoencoder.config.image_size,
        transform=f"{transform}/{TRANSFORM_VERSIONS[transform]}",
        quantisation=quantisation,
        autoencoder={"sha256": autoencoder.weights_sha256, "config": autoencoder.config.model_dump(mode="json")},
        source=collection.path,
        source_sha256=whole.layout,
        num_images=len(collection),
        flipped=flips,
        precision=precision or default_precision(devices[0]),
        code_kind=kind,
        selection="" if keys is None else hashlib.sha256("\n".join(sorted(set(keys))).encode()).hexdigest(),
        part="" if part is None else f"{part[0]}/{part[1]}",
        labels=labels or "",
        class_names=whole.class_names,
    )
    shards = [StoreShard(shard.name, shard.num_images, shard.size_bytes, shard.layout) for shard in collection.shards]
    source_bytes = sum(shard.size_bytes for shard in whole.shards) / max(len(whole), 1)
    return EncodePlan(whole, collection, autoencoder, header, shards, out, transform, devices, source_bytes)
