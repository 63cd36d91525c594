"""brics: image collections -> key codes -> generative models -> measurements (BRICS, arXiv 2305.18601).

The public Python API is loaded on first use, so that `import brics_cli` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # without `typing`, which `python -m brics_cli` would take from the current directory
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    **dict.fromkeys(
        ("train_autoencoder", "encode", "decode", "train_diffusion", "sample", "evaluate"), "brics_cli.api"
    ),
    "load_autoencoder": "brics_cli.autoencoder.autoencoder",
    "load_denoiser": "brics_cli.diffusion.denoisers",
    "KeyCodeStore": "brics_cli.codes",
    "open_collection": "brics_cli.images",
}
__all__ = [
    "KeyCodeStore",
    "__version__",
    "decode",
    "encode",
    "evaluate",
    "load_autoencoder",
    "load_denoiser",
    "open_collection",
    "sample",
    "train_autoencoder",
    "train_diffusion",
]

if TYPE_CHECKING:
    from brics_cli.api import decode, encode, evaluate, sample, train_autoencoder, train_diffusion
    from brics_cli.autoencoder.autoencoder import load_autoencoder
    from brics_cli.codes import KeyCodeStore
    from brics_cli.diffusion.denoisers import load_denoiser
    from brics_cli.images import open_collection


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
