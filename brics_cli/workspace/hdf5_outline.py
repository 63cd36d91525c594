"""The outline of an HDF5 file: its attributes, and where each dataset stands. What of libhdf5 is needed to read one.

libhdf5 can crash, hang or ask for all of the memory on a file that was tampered with, so `hdf5` runs this in a process
of its own, with limits, and reads what the outline names by itself. An outline is JSON, since nothing that comes from
such a process is to be trusted:

    {"attributes": {NAME: value}, "datasets": {PATH: {"dtype", "shape", "offset", "is_text", "data"}}}

`offset` is null for what is not stored in one piece without compression; `data` (base64, or texts) then holds small
values. Or it is {"error": text}.
"""

from __future__ import annotations

import base64
import json
import math
import os
import resource
import sys
from typing import Any

import h5py
import numpy as np

CPU_S = 8
"""Processor seconds for each file: an outline takes milliseconds."""
MEMORY_BYTES = 4 << 30
MOST_BYTES = 16 << 20
"""Of all attributes, and of the values of datasets that are not in one piece: brics writes none."""


def main() -> None:
    """The life of the process; its arguments: descriptors of files. One line for each, after one that says ready."""
    if not os.path.exists("/dev/fd"):  # noqa: PTH110
        sys.exit("/dev/fd is missing")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    print("ready", flush=True)
    for descriptor in sys.argv[1:]:
        used_s = math.ceil(sum(os.times()[:2]))
        _limit(resource.RLIMIT_CPU, used_s + CPU_S)
        try:
            text = json.dumps(outline(f"/dev/fd/{descriptor}"))
        except (MemoryError, Exception) as error:
            text = json.dumps({"error": str(error) or type(error).__name__})
        print(text, flush=True)


def _limit(which: int, most: int) -> None:
    """Set a soft limit, or leave it where the user's own hard one (`ulimit -v`, `ulimit -t`) is lower."""
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def outline(path: str) -> dict[str, Any]:
    """The outline of the file at `path`. Raises whatever h5py does for a damaged one."""
    with h5py.File(path, "r", locking=False) as file:
        budget = _Budget()
        attributes = {}
        for name in file.attrs:
            budget.take(file.attrs.get_id(name).get_storage_size())
            attributes[name] = _plain(file.attrs[name])
        datasets: dict[str, Any] = {}

        def look(name: str, item: Any) -> None:  # links are not followed
            if isinstance(item, h5py.Dataset):
                datasets[name] = _dataset(item, budget)

        file.visititems(look)
        return {"attributes": attributes, "datasets": datasets}


class _Budget:
    def __init__(self) -> None:
        self._left = MOST_BYTES

    def take(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise ValueError(f"its attributes and small datasets take more than {MOST_BYTES >> 20} MiB")


def _dataset(dataset: h5py.Dataset, budget: _Budget) -> dict[str, Any]:
    text = h5py.check_string_dtype(dataset.dtype)
    is_text = text is not None and text.length is None
    num_bytes = math.prod(dataset.shape) * (16 if is_text else dataset.dtype.itemsize)
    in_one_piece = dataset.chunks is None and dataset.external is None and not dataset.is_virtual
    offset = dataset.id.get_offset() if in_one_piece else None
    said: dict[str, Any] = {
        "dtype": None if is_text else _descriptor(dataset.dtype),
        "shape": list(dataset.shape),
        "offset": offset,
        "is_text": is_text,
        "data": None,
    }
    if offset is None and dataset.external is None and not dataset.is_virtual and num_bytes <= MOST_BYTES:
        budget.take(num_bytes)
        values = dataset[()]
        if is_text:
            said["data"] = [_plain(value) for value in values.ravel()]
        else:
            said["data"] = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return said


def _descriptor(dtype: np.dtype[Any]) -> Any:
    """As in numpy: a text, or (name, descriptor, shape if any) of each field; opaque when there is padding."""
    if dtype.names is None:
        return dtype.str
    fields = [dtype[name] for name in dtype.names]
    if sum(field.itemsize for field in fields) != dtype.itemsize:
        return f"|V{dtype.itemsize}"
    return [
        [name, _descriptor(field.base), *([list(field.shape)] if field.shape else [])]
        for name, field in zip(dtype.names, fields, strict=True)
    ]


def _plain(value: Any) -> Any:
    """An attribute or a text as JSON holds it; bytes that are no UTF-8 become text that no promise is kept by."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):  # h5py makes surrogates of bytes that are no UTF-8, and no file can hold those
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int | float) else repr(value)
