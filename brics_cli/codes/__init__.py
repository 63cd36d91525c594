"""The key-code store: the HDF5 file of a whole encoded collection, format 1 (DESIGN section 4). No torch is needed.

What it offers is loaded when it is first asked for: reading a store takes neither h5py nor what reads images.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
else:
    _PUBLIC = {
        "format": "QUANTISATIONS StoreHeader StoreShard dequantise quantise quantise_on_device",
        "joining": "Join plan_join write_join",
        "reader": "KeyCodeStore",
        "verify": "verify_store verify_store_in_child",
        "writer": "StoreWriter",
    }

    def __getattr__(name: str) -> Any:
        for module, names in _PUBLIC.items():
            if name in names.split():
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
