"""What stands between encoder and decoder. One module per `kind`; `autoencoder.build` makes them."""

from brics_cli.autoencoder.bottlenecks.base import Bottleneck, BottleneckOutput, BoundedBottleneck
from brics_cli.autoencoder.bottlenecks.codebook import CodebookBottleneck
from brics_cli.autoencoder.bottlenecks.fsq import FsqBottleneck
from brics_cli.autoencoder.bottlenecks.grid import GridBottleneck, HashBottleneck
from brics_cli.autoencoder.bottlenecks.kl import KlBottleneck
from brics_cli.autoencoder.bottlenecks.none import NoneBottleneck
from brics_cli.autoencoder.bottlenecks.usage import UsageCounter

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
