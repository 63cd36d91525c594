"""The state that a training step changes: weights, optimiser, averages, position; one update of it; its checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor, nn

from brics_cli.autoencoder.model_files import average_file, average_name, load_weights, read_tensors, write_tensors
from brics_cli.config import OptimiserConfig, ScheduleConfig
from brics_cli.errors import ArtefactError, MachineError, first_line, machine_error
from brics_cli.workspace.files import read_json, write_json_atomically

if TYPE_CHECKING:
    from brics_cli.training.adversary import Adversary

MAX_SKIPPED_IN_A_ROW = 3
FORMAT_VERSION = 1
"""Of checkpoints."""
STATE_FILE = "state.json"
PLAIN_EMA = "ema.safetensors"

# Instant-NGP, arXiv 2201.05989, section 4: eps 1e-15 keeps rarely touched entries learning, and no weight decay.
GRID_EPS = 1e-15
COSINE_FLOOR = 0.01
MOMENTS = ("exp_avg", "exp_avg_sq")

ModelT = TypeVar("ModelT", bound=nn.Module)

Decay = Callable[[int, int], float]
"""(images seen, this step's included; images in this step) -> the share that an average keeps of what it was."""


class DivergedError(MachineError):
    """Losses or weights are not finite any more."""


@dataclass(frozen=True)
class Update:
    """What one update did: its loss, the gradient's norm before clipping, the learning rate, whether it was skipped.

    Where nothing waits for the device all but the rate are still there, 0-dim.
    """

    loss: float | Tensor
    grad_norm: float | Tensor
    lr: float
    skipped: bool | Tensor


class TrainingState(Generic[ModelT]):
    """Everything that a checkpoint must hold for a resumed run to equal an uninterrupted one.

    Data order and random draws are functions of (seed, step, sample), so `step` stands for them all. `ema` is the plain
    average, `averages` are the power-function ones of `ema_widths`, by name. `adversary` is the discriminator in
    training, if there is one; it is saved and loaded here, and updates itself.

    With a `fused` optimiser (None: on CUDA) an update waits for nothing: the device itself leaves out what a step that
    is not finite would do, and `settle` reads how many those were.
    """

    def __init__(
        self,
        model: ModelT,
        *,
        optimiser: OptimiserConfig,
        schedule: ScheduleConfig,
        adversary: Adversary | None = None,
        ema_widths: Sequence[float] = (),
        fused: bool | None = None,
    ) -> None:
        self.model: ModelT = model
        self.optimiser_config = optimiser
        self.schedule = schedule
        self.optimiser = build_optimiser(model, optimiser, fused=fused)
        self.adversary = adversary
        plain = half_life_decay(half_life_kimg=schedule.ema_half_life_kimg, warmup=schedule.ema_warmup)
        self.ema: Ema[ModelT] = Ema(model, plain)
        self.averages: dict[str, Ema[ModelT]] = {
            average_name(width): Ema(model, power_decay(width)) for width in ema_widths
        }
        self.step = 0
        self._skips = torch.zeros(3, dtype=torch.int64, device=next(model.parameters()).device)
        """How many steps were skipped: of all, of those since the last good one, and the most in a row."""

    @property
    def num_skipped(self) -> int:
        """Steps that were skipped; asking waits for the device."""
        return int(self._skips[0])

    @property
    def images_seen(self) -> int:
        return self.step * self.schedule.batch_size

    def is_sound(self) -> bool:
        """Whether it may be saved: the last step was not skipped, and every weight is finite."""
        sound = not self._skips[1] and all(bool(p.isfinite().all()) for p in self.model.parameters())
        return sound and (self.adversary is None or self.adversary.is_sound())

    def diverged(self, why: str) -> DivergedError:
        """The error that ends a run whose weights or losses are not finite any more."""
        return DivergedError(f"training diverged: {why} at step {self.step}", next="Lower the learning rate.")

    def update(self, loss: float | Tensor) -> Update:
        """Clip the gradients that are there, step the optimiser, let the averages follow, count the step.

        `loss` may be 0-dim, on the device. A step whose loss or gradient is not finite changes nothing but the count;
        the third in a row raises MachineError (with a fused optimiser, `settle` does), and the last checkpoint stays as
        it is.
        """
        lr = set_lr(self.optimiser, lr_factor(self.optimiser_config, step=self.step, num_steps=self.schedule.steps))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optimiser_config.grad_clip)
        loss = torch.as_tensor(loss, device=norm.device)
        finite = loss.isfinite() & norm.isfinite()
        self.step += 1
        step_where(self.optimiser, finite)
        for ema in (self.ema, *self.averages.values()):
            ema.update(
                self.model,
                images_seen=self.images_seen,
                batch_size=self.schedule.batch_size,
                where=finite if is_fused(self.optimiser) else bool(finite),
            )
        skipped = (~finite).long()
        total, row, longest = self._skips
        row = (row + 1) * skipped
        self._skips = torch.stack([total + skipped, row, torch.maximum(longest, row)])
        self.optimiser.zero_grad(set_to_none=True)
        if is_fused(self.optimiser):
            return Update(loss, norm, lr, ~finite)
        update = Update(float(loss), float(norm), lr, not finite)
        self.settle(update)
        return update

    def settle(self, last: Update) -> None:
        """Wait for the device, and raise MachineError where three steps in a row were skipped; `last` is the newest."""
        if self._skips[2] >= MAX_SKIPPED_IN_A_ROW:
            said = f"loss {float(last.loss):g}, gradient norm {float(last.grad_norm):g}"
            raise self.diverged(f"{said}, {MAX_SKIPPED_IN_A_ROW} steps in a row,")

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
        counts = read_counts(directory)
        new = [name for name in self.averages if name not in counts.averages]
        load_network(self.model, directory / "weights.safetensors")
        load_network(self.ema.model, directory / PLAIN_EMA)
        for name, ema in self.averages.items():
            load_network(ema.model, directory / (PLAIN_EMA if name in new else average_file(name)))
        read_optimiser(directory / "optimiser.pt", self.optimiser)
        if self.adversary is not None:
            if counts.adversary is None:
                raise ArtefactError(f"{directory} holds no discriminator, and this recipe has gan.weight > 0")
            self.adversary.load(directory, **counts.adversary.model_dump())
        self.step = counts.step
        self._skips = torch.tensor([counts.num_skipped, 0, 0], device=self._skips.device)
        return new

    def start_from(self, directory: Path) -> None:
        """Take the weights of the model directory `directory`, and nothing else (`--init-from`)."""
        load_weights(self.model, directory, device=next(self.model.parameters()).device)
        for ema in (self.ema, *self.averages.values()):
            ema.model.load_state_dict(self.model.state_dict())


def load_network(model: nn.Module, path: Path) -> None:
    """Restore the weights of a checkpoint's file. Raises ArtefactError when it is damaged or of another model."""
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ArtefactError(f"{path} does not fit this model ({str(error).splitlines()[0].rstrip(':')})") from None


# Checkpoints --------------------------------------------------------------------------------------------------------


class AdversaryCounts(BaseModel):
    """The discriminator's part of state.json: its adaptive factor, and the updates that were skipped."""

    model_config = ConfigDict(strict=True)
    factor: float
    num_skipped: NonNegativeInt


class Counts(BaseModel):
    """What a checkpoint's state.json holds."""

    model_config = ConfigDict(strict=True)
    format_version: int
    step: NonNegativeInt
    num_skipped: NonNegativeInt
    averages: list[str] = []
    adversary: AdversaryCounts | None = None
    settings: dict[str, Any] = {}


def read_counts(directory: Path) -> Counts:
    """The counts of a checkpoint. Raises ArtefactError when they are missing, damaged, foreign or of a newer format."""
    path = directory / STATE_FILE
    values = read_json(path, what="checkpoint")
    if not isinstance(values, dict) or not isinstance(version := values.get("format_version"), int):
        raise ArtefactError(f"checkpoint: {path} was not written by brics")
    if version > FORMAT_VERSION:
        raise ArtefactError(
            f"{directory} has checkpoint format {version}, this brics reads {FORMAT_VERSION}",
            next="It was written by a newer brics: pip install -U brics-cli",
        )
    try:
        return Counts.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ArtefactError(f"checkpoint: {path} is damaged ({key}: {problem['msg']})") from None


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first; copies under other names are left out."""
    found = [path.parent for path in (run / "checkpoints").glob(f"step-*/{STATE_FILE}")]
    return sorted((path for path in found if path.name.removeprefix("step-").isdecimal()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


@contextmanager
def newest_checkpoint(run: Path) -> Iterator[Path]:
    """The newest complete checkpoint, to be read in the block; there must be one.

    When it cannot be read and there is one before it, the error says how to go on from that one.
    """
    found = checkpoints(run)
    try:
        yield found[-1]
    except ArtefactError as error:
        if error.next is not None or len(found) == 1:
            raise
        before = f"To go on from step {step_of(found[-2]):,} instead, remove {found[-1]}."
        raise ArtefactError(error.what, next=before) from None


# The optimiser ------------------------------------------------------------------------------------------------------


def build_optimiser(model: nn.Module, config: OptimiserConfig, *, fused: bool | None = None) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`: weights with decay, the one-dimensional rest without, feature grids.

    `fused`: one kernel for all of them, which can leave a step out by itself (`step_where`); None: on CUDA.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    grids: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        group = grids if name.endswith(".tables") else (decayed if parameter.dim() >= 2 else plain)
        group.append(parameter)
    groups = [
        {"params": decayed, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": plain, "lr": config.lr, "weight_decay": 0.0},
        {"params": grids, "lr": config.grid_lr, "weight_decay": 0.0, "eps": GRID_EPS},
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=config.betas, fused=wants_fused(model) if fused is None else fused)


def wants_fused(model: nn.Module) -> bool:
    """Whether the optimiser of `model` is the fused one. The CPU's gives other bits than its plain one."""
    return next(model.parameters()).device.type == "cuda"


def is_fused(optimiser: torch.optim.Optimizer) -> bool:
    """Whether a step of `optimiser` can be left out without waiting for the device."""
    return bool(optimiser.param_groups[0]["fused"])


def step_where(optimiser: torch.optim.Optimizer, finite: Tensor) -> None:
    """Step `optimiser` where `finite` (0-dim, bool, on its device) holds; otherwise leave weights and moments alone."""
    if is_fused(optimiser):
        optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]  # what torch.amp's scaler tells it
        optimiser.step()
    elif finite:
        optimiser.step()


def lr_factor(config: OptimiserConfig, *, step: int, num_steps: int) -> float:
    """What every learning rate is multiplied by at `step` (from 0): a linear warm-up, then nothing or a cosine."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "none":
        return warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
    return warmup * (COSINE_FLOOR + (1 - COSINE_FLOOR) * cosine)


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `factor` times its base, and return the first group's."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimiser.param_groups[0]["lr"])


def write_optimiser(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Write the optimiser's state. Raises OSError when the disk is full."""
    buffer = BytesIO()  # torch.save to a path turns a full disk into a RuntimeError without a cause
    torch.save(optimiser.state_dict(), buffer)
    path.write_bytes(buffer.getbuffer())


def read_optimiser(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Restore what `write_optimiser` wrote; rates and betas stay those of the recipe.

    Raises ArtefactError when the file is missing, damaged, or of another model.
    """
    kept = ("base_lr", "betas", "weight_decay", "eps", "fused")
    settings = [{name: group[name] for name in kept} for group in optimiser.param_groups]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for group in state["param_groups"]:  # it says where counts of steps go, and may be of another device
            group["fused"] = is_fused(optimiser)
        optimiser.load_state_dict(state)  # moves the moments to their parameters' device
    except Exception as error:  # unpickling a damaged file can raise anything
        if (said := machine_error(error, where=path)) is not None:
            raise said from None
        raise ArtefactError(f"{path} cannot be read ({first_line(error)})") from None
    for group, setting in zip(optimiser.param_groups, settings, strict=True):
        group.update(setting)
        for parameter in group["params"]:
            moments = optimiser.state.get(parameter)  # none yet, where no gradient has come
            if moments and any(name not in moments or moments[name].shape != parameter.shape for name in MOMENTS):
                raise ArtefactError(f"{path} does not fit this model: it is the optimiser's state of another one")


# Averages of the weights: what is saved as the model and used for evaluation ----------------------------------------


class Ema(Generic[ModelT]):
    """A copy of `model` whose weights follow it: ema <- decay * ema + (1 - decay) * weights.

    The plain one is exponential. Those of EDM2 (Karras et al., arXiv 2312.02696, section 3.1) follow a power of time,
    so that their length grows with training, and several are kept: which one samples best is found afterwards.
    """

    def __init__(self, model: ModelT, decay: Decay) -> None:
        self.model: ModelT = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, *, images_seen: int, batch_size: int, where: bool | Tensor = True) -> None:
        """Follow `model` after a step of `batch_size` images, the `images_seen`-th included; not where that step was
        skipped (`where` false: 0-dim on the device, which is not waited for)."""
        if where is False:
            return
        change = 1 - self.decay(images_seen, batch_size)
        averages: list[Tensor] = list(self.model.parameters())
        weights: list[Tensor] = list(model.parameters())
        if isinstance(where, Tensor):
            moves = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(moves, change * where)
            torch._foreach_add_(averages, moves)
        else:
            torch._foreach_lerp_(averages, weights, change)
        for mine, current in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(current)


def half_life_decay(*, half_life_kimg: float, warmup: float) -> Decay:
    """decay = 0.5^(batch / half-life), the half-life in thousands of images.

    It is held to `warmup` times the images seen so that the random start is forgotten (NVlabs/edm's training loop,
    arXiv 2206.00364: a ramp-up ratio of 0.05).
    """
    half_life = half_life_kimg * 1000

    def decay(images_seen: int, batch_size: int) -> float:
        return float(0.5 ** (batch_size / min(half_life, max(warmup * images_seen, 1e-8))))

    return decay


def power_decay(width: float) -> Decay:
    """decay = (1 - batch / images)^(gamma + 1): weights at time t count as t^gamma (arXiv 2312.02696, section 3.1).

    `width` is sigma_rel, the standard deviation of that profile relative to the whole of training so far. The first
    step's decay is 0, so nothing is left of the random start.
    """
    exponent = gamma_of(width) + 1
    return lambda images_seen, batch_size: float((1 - batch_size / images_seen) ** exponent)


def gamma_of(width: float) -> float:
    """The power gamma of a profile of relative width sigma_rel, 0 < sigma_rel < 12^-1/2 (a flat profile).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) is the variance of the density (gamma + 1) t^gamma on [0, 1]
    (section 3.1): a cubic in gamma, of which the largest root is meant. Raises ValueError otherwise.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"a width of {width} is not between 0 and {12**-0.5:.3f}")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())
