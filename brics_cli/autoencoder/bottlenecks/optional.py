"""The optional library behind the baselines `vq`, `rq` and `fsq`, imported when one of them is built."""

from __future__ import annotations

from types import ModuleType

from brics_cli.errors import UsageError


def vector_quantize_pytorch(*, kind: str) -> ModuleType:
    """The library. Raises UsageError, which names the extra, when it is not installed."""
    try:
        import vector_quantize_pytorch
        from loguru import logger
    except ImportError:
        raise UsageError(
            f"bottleneck kind {kind!r} needs vector-quantize-pytorch, which is not installed",
            next="Install it: uv pip install 'brics-cli[baselines]'",
        ) from None
    logger.disable("vector_quantize_pytorch")  # it writes to stderr on its own; jobs report through their Reporter
    return vector_quantize_pytorch
