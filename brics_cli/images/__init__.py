"""Collections in (`open_collection`, `load_shards`), images out (`open_sink`, `contact_sheet`)."""

from brics_cli.images.collection import Collection, RawImage
from brics_cli.images.loader import Batch, load_shards
from brics_cli.images.opening import median_side, open_collection
from brics_cli.images.pixels import ImageError, apply_transform, versioned
from brics_cli.images.sheets import contact_sheet
from brics_cli.images.sinks import open_sink
