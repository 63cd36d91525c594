from pathlib import Path

import pytest
import yaml

from brics_cli.config import (
    apply_overrides,
    default_autoencoder_recipe,
    dump_yaml,
    list_recipes,
    load_recipe,
    recipe_path,
)
from brics_cli.config.loading import parse_yaml, recipe_from_values
from brics_cli.errors import UsageError

ALL = [(kind, name) for kind in ("autoencoder", "diffusion") for name in list_recipes(kind)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_recipe_is_valid_says_how_to_launch_it_and_reads_back(kind: str, name: str) -> None:
    recipe = load_recipe(name, kind=kind)
    assert recipe.name == name
    header = recipe_path(name, kind=kind).read_text().split("kind:")[0]
    for word in ("# Needs:", "# Launch:", "# Override:", "brics train-"):
        assert word in header
    assert recipe_from_values(yaml.safe_load(dump_yaml(recipe)), kind=kind, source="dump") == recipe


def test_overrides_apply_in_order_and_flags_last() -> None:
    recipe = load_recipe(
        "tiny", kind="autoencoder", overrides=["optimiser.lr=1", "optimiser.lr=1e-4"], training__steps=7
    )
    assert recipe.optimiser.lr == 1e-4
    assert recipe.training.steps == 7


def test_setting_a_kind_resets_its_block_and_nothing_else() -> None:
    values = {"a": {"kind": "x", "size": 3}, "b": 1}
    assert apply_overrides(values, ["a.kind=y"]) == {"a": {"kind": "y"}, "b": 1}
    assert apply_overrides(values, ["a.kind=x"]) == values
    assert values == {"a": {"kind": "x", "size": 3}, "b": 1}


@pytest.mark.parametrize("kind", ["grid", "hash", "none", "kl", "vq", "rq", "fsq"])
@pytest.mark.parametrize("name", list_recipes("autoencoder"))
def test_any_bottleneck_fits_any_recipe(name: str, kind: str) -> None:
    recipe = load_recipe(name, kind="autoencoder", overrides=[f"model.bottleneck.kind={kind}"])
    assert recipe.model.bottleneck.kind == kind


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimiser.lrr=1", "--set: no key 'optimiser.lrr'; did you mean 'lr'?"),
        ("model.bottleneck.nois=0", "--set: no key 'model.bottleneck.nois'; did you mean 'noise' or 'noise_varies'?"),
        ("trainin.steps=3", "--set: no key 'trainin'; did you mean 'training'?"),
        (
            "model.bottleneck.kind=gird",
            "--set: model.bottleneck.kind = 'gird', but it should be one of: grid, hash, none, kl, vq, rq, fsq",
        ),
        ("model.decoder.kind=stile", "--set: model.decoder.kind = 'stile', but it should be one of: resnet, style"),
        ("model.decoder.with=3", "--set: no key 'model.decoder.with'; did you mean 'widths'?"),
        ("model.features.hidden=3", "--set: no key 'model.features.hidden'; did you mean 'hidden_dim'?"),
        ("training.steps=many", "--set: training.steps = 'many', but it should be a valid integer"),
        ("optimiser.lr", "--set 'optimiser.lr' is not KEY=VALUE"),
        ("name.x=1", "--set name.x: name is a value, not a block"),
        ("name=2020-13-45", "--set name: month must be in 1..12"),
        ("model={[1]: 2}", "--set model: "),
        ("loss.l1=0", "all weights are 0"),
        ("name=a/b", "--set: name = 'a/b', but it should"),
        ("training.seed=-1", "--set: training.seed = -1, but it should be greater than or equal to 0"),
        ("optimiser.lr=.inf", "--set: optimiser.lr = inf, but it should be a finite number"),
        ("model.image_size=65", "image_size 65 is not a multiple of the encoder's downsampling 8"),
    ],
)
def test_a_wrong_override_is_named_in_one_line(override: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("tiny", kind="autoencoder", overrides=[override])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoder_and_features_may_leave_their_kind_out() -> None:
    """As every recipe and checkpoint from before there was a choice does."""
    model = load_recipe("tiny", kind="autoencoder").model
    assert (model.decoder.kind, model.features.kind, model.features.upscale) == ("resnet", "mlp", 2)
    changed = load_recipe("tiny", kind="autoencoder", overrides=["model.decoder.num_blocks=3"]).model
    assert changed.decoder == model.decoder.model_copy(update={"num_blocks": 3})


def test_another_kind_of_decoder_starts_from_its_own_defaults() -> None:
    overrides = ["model.decoder.kind=style", "model.decoder.widths=[48, 32, 16]"]
    decoder = load_recipe("tiny", kind="autoencoder", overrides=overrides).model.decoder
    assert decoder.model_dump() == {"kind": "style", "widths": (48, 32, 16), "style_dim": 512, "style_layers": 8}


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'brics-256'\?"):
        load_recipe("brics-265", kind="autoencoder")


def test_a_recipe_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_path("tiny", kind="diffusion").read_text())
    with pytest.raises(UsageError, match="kind 'diffusion', and this command trains kind 'autoencoder'"):
        load_recipe(str(path), kind="autoencoder")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e3", -2500.0), ("3", 3), ("a1e4", "a1e4"), ("1.5", 1.5)]
)
def test_numbers_are_numbers(text: str, value: object) -> None:
    assert parse_yaml(text, source="test") == value


def test_a_key_written_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="line 3: key 'a' appears twice"):
        parse_yaml("b: 1\na: 1\na: 2\n", source="x.yaml")


def test_pairs_of_escapes_are_one_character_and_halves_of_them_none():
    assert parse_yaml('{"a": "\\ud83d\\ude00", "b": "é"}', source="test") == {"a": "\U0001f600", "b": "é"}
    with pytest.raises(UsageError, match=r"x\.yaml: it holds one half of a pair of escapes"):
        parse_yaml('{"a": "\\ud83d"}', source="x.yaml")


@pytest.mark.parametrize(("side", "name"), [(64, "brics-64"), (127, "brics-64"), (341, "brics-256"), (8, "brics-64")])
def test_the_default_recipe_is_the_largest_not_above_the_images(side: int, name: str) -> None:
    assert default_autoencoder_recipe(side) == name


def test_saying_the_default_kind_again_keeps_its_block() -> None:
    """Recipes leave `decoder.kind` out: setting it to what it is anyway must not empty the block."""
    said = load_recipe("tiny", kind="autoencoder", overrides=["model.decoder.kind=resnet"])
    assert said == load_recipe("tiny", kind="autoencoder")


def test_american_spellings_of_keys_are_accepted(tmp_path: Path) -> None:
    ours = load_recipe("tiny", kind="autoencoder", overrides=["optimiser.lr=3e-4"])
    assert load_recipe("tiny", kind="autoencoder", overrides=["optimizer.lr=3e-4"]) == ours
    values = ours.model_dump(mode="json")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"optimizer": values.pop("optimiser"), **values}))
    assert load_recipe(str(path), kind="autoencoder") == ours
    path.write_text(yaml.safe_dump({"optimizer": {"lr": 1e-3}, **ours.model_dump(mode="json")}))
    with pytest.raises(UsageError, match=r"mine.yaml: 'optimiser' appears twice, in both spellings"):
        load_recipe(str(path), kind="autoencoder")
