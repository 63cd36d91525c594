"""A split, or one image of samples that hold several, from training to evaluation."""

from __future__ import annotations

import json
import zipfile

from image_files import noise

from brics_cli.cli.app import run


def test_a_part_of_an_archive_goes_through_training_and_encoding(tmp_path, monkeypatch, capsys):
    """What is recorded as the data of a run opens again: by --resume, by encode-dataset without DATA, by eval."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.zip", "w") as archive:
        for split, num in (("train", 6), ("val", 3)):
            for number in range(num):
                for place, field in enumerate(("left.jpg", "right.jpg")):
                    image = noise(20 * number + place + 10 * (split == "val"), 64, format="JPEG")
                    archive.writestr(f"{split}/{number}.{field}", image)
    words = ["--recipe", "tiny", "--device", "cpu", "--set", "training.batch_size=2"]
    assert run(["train-ae", "x.zip", "--image-field", "left.jpg", "--steps", "1", "--out", "ae", *words]) == 0
    assert "(the only one for training; also there: val (6 images); --subset takes another)" in capsys.readouterr().err
    assert run(["train-ae", "--resume", "ae", "--steps", "2", "--device", "cpu"]) == 0
    assert run(["encode-dataset", "--ae", "ae", "--out", "c.h5", "--device", "cpu"]) == 0
    assert f"encoding {tmp_path}/x.zip/train/*.left.jpg: 6 images, zip" in capsys.readouterr().err
    assert run(["eval", "--metric", "psnr", "--fake", "c.h5", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["num_fake"] == 6
