"""Typed recipes: what a training run is, entirely. No torch.

`load_recipe` turns a name or path and `--set` overrides into a validated `AutoencoderRecipe` or
`DiffusionRecipe`; the classes say what every key means.
"""

from brics_cli.config.autoencoder import (
    AutoencoderConfig,
    DecoderConfig,
    EncoderConfig,
    FeatureConfig,
    GroupedFeatureConfig,
    MlpFeatureConfig,
    ResNetDecoderConfig,
    StyleDecoderConfig,
)
from brics_cli.config.base import Config, validate
from brics_cli.config.bottlenecks import (
    BottleneckConfig,
    FeatureGridConfig,
    FsqBottleneckConfig,
    GridBottleneckConfig,
    HashBottleneckConfig,
    KlBottleneckConfig,
    NoneBottleneckConfig,
    RqBottleneckConfig,
    VqBottleneckConfig,
)
from brics_cli.config.diffusion import DenoiserConfig, DiffusionConfig, DiTConfig, UNetConfig
from brics_cli.config.loading import apply_overrides, dump_yaml, load_recipe, load_yaml, recipes_named
from brics_cli.config.names import DEFAULT_TRANSFORM, CodeKind, Transform
from brics_cli.config.recipes import default_autoencoder_recipe, list_recipes, recipe_path
from brics_cli.config.runs import (
    AutoencoderRecipe,
    DataConfig,
    DiffusionRecipe,
    LossConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
)

__all__ = [
    "DEFAULT_TRANSFORM",
    "AutoencoderConfig",
    "AutoencoderRecipe",
    "BottleneckConfig",
    "CodeKind",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "DenoiserConfig",
    "DiTConfig",
    "DiffusionConfig",
    "DiffusionRecipe",
    "EncoderConfig",
    "FeatureConfig",
    "FeatureGridConfig",
    "FsqBottleneckConfig",
    "GridBottleneckConfig",
    "GroupedFeatureConfig",
    "HashBottleneckConfig",
    "KlBottleneckConfig",
    "LossConfig",
    "MlpFeatureConfig",
    "NoneBottleneckConfig",
    "OptimiserConfig",
    "Recipe",
    "ResNetDecoderConfig",
    "RqBottleneckConfig",
    "ScheduleConfig",
    "StyleDecoderConfig",
    "Transform",
    "UNetConfig",
    "VqBottleneckConfig",
    "apply_overrides",
    "default_autoencoder_recipe",
    "dump_yaml",
    "list_recipes",
    "load_recipe",
    "load_yaml",
    "recipe_path",
    "recipes_named",
    "validate",
]
