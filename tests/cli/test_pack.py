"""`brics pack` on the command line: help, and one line with the right exit code for every bad input."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from brics_cli.cli.app import run


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (10, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_bad_inputs(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("hello")
    (tmp_path / "x.tar").write_bytes(b"\0" * 100)
    for name, code, said in [
        ("nowhere", 2, "no such file or folder"),
        ("empty", 2, "is empty"),
        ("text", 5, "none of 1 images could be packed; the first, a: not an image"),
        ("x.tar", 3, "truncated"),
    ]:
        assert run(["pack", str(tmp_path / name), "--out", str(tmp_path / "out"), "--overwrite"]) == code
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and said in last


def test_bad_outputs(images, tmp_path, capfd):
    assert run(["pack", str(images)]) == 2
    assert run(["pack", str(images), "--out", str(tmp_path / "x.tar")]) == 2
    assert run(["pack", str(images), "--out", str(images)]) == 2
    assert run(["pack", str(images), "--out", str(tmp_path / "out"), "--transform", "crop"]) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("precious")
    for more in ([], ["--overwrite"]):
        assert run(["pack", str(images), "--out", str(tmp_path / "mine"), *more]) == 4
    assert (tmp_path / "mine" / "a.txt").read_text() == "precious"


def test_a_place_that_takes_no_files(images, capfd):
    assert run(["pack", str(images), "--out", "/proc/x"]) == 6
    assert "error: /proc/x cannot be written: no file can be made there" in capfd.readouterr().err


def test_streams_json_and_overwrite(images, tmp_path, capfd):
    arguments = ["pack", str(images), "--out", str(tmp_path / "out"), "--size", "4", "--shard-size", "2"]
    assert run([*arguments, "--dry-run"]) == 0
    assert "3 images" in capfd.readouterr().out and not (tmp_path / "out").exists()
    assert run([*arguments, "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["num_images"] == 3
    assert captured.err.strip().splitlines()[-1] == f"next: brics train-ae {tmp_path / 'out'}"
    assert run(arguments) == 0
    assert "nothing to do" in capfd.readouterr().err
    assert run([*arguments[:-4], "--size", "8"]) == 4
    assert run([*arguments[:-4], "--size", "8", "--overwrite", "-q"]) == 0
    captured = capfd.readouterr()
    assert "3 images in 1 shard," in captured.out


def test_max_failures_stops_early(images, tmp_path, capfd):
    for name in ("3.png", "4.png"):
        (images / name).write_text("hello")
    arguments = ["pack", str(images), "--out", str(tmp_path / "out"), "--size", "4"]
    assert run([*arguments, "--max-failures", "1"]) == 5
    assert "more than --max-failures 1" in capfd.readouterr().err
    assert run([*arguments, "--max-failures", "2"]) == 5
    assert "2 of 5 images failed, listed in" in capfd.readouterr().err


def test_options_that_do_not_go_together(images, tmp_path, capfd):
    for arguments, said in [
        (["--quality", "90"], "--quality goes with --codec jpeg, and webp is lossless"),
        (["--codec", "jpeg", "--quality", "0"], "quality"),
        (["--codec", "gif"], "codec"),
        (["--labels", "file"], "labels"),
        (["--subset", "train"], "no subset or folder 'train'"),
    ]:
        assert run(["pack", str(images), "--out", str(tmp_path / "out"), *arguments]) == 2
        last = capfd.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and said in last
        assert not (tmp_path / "out").exists()


def test_a_dry_run_measures(images, tmp_path, capfd):
    (images / "3.png").write_text("hello")
    arguments = ["pack", str(images), "--out", str(tmp_path / "out"), "--size", "32", "--dry-run"]
    assert run([*arguments, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["images"] == said["num_looked_at"] == 4 and said["num_failed"] == 1
    assert 0 < said["shard_bytes"] < said["pixel_bytes"] and said["seconds"] > 0
    assert run(arguments) == 0
    assert "(measured on 4 images; 1 of the 4 failed)" in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_help_names_every_input(capfd):
    assert run(["pack", "--help"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    for word in ("zip", "LMDB", "parquet", "--subset", "--labels", "--codec", "--quality", "manifest.json"):
        assert word in shown
