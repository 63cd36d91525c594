"""Where a run logs besides metrics.jsonl and images/: TensorBoard's files in the run, Weights & Biases.

Both get the scalars, the sheets and the config. Weights & Biases goes by its own settings: WANDB_MODE=offline writes to
`wandb/` in the run, and `wandb sync` uploads that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from brics_cli.config import Recipe, dump_yaml
from brics_cli.config import names as known
from brics_cli.config.changes import label
from brics_cli.errors import MachineError, UsageError, first_line
from brics_cli.runtime.distributed import is_first_process
from brics_cli.workspace import Artefact

KEEP_HERE = "Run `wandb login`, or keep it on this machine: WANDB_MODE=offline"


class Logger(Protocol):
    """What a run tells as it goes."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name."""

    def sheet(self, step: int, name: str, path: Path) -> None:
        """The picture in `path`, a PNG."""

    def close(self) -> None:
        """Nothing more comes."""


def check_loggers(names: Sequence[known.Logger]) -> None:
    """Raise UsageError for a logger whose package is not installed, MachineError when Weights & Biases has no key."""
    if "wandb" not in names:
        return
    try:
        version("wandb")
    except PackageNotFoundError:
        raise UsageError(
            "training.loggers names wandb, which is not installed",
            next="Install it: uv pip install 'brics-cli[wandb]'",
        ) from None
    if is_first_process():  # the one that logs
        import wandb

        mode = wandb.setup(wandb.Settings(silent=True)).settings.mode
        if mode not in ("offline", "dryrun", "disabled") and not wandb.login(prompt=False, verify=False):
            raise MachineError("Weights & Biases cannot be started (no API key)", next=KEEP_HERE)


def open_loggers(run: Artefact, recipe: Recipe, *, first_step: int) -> list[Logger]:
    """The loggers of a recipe for the run, whose next step is `first_step`.

    Raises MachineError when Weights & Biases cannot be started (no network).
    """
    made: dict[known.Logger, Callable[[Artefact, Recipe, int], Logger]] = {
        "tensorboard": TensorBoardLogger,
        "wandb": WandbLogger,
    }
    return [made[name](run, recipe, first_step) for name in recipe.training.loggers]


class TensorBoardLogger:
    """Event files in the run's directory."""

    def __init__(self, run: Artefact, recipe: Recipe, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a third of a second, which a dry run needs not

        self._writer = SummaryWriter(str(run.path), purge_step=first_step)
        self._writer.add_text("config", f"```yaml\n{dump_yaml(recipe)}```", first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases that is named as ours; resumed, it is the same one."""

    def __init__(self, run: Artefact, recipe: Recipe, first_step: int) -> None:
        import wandb

        name = run.path.resolve().name
        self._folder = run.path / "wandb"
        settings = wandb.Settings(console="off", silent=True, symlink=False, disable_git=True, disable_code=True)
        try:
            self._run: Any = wandb.init(
                dir=run.path,
                id=hashlib.sha256(f"{name} {run.created}".encode()).hexdigest()[:16],
                name=name,
                notes=label(run.details),
                job_type=run.kind,
                config=recipe.model_dump(mode="json"),
                resume="allow",
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise MachineError(
                f"Weights & Biases cannot be started ({first_line(error)})",
                next=KEEP_HERE,
            ) from None
        self._run.define_metric("*", step_metric="step")  # after a resume steps come again, which its own never may

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def sheet(self, step: int, name: str, path: Path) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()
        for path in self._folder.rglob("*"):
            if path.is_symlink():  # to a log in the cache of wandb; a run of ours has none, and would not be replaced
                path.unlink()
