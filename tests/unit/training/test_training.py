import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from brics_cli.config import OptimiserConfig, ScheduleConfig, load_recipe
from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.images import open_collection
from brics_cli.runtime.distributed import World
from brics_cli.runtime.randomness import Stream, keyed_coins, keyed_normal
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training import step as of_step
from brics_cli.training.images import Batch, TrainingImages
from brics_cli.training.order import SampleOrder
from brics_cli.training.run import remove_half_written
from brics_cli.training.state import (
    Ema,
    TrainingState,
    build_optimiser,
    checkpoints,
    gamma_of,
    half_life_decay,
    lr_factor,
    power_decay,
    read_optimiser,
    step_of,
)
from brics_cli.training.step import batches_on_device


def shards(*sizes: int) -> list[np.ndarray]:
    starts = np.cumsum([0, *sizes])
    return [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]


@pytest.mark.parametrize("window", [1, 5, 10_000])
def test_every_epoch_sees_every_sample_once(window: int) -> None:
    order = SampleOrder(shards(3, 0, 4, 6), seed=1, window=window)
    epochs = [order.batch(13 * epoch, 13) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_is_a_function_of_seed_and_position_alone() -> None:
    straight = SampleOrder(shards(5, 7), seed=4, window=6).batch(0, 40)
    jumping = SampleOrder(shards(5, 7), seed=4, window=6)
    assert [jumping[position] for position in reversed(range(40))] == straight[::-1]
    assert SampleOrder(shards(5, 7), seed=5, window=6).batch(0, 40) != straight


def test_a_window_holds_whole_shards() -> None:
    order = SampleOrder(shards(4, 4, 4, 4), seed=0, window=8)
    first, second = (set(order.batch(start, 8)) for start in (0, 8))
    assert {sample // 4 for sample in first} & {sample // 4 for sample in second} == set()


def test_keyed_draws_depend_on_the_sample_not_on_its_batch() -> None:
    together = keyed_normal(7, step=3, indices=[5, 9], shape=(2, 2), stream=Stream.CODE_NOISE)
    alone = keyed_normal(7, step=3, indices=[9], shape=(2, 2), stream=Stream.CODE_NOISE)
    assert torch.equal(together[1:], alone)
    for other in (
        keyed_normal(7, step=4, indices=[9], shape=(2, 2), stream=Stream.CODE_NOISE),
        keyed_normal(8, step=3, indices=[9], shape=(2, 2), stream=Stream.CODE_NOISE),
        keyed_normal(7, step=3, indices=[9], shape=(2, 2), stream=Stream.FLIP),
    ):
        assert not torch.equal(other, alone)
    heads = keyed_coins(0, step=0, indices=range(4000), stream=Stream.FLIP).float().mean()
    assert 0.46 < heads < 0.54


def test_the_average_halves_over_its_half_life() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, half_life_decay(half_life_kimg=0.1, warmup=1.0))
    nn.init.ones_(model.weight)
    for step in range(10):  # 10 x 10 images = one half-life, long after the warm-up
        ema.update(model, images_seen=10_000 + 10 * step, batch_size=10)
    assert float(ema.model.weight) == pytest.approx(0.5)


def test_early_on_the_average_forgets_its_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, half_life_decay(half_life_kimg=10.0, warmup=0.05))
    nn.init.ones_(model.weight)
    ema.update(model, images_seen=10, batch_size=10)
    assert float(ema.model.weight) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_widths_are_those_of_edm2(width: float, gamma: float) -> None:
    """The pairs that the paper gives in section 3.1, and the definition: the relative deviation of t^gamma."""
    assert gamma_of(width) == pytest.approx(gamma, abs=0.005)
    time = (np.arange(200_000) + 0.5) / 200_000
    share = time ** gamma_of(width)
    mean = (time * share).sum() / share.sum()
    assert np.sqrt(((time - mean) ** 2 * share).sum() / share.sum()) == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize("width", [0.0, 0.3, -0.1])
def test_a_width_that_no_power_has_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="is not between 0 and"):
        gamma_of(width)


def test_a_power_average_weighs_each_step_by_its_time() -> None:
    """What follows step by step is the weighted mean that it stands for, and nothing is left of the start."""
    values = np.random.default_rng(0).normal(size=400)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1e6)
    ema = Ema(model, power_decay(0.1))
    for step, value in enumerate(values, start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model, images_seen=8 * step, batch_size=8)
    ends = (np.arange(401) / 400) ** (gamma_of(0.1) + 1)  # the integral of t^gamma up to each step's end
    assert float(ema.model.weight) == pytest.approx(float(np.diff(ends) @ values), abs=1e-9)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = OptimiserConfig(warmup_steps=10, decay="cosine")
    factors = [lr_factor(config, step=step, num_steps=1000) for step in range(1001)]
    assert factors[0] == pytest.approx(0.1, rel=1e-3)
    assert factors[500] == pytest.approx(0.505, rel=1e-3)
    assert factors[1000] == pytest.approx(0.01)
    assert lr_factor(OptimiserConfig(warmup_steps=0, decay="none"), step=999, num_steps=1000) == 1.0


def test_grids_get_their_own_rate_no_decay_and_a_tiny_eps() -> None:
    from brics_cli.autoencoder.build import build_autoencoder

    recipe = load_recipe("tiny", kind="autoencoder", overrides=["optimiser.weight_decay=0.1"])
    model = build_autoencoder(recipe.model)
    groups = build_optimiser(model, recipe.optimiser).param_groups
    (grids,) = [group for group in groups if any(p is model.bottleneck.tables for p in group["params"])]
    assert (grids["lr"], grids["weight_decay"], grids["eps"]) == (recipe.optimiser.grid_lr, 0.0, 1e-15)
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())
    assert {group["weight_decay"] for group in groups if group["params"][0].dim() < 2} == {0.0}


def small_state(ema_widths: tuple[float, ...] = (0.05, 0.1), *, fused: bool | None = None) -> TrainingState:
    torch.manual_seed(0)
    schedule = ScheduleConfig(steps=10, batch_size=4)
    model, optimiser = nn.Linear(3, 2), OptimiserConfig()
    return TrainingState(model, optimiser=optimiser, schedule=schedule, ema_widths=ema_widths, fused=fused)


def averages_of(state: TrainingState) -> dict[str, nn.Module]:
    """Every average of `state`, by name."""
    return {"plain": state.ema.model, **{name: ema.model for name, ema in state.averages.items()}}


def one_step(state: TrainingState, scale: float = 1.0) -> None:
    inputs = torch.ones(4, 3) * (state.step + 1)
    loss = state.model(inputs).square().mean() * scale
    loss.backward()
    state.settle(state.update(loss.detach()))


@pytest.mark.parametrize("fused", [False, True])
def test_a_non_finite_step_changes_nothing_and_three_in_a_row_stop(fused: bool) -> None:
    state = small_state(fused=fused)
    one_step(state)
    networks = (state.model, *averages_of(state).values())
    before = [p.clone() for network in networks for p in network.parameters()]
    one_step(state, float("nan"))
    one_step(state, float("inf"))
    after = [p for network in networks for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (state.step, state.num_skipped) == (3, 2)
    one_step(state)  # a good one in between
    one_step(state, float("nan"))
    one_step(state, float("nan"))
    with pytest.raises(MachineError, match="training diverged") as caught:
        one_step(state, float("nan"))
    assert caught.value.exit_code == 6


def test_a_fused_step_is_read_when_asked_and_not_before() -> None:
    state = small_state(fused=True)
    for scale in (1.0, float("nan"), float("nan"), float("nan"), 1.0):
        loss = state.model(torch.ones(4, 3)).square().mean() * scale
        loss.backward()
        update = state.update(loss.detach())
    assert isinstance(update.loss, torch.Tensor) and bool(update.loss.isfinite())
    assert state.num_skipped == 3
    with pytest.raises(MachineError, match="3 steps in a row"):
        state.settle(update)


def test_a_restored_state_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    straight = small_state()
    for _ in range(8):
        one_step(straight)
    first, second = small_state(), small_state()
    for _ in range(5):
        one_step(first)
    first.save(tmp_path)
    assert second.load(tmp_path) == []
    for _ in range(3):
        one_step(second)
    ours, theirs = ({"weights": state.model, **averages_of(state)} for state in (straight, second))
    assert list(ours) == ["weights", "plain", "0.05", "0.1"]
    for which, network in ours.items():
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, theirs[which].state_dict()[name]), (which, name)
    differing = [network.weight for network in ours.values()]
    assert not any(torch.equal(a, b) for a, b in pairwise(differing)), "the averages are all the same"


def test_a_checkpoint_without_an_average_gives_it_the_plain_one(tmp_path: Path) -> None:
    state, resumed = small_state(ema_widths=(0.1,)), small_state(ema_widths=(0.05, 0.1))
    for _ in range(5):
        one_step(state)
    state.save(tmp_path)
    assert resumed.load(tmp_path) == ["0.05"]
    assert torch.equal(resumed.averages["0.05"].model.weight, state.ema.model.weight)
    assert torch.equal(resumed.averages["0.1"].model.weight, state.averages["0.1"].model.weight)


@pytest.mark.parametrize("later", [False, True])
def test_a_checkpoint_goes_on_with_the_other_optimiser(tmp_path: Path, later: bool) -> None:
    """One of CUDA on the CPU, and back: which kernel steps is the device's, and not in the file."""
    straight, first, second = (small_state(fused=fused) for fused in (not later, not later, later))
    for _ in range(6):
        one_step(straight)
    for _ in range(3):
        one_step(first)
    first.save(tmp_path)
    second.load(tmp_path)
    assert [group["fused"] for group in second.optimiser.param_groups] == [later] * 2
    for _ in range(3):
        one_step(second)
    torch.testing.assert_close(second.model.state_dict(), straight.model.state_dict())
    for name, average in averages_of(second).items():
        torch.testing.assert_close(average.state_dict(), averages_of(straight)[name].state_dict())


def test_a_loss_on_the_device_is_guarded_as_a_number_is() -> None:
    ours, theirs = small_state(), small_state()
    for value in (1.0, float("nan"), 2.0):
        for state in (ours, theirs):
            state.model(torch.ones(4, 3)).square().mean().backward()
        ours_said, theirs_said = ours.update(torch.tensor(value, dtype=torch.float64)), theirs.update(value)
        assert (ours_said.skipped, ours_said.grad_norm) == (theirs_said.skipped, theirs_said.grad_norm)
        assert ours_said.skipped == np.isnan(value)
    assert torch.equal(ours.model.weight, theirs.model.weight)


FILES = ("state.json", "weights.safetensors", "ema.safetensors", "ema-0.05.safetensors", "optimiser.pt")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str, damage: str) -> None:
    state = small_state()
    one_step(state)
    state.save(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not this")
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")) as caught:
        small_state().load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "counts",
    [{"step": "abc"}, {"step": -1}, {"num_skipped": None}, {"settings": [1]}, {"adversary": 3}, {"averages": "0.1"}],
)
def test_counts_that_brics_would_not_write_are_refused_in_one_line(tmp_path: Path, counts: dict[str, object]) -> None:
    small_state().save(tmp_path)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | counts))
    with pytest.raises(ArtefactError, match=r"state\.json is damaged"):
        small_state().load(tmp_path)


def test_the_optimiser_of_another_model_is_refused(tmp_path: Path) -> None:
    state, other = small_state(), small_state()
    one_step(state)
    state.save(tmp_path)
    for parameter in other.model.parameters():
        parameter.data = parameter.data[:1]  # as many parameters, of other shapes
    with pytest.raises(ArtefactError, match=r"optimiser\.pt does not fit this model"):
        read_optimiser(tmp_path / "optimiser.pt", other.optimiser)


def test_copies_of_checkpoints_under_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-00000004", "step-00000008", "step-100000000", "step-00000008.bak", "step-best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    assert [step_of(path) for path in checkpoints(tmp_path)] == [4, 8, 100_000_000]


def test_a_model_that_a_kill_left_without_its_successor_is_put_back(tmp_path: Path) -> None:
    for name in (".best.0123abcd.old", ".best.4567cdef.tmp", ".model.0123abcd.old", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    remove_half_written(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "model"}
    assert (tmp_path / "best" / "config.json").read_text() == ".best.0123abcd.old"
    assert (tmp_path / "model" / "config.json").read_text() == "model"


def test_the_optimiser_file_cannot_run_code(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    state = small_state()
    state.save(tmp_path)
    (tmp_path / "optimiser.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ArtefactError):
        small_state().load(tmp_path)
    assert not (tmp_path / "owned").exists()


def training_images(folder: Path, **changes: object) -> TrainingImages:
    settings = {"transform": "crop-bicubic", "size": 32, "num_workers": 2} | changes
    return TrainingImages(open_collection(folder), **settings)  # type: ignore[arg-type]


def test_read_ahead_and_cache_give_the_same_batches(photographs: Path) -> None:
    cached, ahead = training_images(photographs), training_images(photographs)
    assert cached.cache(limit_gib=1.0, reporter=SilentReporter())
    assert not ahead.cache(limit_gib=0.0, reporter=SilentReporter())
    order = SampleOrder(shards(len(cached)), seed=0)
    streams = [images.batches(order, start=40, batch_size=16) for images in (cached, ahead)]
    for _ in range(3):
        a, b = (next(stream) for stream in streams)
        assert a.indices == b.indices
        assert (a.images == b.images).all()
    for stream in streams:
        stream.close()


def test_the_split_depends_on_keys_alone_and_holds_out_something(photographs: Path) -> None:
    images = training_images(photographs)
    train, val = images.split(val_fraction=0.25)
    assert set(np.concatenate(train)) | set(val) == set(range(len(images)))
    assert not set(np.concatenate(train)) & set(val)
    assert 0 < len(val) < len(images)
    assert len(images.split(val_fraction=1e-9)[1]) == 1


def test_images_that_fail_are_left_out_and_counted(photographs: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(photographs.iterdir())[:5]):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "2.png").write_text("this is no image")
    images = training_images(tmp_path)
    images.cache(limit_gib=1.0, reporter=SilentReporter())
    assert list(images.failures) == [2]
    for each in (images, training_images(tmp_path)):
        each._held_out = {3}
        assert len(each.load([2])) == 0, "validation must not score an image in place of another"
        stand_in = next(each.batches(SampleOrder([np.array([2])], seed=0), start=0, batch_size=1)).images[0]
        assert (stand_in == images.load([4])[0]).all(), "a held-out image stood in for a broken one"


def test_memory_changes_nothing_of_the_order_when_images_fail(photographs: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(photographs.iterdir())[:12]):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    for number in (2, 3, 7):
        (tmp_path / f"{number}.png").write_text("this is no image")
    cached, ahead = training_images(tmp_path), training_images(tmp_path)
    cached.cache(limit_gib=1.0, reporter=SilentReporter())
    splits = [images.split(val_fraction=0.3) for images in (cached, ahead)]
    assert splits[0][1].tolist() == splits[1][1].tolist()
    orders = [SampleOrder(train, seed=0) for train, _ in splits]
    streams = [
        images.batches(order, start=3, batch_size=4) for images, order in zip((cached, ahead), orders, strict=True)
    ]
    for _ in range(6):
        a, b = (next(stream) for stream in streams)
        assert a.indices == b.indices and (a.images == b.images).all()
    for stream in streams:
        stream.close()


def test_too_few_images_are_refused(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "only.png").write_bytes(next(photographs.iterdir()).read_bytes())
    with pytest.raises(UsageError, match="1 usable images are too few"):
        training_images(tmp_path).split(val_fraction=0.02)


def test_images_are_mirrored_and_noise_drawn_alike_whatever_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, by streams of whole steps; and as on the CPU, by streams of samples."""
    recipe = load_recipe("tiny", kind="autoencoder", overrides=["training.batch_size=8", "model.image_size=16"])
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)

    def steps(rank: int, size: int, *, ahead: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
        world = World(rank=rank, size=size, device=torch.device("cpu"))
        mine = world.mine(list(range(8)))
        batches = (Batch([8 * step + index for index in mine], images[mine]) for step in range(5))
        return list(islice(batches_on_device(batches, recipe, first_step=3, world=world, ahead=ahead), 3))

    found = []
    for by_step in (False, True):
        monkeypatch.setattr(of_step, "draws_by_step", lambda device, chosen=by_step: chosen)
        whole = steps(0, 1, ahead=False)
        for one, *parts in zip(whole, steps(0, 2, ahead=True), steps(1, 2, ahead=False), strict=True):
            for alone, shared in zip(one, zip(*parts, strict=True), strict=True):
                assert torch.equal(alone, torch.cat(shared))
        assert not torch.equal(whole[0][0], whole[1][0]), "other images are mirrored"
        found.append(whole)
    assert not torch.equal(found[0][0][1], found[1][0][1])
