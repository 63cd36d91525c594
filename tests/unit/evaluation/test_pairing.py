"""Images are paired by key, never by position."""

from __future__ import annotations

import pytest

from brics_cli.errors import UsageError
from brics_cli.evaluation.pairing import match_keys
from brics_cli.evaluation.registry import metric
from brics_cli.workspace.naming import flat_name


def partners(real: list[str], fake: list[str]) -> dict[str, str]:
    pairing = match_keys(real, fake)
    return {real[r]: fake[f] for r, f in zip(pairing.real, pairing.fake, strict=True)}


def test_equal_keys_in_any_order() -> None:
    assert partners(["b", "a", "c"], ["c", "d", "a"]) == {"a": "a", "c": "c"}


def test_directories_in_front_of_either_side() -> None:
    real = ["train-0/cat", "train-0/dog"]
    assert partners(real, ["00000/train-0/dog", "00000/train-0/cat"]) == {
        "train-0/cat": "00000/train-0/cat",
        "train-0/dog": "00000/train-0/dog",
    }
    assert partners(["x/train-0/cat"], ["train-0/cat"]) == {"x/train-0/cat": "train-0/cat"}


def test_names_in_a_flat_folder_stand_for_keys() -> None:
    keys = ["t/cat", "t/a%2Fb", "t/a/b", "t/" + "x" * 300, "猫/.1"]
    flat = [flat_name(key) for key in keys]
    assert partners(keys, flat) == dict(zip(keys, flat, strict=True))
    assert partners(flat, keys) == dict(zip(flat, keys, strict=True))
    assert partners(flat, flat) == dict(zip(flat, flat, strict=True))
    assert partners(["cat", "dog"], ["t%2Fcat", "00000%2Ft%2Fdog"]) == {"cat": "t%2Fcat", "dog": "00000%2Ft%2Fdog"}
    assert partners(["0/cat", "1/cat"], ["0%2Fcat", "1%2Fcat"]) == {"0/cat": "0%2Fcat", "1/cat": "1%2Fcat"}


def test_a_name_is_compared_as_a_whole() -> None:
    assert partners(["concat"], ["cat"]) == {}


def test_the_ambiguous_has_no_partner() -> None:
    pairing = match_keys(["0/cat", "1/cat", "0/dog"], ["cat", "dog"])
    assert (pairing.real, pairing.fake) == ([2], [1])
    assert (pairing.unmatched_real, pairing.unmatched_fake) == ([0, 1], [0])


def test_a_repeated_key_has_no_partner() -> None:
    pairing = match_keys(["a", "a", "b"], ["a", "b"])
    assert (pairing.real, pairing.fake, pairing.unmatched_real) == ([2], [1], [0, 1])


def test_an_exact_partner_beats_one_with_directories() -> None:
    assert partners(["cat", "0/cat"], ["cat"]) == {"cat": "cat"}


def test_pairs_follow_the_order_of_the_originals() -> None:
    pairing = match_keys(["c", "a", "b"], ["a", "b", "c"])
    assert (pairing.real, pairing.fake) == ([0, 1, 2], [2, 0, 1])


def test_an_unknown_metric_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'clip-fid'"):
        metric("clip_fid")
    with pytest.raises(
        UsageError, match=r"there are: psnr, ssim, ms-ssim, lpips, .* neighbours, diffusability, and all"
    ):
        metric("q")
