"""From config to modules: the only place."""

from __future__ import annotations

from torch import nn

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.bottlenecks import BOTTLENECKS
from brics_cli.autoencoder.decoders import ResNetDecoder, StyleDecoder
from brics_cli.autoencoder.encoder import Encoder
from brics_cli.autoencoder.linear_start import start_linear
from brics_cli.config import AutoencoderConfig, FeatureGridConfig

DECODERS: dict[str, type[nn.Module]] = {"resnet": ResNetDecoder, "style": StyleDecoder}


def build_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """A freshly initialised autoencoder (torch's global generator draws the weights: seed it first).

    Raises UsageError when the bottleneck needs a library that is not installed.
    """
    bottleneck = BOTTLENECKS[config.bottleneck.kind]
    model = Autoencoder(
        config,
        encoder=Encoder(config.encoder, out_channels=bottleneck.encoder_channels(config.code_channels)),
        bottleneck=bottleneck(config.bottleneck, model=config),
        decoder=DECODERS[config.decoder.kind](config.decoder),
    )
    if isinstance(config.bottleneck, FeatureGridConfig) and config.bottleneck.init == "dct":
        start_linear(model.encoder, model.bottleneck, model.decoder)
    return model
