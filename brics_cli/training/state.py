"""The state that a training step changes: weights, optimiser, EMA, position; and one update of it."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Generic

import torch
from torch import nn

from brics_cli.config import OptimiserConfig, ScheduleConfig
from brics_cli.core.model_files import load_weights, read_tensors, write_tensors
from brics_cli.errors import ArtefactError, MachineError
from brics_cli.training.ema import Ema, ModelT
from brics_cli.training.optimiser import build_optimiser, lr_factor
from brics_cli.workspace.files import read_json, write_json_atomically

MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class Update:
    """What one update did: the gradient's norm before clipping, the learning rate, and whether it was skipped."""

    grad_norm: float
    lr: float
    skipped: bool


class TrainingState(Generic[ModelT]):
    """Everything that a checkpoint must hold for a resumed run to equal an uninterrupted one.

    Data order and random draws are functions of (seed, step, sample), so `step` stands for them all.
    """

    def __init__(self, model: ModelT, *, optimiser: OptimiserConfig, schedule: ScheduleConfig) -> None:
        self.model: ModelT = model
        self.optimiser_config = optimiser
        self.schedule = schedule
        self.optimiser = build_optimiser(model, optimiser)
        self.ema: Ema[ModelT] = Ema(model, half_life_kimg=schedule.ema_half_life_kimg, warmup=schedule.ema_warmup)
        self.step = 0
        self.num_skipped = 0
        self._skipped_in_a_row = 0

    @property
    def images_seen(self) -> int:
        return self.step * self.schedule.batch_size

    def is_sound(self) -> bool:
        """Whether it may be saved: the last step was not skipped, and every weight is finite."""
        return not self._skipped_in_a_row and all(bool(p.isfinite().all()) for p in self.model.parameters())

    def diverged(self, why: str) -> MachineError:
        """The error that ends a run whose weights or losses are no numbers any more."""
        return MachineError(
            f"training diverged: {why} at step {self.step}",
            next="Lower the learning rate (--set optimiser.lr=...); the last checkpoint is intact.",
        )

    def update(self, loss: float) -> Update:
        """Clip the gradients that are there, step the optimiser, let the EMA follow, count the step.

        A step whose loss or gradient is not finite changes nothing but the count; the third in a row raises
        MachineError, and the last checkpoint stays as it is.
        """
        factor = lr_factor(self.optimiser_config, step=self.step, num_steps=self.schedule.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.optimiser_config.grad_clip))
        finite = all(map(_is_finite, (loss, norm)))
        self.step += 1
        if finite:
            self.optimiser.step()
            self.ema.update(self.model, images_seen=self.images_seen, batch_size=self.schedule.batch_size)
            self._skipped_in_a_row = 0
        else:
            self.num_skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise self.diverged(f"loss {loss:g}, gradient norm {norm:g}, {MAX_SKIPPED_IN_A_ROW} steps in a row,")
        self.optimiser.zero_grad(set_to_none=True)
        return Update(norm, self.optimiser.param_groups[0]["lr"], not finite)

    def save(self, directory: Path) -> None:
        """Write the state into the existing, empty `directory`. `state.json` comes last: it marks completion."""
        write_tensors(directory / "weights.safetensors", self.model.state_dict())
        write_tensors(directory / "ema.safetensors", self.ema.model.state_dict())
        optimiser = BytesIO()  # torch.save to a path turns a full disk into a RuntimeError without a cause
        torch.save(self.optimiser.state_dict(), optimiser)
        (directory / "optimiser.pt").write_bytes(optimiser.getbuffer())
        counts = {"format_version": 1, "step": self.step, "num_skipped": self.num_skipped}
        write_json_atomically(directory / "state.json", counts)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. Raises ArtefactError when a file is missing, damaged or of another model."""
        counts = read_json(directory / "state.json", what="checkpoint")
        for model, name in ((self.model, "weights.safetensors"), (self.ema.model, "ema.safetensors")):
            try:
                model.load_state_dict(read_tensors(directory / name))
            except RuntimeError as error:
                raise ArtefactError(f"{directory / name} does not fit this model ({_first_line(error)})") from None
        try:
            device = next(self.model.parameters()).device
            rates = [group["base_lr"] for group in self.optimiser.param_groups]  # the recipe's, not the checkpoint's
            optimiser = torch.load(directory / "optimiser.pt", map_location=device, weights_only=True)
            self.optimiser.load_state_dict(optimiser)
            for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
                group["base_lr"] = rate
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ArtefactError(f"{directory / 'optimiser.pt'} cannot be read ({_first_line(error)})") from None
        except Exception as error:  # unpickling a damaged file can raise anything
            raise ArtefactError(f"{directory / 'optimiser.pt'} is damaged ({type(error).__name__})") from None
        self.step, self.num_skipped = int(counts["step"]), int(counts["num_skipped"])

    def start_from(self, directory: Path) -> None:
        """Take the weights of the model directory `directory`, and nothing else (`--init-from`)."""
        device = next(self.model.parameters()).device
        load_weights(self.model, directory, device=device)
        self.ema.model.load_state_dict(self.model.state_dict())


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
