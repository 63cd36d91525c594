"""From config to modules: the only place."""

from __future__ import annotations

from brics_cli.config import AutoencoderConfig, GridBottleneckConfig, NoneBottleneckConfig
from brics_cli.core.autoencoder import Autoencoder
from brics_cli.core.bottlenecks import Bottleneck, GridBottleneck, NoneBottleneck
from brics_cli.core.decoder import Decoder
from brics_cli.core.encoder import Encoder


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """A freshly initialised autoencoder (torch's global generator draws the weights: seed it first)."""
    return Autoencoder(
        config,
        encoder=Encoder(config.encoder, out_channels=config.code_channels),
        bottleneck=build_bottleneck(config),
        decoder=Decoder(config.decoder),
    )


def build_bottleneck(config: AutoencoderConfig) -> Bottleneck:
    """The bottleneck that `config.bottleneck.kind` names."""
    channels, width, features = config.code_channels, config.decoder.widths[0], config.features
    match config.bottleneck:
        case GridBottleneckConfig() as grid:
            return GridBottleneck(grid, features=features, code_channels=channels, out_channels=width)
        case NoneBottleneckConfig() as none:
            return NoneBottleneck(none, features=features, code_channels=channels, out_channels=width)
