"""From config to modules: the only place."""

from __future__ import annotations

from typing import Any

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.bottlenecks import (
    Bottleneck,
    CodebookBottleneck,
    FsqBottleneck,
    GridBottleneck,
    HashBottleneck,
    KlBottleneck,
    NoneBottleneck,
)
from brics_cli.autoencoder.decoder import Decoder
from brics_cli.autoencoder.encoder import Encoder
from brics_cli.autoencoder.style_decoder import StyleDecoder
from brics_cli.config import (
    AutoencoderConfig,
    FsqBottleneckConfig,
    GridBottleneckConfig,
    HashBottleneckConfig,
    KlBottleneckConfig,
    NoneBottleneckConfig,
    ResNetDecoderConfig,
    RqBottleneckConfig,
    StyleDecoderConfig,
    VqBottleneckConfig,
)

BOTTLENECKS: dict[type, Any] = {
    GridBottleneckConfig: GridBottleneck,
    HashBottleneckConfig: HashBottleneck,
    NoneBottleneckConfig: NoneBottleneck,
    KlBottleneckConfig: KlBottleneck,
    VqBottleneckConfig: CodebookBottleneck,
    RqBottleneckConfig: CodebookBottleneck,
    FsqBottleneckConfig: FsqBottleneck,
}
DECODERS: dict[type, Any] = {ResNetDecoderConfig: Decoder, StyleDecoderConfig: StyleDecoder}


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """A freshly initialised autoencoder (torch's global generator draws the weights: seed it first).

    Raises UsageError when the bottleneck needs a library that is not installed.
    """
    encoder_channels = BOTTLENECKS[type(config.bottleneck)].encoder_channels(config.code_channels)
    return Autoencoder(
        config,
        encoder=Encoder(config.encoder, out_channels=encoder_channels),
        bottleneck=build_bottleneck(config),
        decoder=DECODERS[type(config.decoder)](config.decoder),
    )


def build_bottleneck(config: AutoencoderConfig) -> Bottleneck:
    """The bottleneck that `config.bottleneck.kind` names."""
    return BOTTLENECKS[type(config.bottleneck)](config.bottleneck, model=config)
