"""What stands between encoder and decoder. One module per `kind`; `core.build` makes them."""

from brics_cli.core.bottlenecks.base import Bottleneck, BottleneckOutput, BoundedBottleneck
from brics_cli.core.bottlenecks.grid import GridBottleneck
from brics_cli.core.bottlenecks.none import NoneBottleneck

__all__ = ["Bottleneck", "BottleneckOutput", "BoundedBottleneck", "GridBottleneck", "NoneBottleneck"]
