"""The key-code store: the HDF5 file of a whole encoded collection, format 1 (DESIGN section 4). No torch is needed."""

from brics_cli.store.format import QUANTISATIONS, Quantisation, StoreHeader, StoreShard, dequantise, quantise
from brics_cli.store.reader import KeyCodeStore
from brics_cli.store.verify import verify_store, verify_store_in_child
from brics_cli.store.writer import StoreWriter

__all__ = [
    "QUANTISATIONS",
    "KeyCodeStore",
    "Quantisation",
    "StoreHeader",
    "StoreShard",
    "StoreWriter",
    "dequantise",
    "quantise",
    "verify_store",
    "verify_store_in_child",
]
