"""What is between encoder and decoder: a module per `kind`, its config class in `config.bottlenecks`, a line here."""

from typing import Any

from brics_cli.autoencoder.bottlenecks.codebook import CodebookBottleneck
from brics_cli.autoencoder.bottlenecks.fsq import FsqBottleneck
from brics_cli.autoencoder.bottlenecks.grid import GridBottleneck, HashBottleneck
from brics_cli.autoencoder.bottlenecks.kl import KlBottleneck
from brics_cli.autoencoder.bottlenecks.none import NoneBottleneck

BOTTLENECKS: dict[str, Any] = {  # type[Bottleneck], called with (config, *, model)
    "grid": GridBottleneck,
    "hash": HashBottleneck,
    "none": NoneBottleneck,
    "kl": KlBottleneck,
    "vq": CodebookBottleneck,
    "rq": CodebookBottleneck,
    "fsq": FsqBottleneck,
}
