"""The state that a training step changes: weights, optimiser, EMA, position; and one update of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.model_files import average_file, average_name, load_weights, read_tensors, write_tensors
from brics_cli.config import OptimiserConfig, ScheduleConfig
from brics_cli.errors import ArtefactError, MachineError
from brics_cli.training.adversary import Adversary
from brics_cli.training.ema import Ema, ModelT, half_life_decay, power_decay
from brics_cli.training.optimiser import build_optimiser, lr_factor, read_optimiser, set_lr, write_optimiser
from brics_cli.workspace.files import read_json, write_json_atomically

MAX_SKIPPED_IN_A_ROW = 3
FORMAT_VERSION = 1
"""Of checkpoints."""
STATE_FILE = "state.json"
PLAIN_EMA = "ema.safetensors"


class DivergedError(MachineError):
    """Losses or weights are no numbers any more."""


@dataclass(frozen=True)
class Update:
    """What one update did: its loss, the gradient's norm before clipping, the learning rate, whether it was skipped."""

    loss: float
    grad_norm: float
    lr: float
    skipped: bool


class TrainingState(Generic[ModelT]):
    """Everything that a checkpoint must hold for a resumed run to equal an uninterrupted one.

    Data order and random draws are functions of (seed, step, sample), so `step` stands for them all. `ema` is the plain
    average, `averages` are the power-function ones of `ema_widths`, by name. `adversary` is the discriminator in
    training, if there is one; it is saved and loaded here, and updates itself.
    """

    def __init__(
        self,
        model: ModelT,
        *,
        optimiser: OptimiserConfig,
        schedule: ScheduleConfig,
        adversary: Adversary | None = None,
        ema_widths: Sequence[float] = (),
    ) -> None:
        self.model: ModelT = model
        self.optimiser_config = optimiser
        self.schedule = schedule
        self.optimiser = build_optimiser(model, optimiser)
        self.adversary = adversary
        plain = half_life_decay(half_life_kimg=schedule.ema_half_life_kimg, warmup=schedule.ema_warmup)
        self.ema: Ema[ModelT] = Ema(model, plain)
        self.averages: dict[str, Ema[ModelT]] = {
            average_name(width): Ema(model, power_decay(width)) for width in ema_widths
        }
        self.step = 0
        self.num_skipped = 0
        self._skipped_in_a_row = 0

    @property
    def images_seen(self) -> int:
        return self.step * self.schedule.batch_size

    def is_sound(self) -> bool:
        """Whether it may be saved: the last step was not skipped, and every weight is finite."""
        sound = not self._skipped_in_a_row and all(bool(p.isfinite().all()) for p in self.model.parameters())
        return sound and (self.adversary is None or self.adversary.is_sound())

    def diverged(self, why: str) -> DivergedError:
        """The error that ends a run whose weights or losses are no numbers any more."""
        return DivergedError(f"training diverged: {why} at step {self.step}", next="Lower the learning rate.")

    def update(self, loss: float | Tensor) -> Update:
        """Clip the gradients that are there, step the optimiser, let the averages follow, count the step.

        A `loss` that is a tensor (0-dim) is read from its device together with the gradient's norm: the guard has to
        wait for that one anyway.

        A step whose loss or gradient is not finite changes nothing but the count; the third in a row raises
        MachineError, and the last checkpoint stays as it is.
        """
        factor = lr_factor(self.optimiser_config, step=self.step, num_steps=self.schedule.steps)
        lr = set_lr(self.optimiser, factor)
        on_device = nn.utils.clip_grad_norm_(self.model.parameters(), self.optimiser_config.grad_clip)
        if isinstance(loss, Tensor):
            value, norm = (float(each) for each in torch.stack([loss, on_device.to(loss.dtype)]).tolist())
        else:
            value, norm = loss, float(on_device)
        finite = math.isfinite(value) and math.isfinite(norm)
        self.step += 1
        if finite:
            self.optimiser.step()
            for ema in (self.ema, *self.averages.values()):
                ema.update(self.model, images_seen=self.images_seen, batch_size=self.schedule.batch_size)
            self._skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise self.diverged(f"loss {value:g}, gradient norm {norm:g}, {MAX_SKIPPED_IN_A_ROW} steps in a row,")
        self.optimiser.zero_grad(set_to_none=True)
        return Update(value, norm, lr, not finite)

    def save(self, directory: Path, *, settings: dict[str, Any] | None = None) -> None:
        """Write the state into the existing, empty `directory`. `state.json` comes last: it marks completion.

        `settings`, the recipe in flat form, are kept beside it: a resumed run compares.
        """
        write_tensors(directory / "weights.safetensors", self.model.state_dict())
        write_tensors(directory / PLAIN_EMA, self.ema.model.state_dict())
        for name, ema in self.averages.items():
            write_tensors(directory / average_file(name), ema.model.state_dict())
        write_optimiser(directory / "optimiser.pt", self.optimiser)
        counts = {"format_version": FORMAT_VERSION, "step": self.step, "num_skipped": self.num_skipped}
        averages = {"averages": list(self.averages)} if self.averages else {}
        adversary = {} if self.adversary is None else {"adversary": self.adversary.save(directory)}
        write_json_atomically(directory / STATE_FILE, counts | averages | adversary | {"settings": settings or {}})

    def load(self, directory: Path) -> list[str]:
        """Restore what `save` wrote; the names of the averages that it does not hold, which start from the plain one.

        Raises ArtefactError when a file is missing, damaged, of another model, or of a newer format.
        """
        counts = read_state_file(directory)
        new = [name for name in self.averages if name not in counts.get("averages", [])]
        _load_tensors(self.model, directory / "weights.safetensors")
        _load_tensors(self.ema.model, directory / PLAIN_EMA)
        for name, ema in self.averages.items():
            _load_tensors(ema.model, directory / (PLAIN_EMA if name in new else average_file(name)))
        read_optimiser(directory / "optimiser.pt", self.optimiser)
        if self.adversary is not None:
            if "adversary" not in counts:
                raise ArtefactError(f"{directory} holds no discriminator, and this recipe has gan.weight > 0")
            self.adversary.load(directory, counts["adversary"])
        self.step, self.num_skipped = counts["step"], counts["num_skipped"]
        return new

    def start_from(self, directory: Path) -> None:
        """Take the weights of the model directory `directory`, and nothing else (`--init-from`)."""
        device = next(self.model.parameters()).device
        load_weights(self.model, directory, device=device)
        for ema in (self.ema, *self.averages.values()):
            ema.model.load_state_dict(self.model.state_dict())


def _load_tensors(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        first_line = str(error).splitlines()[0].rstrip(":")
        raise ArtefactError(f"{path} does not fit this model ({first_line})") from None


def read_state_file(directory: Path) -> dict[str, Any]:
    """The counts of a checkpoint. Raises ArtefactError when they are missing, damaged, foreign or of a newer format."""
    path = directory / STATE_FILE
    counts = read_json(path, what="checkpoint")
    if not isinstance(counts, dict) or not isinstance(counts.get("format_version"), int):
        raise ArtefactError(f"checkpoint: {path} is not one that brics wrote")
    if counts["format_version"] > FORMAT_VERSION:
        raise ArtefactError(
            f"{directory} has checkpoint format {counts['format_version']}, this brics reads {FORMAT_VERSION}",
            next="It was written by a newer brics: pip install -U brics-cli",
        )
    if not {"step", "num_skipped"} <= counts.keys():
        raise ArtefactError(f"checkpoint: {path} is damaged (it names no step)")
    counted = all(type(counts[name]) is int and counts[name] >= 0 for name in ("step", "num_skipped"))
    nested = all(isinstance(counts.get(name, {}), dict) for name in ("settings", "adversary"))
    if not counted or not nested or not isinstance(counts.get("averages", []), list):
        raise ArtefactError(f"checkpoint: {path} is damaged (its step or its settings are none)")
    return counts
