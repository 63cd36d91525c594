"""Collections in (`open_collection`, `load_shards`), images out (`open_sink`, `contact_sheet`)."""

from brics_cli.images.collection import Collection, RawImage, Shard
from brics_cli.images.loader import Batch, load_shards
from brics_cli.images.opening import median_side, open_collection
from brics_cli.images.pixels import ImageError, apply_transform, decode_image, versioned
from brics_cli.images.sheets import contact_sheet
from brics_cli.images.sinks import ImageSink, open_sink

__all__ = [
    "Batch",
    "Collection",
    "ImageError",
    "ImageSink",
    "RawImage",
    "Shard",
    "apply_transform",
    "contact_sheet",
    "decode_image",
    "load_shards",
    "median_side",
    "open_collection",
    "open_sink",
    "versioned",
]
