"""The seal of a store: a hash of all that the shards' row hashes leave out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import h5py
import numpy as np

SEAL_ATTRIBUTE = "seal"
SEALED_DATASETS = ("shards", "failures", "stats/mean", "stats/std", "stats/histogram")


def seal(file: h5py.File) -> str:
    """sha256 of all that row hashes leave out: attributes (but the seal itself), tables, statistics, types.

    It stands in the store as attribute `seal`, and tells when any of them was changed.
    """
    digest = hashlib.sha256()

    def add(name: str, attributes: h5py.AttributeManager) -> None:
        plain = {key: _plain(value) for key, value in attributes.items() if key != SEAL_ATTRIBUTE}
        digest.update(f"{name}\0{json.dumps(plain, sort_keys=True)}\0".encode())

    add("/", file.attrs)
    names: list[str] = []
    file.visit(names.append)
    for name in sorted(names):
        add(name, file[name].attrs)
        if isinstance(file[name], h5py.Dataset):
            digest.update(f"{file[name].dtype.str} {file[name].dtype.descr} {file[name].shape}\0".encode())
        if name in SEALED_DATASETS:
            digest.update(np.ascontiguousarray(file[name][()]).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """An HDF5 attribute as JSON can hold it; bytes that are no UTF-8 stay distinct."""
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), _plain(value.tolist())]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float) else repr(value)
