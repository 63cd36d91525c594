"""The registry of formats, in the order in which a file is asked whether it is one of them."""

from __future__ import annotations

from brics_cli.images.sources import lmdb, npz, tables, tars, zip
from brics_cli.images.sources.format import Format

FORMATS: tuple[Format, ...] = (
    npz.FORMAT,
    zip.FORMAT,
    tables.PARQUET,
    tables.ARROW,
    lmdb.FORMAT,
    tars.FORMAT,
)
