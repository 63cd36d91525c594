"""Texts that are too large, too deep or multiply themselves: refused, wherever brics reads one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from commands import brics, error_line
from diffusion_workspace import make_workspace
from hypothesis import given
from hypothesis import strategies as st
from image_files import noise

from brics_cli.config.loading import load_yaml, parse_yaml
from brics_cli.errors import UsageError
from brics_cli.parsing import MOST_DEPTH, parse_json, read_bytes, read_json_lines, read_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("[]{}a\\\"'"),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text("[]{}a\\\"'"), below, max_size=4),
)


@given(json_values, st.booleans(), st.booleans())
def test_whatever_is_not_deep_is_read_as_it_is(value, as_bytes, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode() if as_bytes else text) == value


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"[":'])
@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 500, 100_000, 1_000_000])
def test_deep_json_is_a_value_error(opening, depth):
    closing = {"[": "]", '{"a":': "}", '[{"[":': "}]"}[opening]
    start = time.process_time()
    with pytest.raises(ValueError, match="levels deep"):
        parse_json(opening * depth + "1" + closing * depth)
    with pytest.raises(ValueError):
        parse_json(opening * depth)
    assert time.process_time() - start < 5


def test_the_deepest_that_is_read():
    parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    with pytest.raises(ValueError, match="levels deep"):
        parse_json("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1))
    assert len(parse_json(json.dumps({"[" * 100: "{" * 100}))) == 1
    with pytest.raises(ValueError):
        parse_json("1" * 10_000)  # Python's limit on the digits of a number


def test_sizes_are_limited_by_what_is_read_not_by_what_is_said(tmp_path):
    (tmp_path / "large").write_bytes(b" " * 2000)
    for path in (tmp_path / "large", Path("/dev/zero")):
        with pytest.raises(ValueError, match="more than"):
            read_bytes(path, most=1000)
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ValueError):
        read_text(tmp_path / "text")
    (tmp_path / "lines").write_text('{"a": 1}\n[1]\n' + "[" * 5000 + '\n{"a": 2}\n{"a"')
    assert list(read_json_lines(tmp_path / "lines")) == [{"a": 1}, {"a": 2}]


LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [(LAUGHS, "aliases"), ("&a [*a]", "aliases"), ("&a {b: *a}", "aliases"), ("[" * 5000, "deep"), ("a: " * 3, "")],
)
def test_yaml_that_multiplies_itself_is_one_line(tmp_path, text, said):
    start = time.process_time()
    with pytest.raises(UsageError, match=said):
        parse_yaml(text, source="x.yaml")
    assert time.process_time() - start < 5
    (tmp_path / "x.yaml").write_text(text)
    (tmp_path / "0.png").write_bytes(noise(0))
    line = error_line(brics("train-ae", ".", "--recipe", "x.yaml", cwd=tmp_path))
    assert "x.yaml" in line and len(line) < 300


def test_yaml_aliases_that_are_meant_are_read(tmp_path):
    assert parse_yaml("a: &a [1, 2]\nb: *a", source="x")["b"] == [1, 2]
    (tmp_path / "large.yaml").write_text("#" * (2 << 20))
    with pytest.raises(UsageError, match="more than 1 MiB"):
        load_yaml(tmp_path / "large.yaml")


DEEP = {"list": "[" * 100_000 + "]" * 100_000, "object": '{"a":' * 3000 + "1" + "}" * 3000, "number": "1" * 5000}


@pytest.mark.parametrize("kind", DEEP)
def test_no_deep_json_anywhere_is_a_bug(tmp_path, kind):
    """Planted in every JSON file that commands read, one after the other: none ends with exit code 1."""
    workspace = make_workspace(tmp_path)
    images = workspace / "images"
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(noise(number))
    brics("pack", "images", "--out", "shards", "--size", 16, cwd=workspace, check=0)
    brics("encode-dataset", "shards", "--ae", "runs/autoencoder/a", "--out", "codes.h5", cwd=workspace, check=0)
    brics("eval", "--metric", "psnr", "--real", "images", "--fake", "images", "--out", "r.json", cwd=workspace, check=0)
    places = {
        "images/dataset.json": ("info", "images"),
        "images/0.json": ("encode-dataset", "images", "--ae", "runs/autoencoder/a", "--out", "new.h5"),
        "images/metadata.jsonl": ("info", "images"),
        "shards/brics.json": ("info", "shards"),
        "shards/manifest.json": ("pack", "images", "--out", "shards", "--size", 16),
        "runs/autoencoder/a/model/config.json": ("decode", "codes.h5", "--out", "decoded"),
        "runs/diffusion/d/model/config.json": ("sample", "--n", 2, "--steps", 1, "--out", "samples"),
        "runs/autoencoder/a/brics.json": ("status",),
        "r.json": ("eval", "compare", "r.json", "r.json"),
        "decoded.json": ("train-ae", "images", "--recipe", "decoded.json"),
    }
    for place, command in places.items():
        path = workspace / place
        before = path.read_bytes() if path.exists() else None
        path.write_text(DEEP[kind])
        assert brics(*command, cwd=workspace).returncode in (0, 2, 3, 4, 5), place
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.parametrize("text", ["1" * 5000, "[" + "1" * 5000 + "]", b'{"a": -' + b"1" * 5000 + b"}"])
def test_numbers_of_many_digits_are_a_value_error_of_ours(text):
    with pytest.raises(ValueError, match=r"it holds a number of more than 4,300 digits$"):
        parse_json(text)
