"""What stands between encoder and decoder. One module per `kind`; `core.build` makes them."""

from brics_cli.core.bottlenecks.base import Bottleneck, BottleneckOutput, BoundedBottleneck
from brics_cli.core.bottlenecks.codebook import CodebookBottleneck
from brics_cli.core.bottlenecks.fsq import FsqBottleneck
from brics_cli.core.bottlenecks.grid import GridBottleneck, HashBottleneck
from brics_cli.core.bottlenecks.kl import KlBottleneck
from brics_cli.core.bottlenecks.none import NoneBottleneck
from brics_cli.core.bottlenecks.usage import UsageCounter

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "BoundedBottleneck",
    "CodebookBottleneck",
    "FsqBottleneck",
    "GridBottleneck",
    "HashBottleneck",
    "KlBottleneck",
    "NoneBottleneck",
    "UsageCounter",
]
