"""The key-code store: the HDF5 file of a whole encoded collection, format 1 (DESIGN section 4). No torch is needed."""

from brics_cli.codes.format import (
    QUANTISATIONS,
    StoreHeader,
    StoreShard,
    dequantise,
    quantise,
    quantise_on_device,
)
from brics_cli.codes.joining import Join, plan_join, write_join
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.codes.verify import verify_store, verify_store_in_child
from brics_cli.codes.writer import StoreWriter
