"""Typed recipes: what a training run is, entirely. No torch.

`load_recipe` turns a name or path and `--set` overrides into a validated `AutoencoderRecipe` or
`DiffusionRecipe`; the classes say what every key means.
"""

from brics_cli.config.autoencoder import (
    AutoencoderConfig,
    DecoderConfig,
    EncoderConfig,
    GroupedFeatureConfig,
    ResNetDecoderConfig,
    StyleDecoderConfig,
)
from brics_cli.config.base import Config, validate
from brics_cli.config.bottlenecks import (
    FeatureGridConfig,
    FsqBottleneckConfig,
    KlBottleneckConfig,
    NoneBottleneckConfig,
    RqBottleneckConfig,
    VqBottleneckConfig,
)
from brics_cli.config.diffusion import DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig
from brics_cli.config.loading import (
    apply_overrides,
    default_autoencoder_recipe,
    dump_yaml,
    list_recipes,
    load_recipe,
    load_yaml,
    recipe_path,
    recipes_named,
)
from brics_cli.config.names import DEFAULT_TRANSFORM, CodeKind, Transform
from brics_cli.config.runs import (
    AutoencoderRecipe,
    DiffusionRecipe,
    LossConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
)
