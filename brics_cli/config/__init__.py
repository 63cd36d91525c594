"""Typed recipes: what a training run is, entirely. No torch.

`load_recipe` turns a name or path and `--set` overrides into a validated `AutoencoderRecipe` or
`DiffusionRecipe`; the classes say what every key means.

The classes are loaded when they are first asked for: every command needs `config.names`, few need recipes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        general_autoencoder_recipes,
        list_recipes,
        load_recipe,
        load_yaml,
        recipe_files,
        recipe_path,
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
else:
    _PUBLIC = {
        "autoencoder": "AutoencoderConfig DecoderConfig EncoderConfig GroupedFeatureConfig ResNetDecoderConfig "
        "StyleDecoderConfig",
        "base": "Config validate",
        "bottlenecks": "FeatureGridConfig FsqBottleneckConfig KlBottleneckConfig NoneBottleneckConfig "
        "RqBottleneckConfig VqBottleneckConfig",
        "diffusion": "DenoiserConfig DiffusionConfig DiTConfig UNetConfig",
        "loading": "apply_overrides default_autoencoder_recipe dump_yaml general_autoencoder_recipes list_recipes "
        "load_recipe load_yaml recipe_files recipe_path",
        "names": "DEFAULT_TRANSFORM CodeKind Transform",
        "runs": "AutoencoderRecipe DiffusionRecipe LossConfig OptimiserConfig Recipe ScheduleConfig",
    }

    def __getattr__(name: str) -> Any:
        for module, names in _PUBLIC.items():
            if name in names.split():
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
