"""Which classes a model has, what they are called, and which one a seed draws."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brics_cli.diffusion.classes import Classes
from brics_cli.errors import UsageError

SEEDS = range(4000)


def of(*labels: int, names: tuple[str, ...] = ()) -> Classes:
    return Classes.of(np.array(labels, np.int64), names)


def test_only_classes_with_images_are_drawn():
    classes = of(1, 2, 2, 2, -1)
    assert (classes.num, classes.counts, classes.present) == (3, (0, 1, 3), [1, 2])
    proportional, even = Counter(classes.draw(SEEDS)), Counter(classes.draw(SEEDS, "even"))
    assert set(proportional) == set(even) == {1, 2}
    assert proportional[2] / len(SEEDS) == pytest.approx(0.75, abs=0.03)  # 4 standard deviations
    assert even[2] / len(SEEDS) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-1, 9), min_size=1), st.integers(0, 2**62), st.sampled_from([None, "proportional", "even"]))
def test_a_draw_has_images_and_depends_on_its_seed_alone(labels, seed, balance):
    classes = of(*labels)
    if classes.num == 0:
        assert set(labels) == {-1}
        return
    drawn = classes.draw(range(seed, seed + 5), balance)
    assert set(drawn) <= set(labels) - {-1}
    assert classes.draw([seed + 3, seed], balance) == [drawn[3], drawn[0]]


def test_a_model_from_before_counts_draws_as_it_did():
    generator_of = lambda seed: np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 3]))  # noqa: E731
    expected = [int(generator_of(seed).integers(5)) for seed in range(50)]
    assert Classes(5).draw(range(50)) == Classes(5).draw(range(50), "even") == expected
    assert Classes(5, counts=(1,) * 5).draw(range(50), "even") == expected


def test_no_class_at_all():
    assert of(-1, -1) == of() == Classes() and Classes().present == []


@pytest.mark.parametrize(("text", "number"), [("cats", 0), ("dogs", 2), ("2", 2), ("0", 0)])
def test_a_class_by_name_or_number(text, number):
    assert of(0, 2, names=("cats", "birds", "dogs")).find(text, where="m") == number


def test_a_name_of_digits_goes_before_the_number():
    assert of(0, 1, names=("1", "1000")).find("1", where="m") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("birds", "--class birds: m was trained on no image of it, only on cats (1 image), dogs (2 images)"),
        ("1", "--class birds: m was trained on no image of it"),
        ("3", "--class 3: m has classes 0 to 2"),
        ("cat", "--class cat: m has no such class; did you mean 'cats'?"),
        ("-1", "--class -1: m has no such class; there are: cats, dogs"),
        ("²", "has no such class"),
        ("9" * 400, "has no such class"),
    ],
)
def test_a_class_that_is_not_there_is_refused_by_name(text, said):
    with pytest.raises(UsageError, match=r"^--class") as raised:
        of(0, 2, 2, names=("cats", "birds", "dogs")).find(text, where="m")
    assert said in str(raised.value)


def test_many_classes_are_listed_in_part():
    listed = of(*range(30)).listed()
    assert listed.startswith("0 (1 image), 1 (1 image)") and listed.endswith("and 20 more")
