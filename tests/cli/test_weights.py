"""`brics weights`: what is printed where, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brics_cli.cli.app import run
from brics_cli.errors import ExitCode
from brics_cli.networks.registry import WEIGHTS


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, and empty places of the peers."""
    monkeypatch.setenv("BRICS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "weights"


def test_list_says_what_is_missing_and_what_comes_next(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "list"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    for known in WEIGHTS.values():
        assert known.id in out
    assert f"brics keeps weights in {root}" in err
    assert err.splitlines()[-1] == "next: brics weights fetch inception"


def test_urls_are_one_a_line_for_curl_and_the_commands_bring_all_weights_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "list", "--urls"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert out.splitlines() == [known.url for known in WEIGHTS.values() if known.sha256 is not None and not known.extra]
    by_hand = "curl -LO {0.url}; then brics weights import {0.file} --allow-unverified --as {0.id}"
    unknown = [by_hand.format(known) for known in WEIGHTS.values() if known.sha256 is None]
    assert unknown and all(line in err for line in unknown)
    assert err.splitlines()[-1] == "next: brics weights import ."


def test_json_holds_the_whole_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights", "list", "--json"]) == ExitCode.DONE
    rows = json.loads(capsys.readouterr().out)
    assert {row["id"]: row["sha256"] for row in rows} == {known.id: known.sha256 for known in WEIGHTS.values()}
    assert {row["state"] for row in rows if not WEIGHTS[row["id"]].extra} == {"missing"}


def test_import_and_verify_of_an_unknown_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = tmp_path / "download.bin"
    unknown.write_bytes(b"not the published bytes")
    assert run(["weights", "import", str(unknown)]) == ExitCode.ARTEFACT
    assert run(["weights", "verify"]) == ExitCode.DONE
    assert run(["weights", "import", str(unknown), "--allow-unverified", "--as", "inception"]) == ExitCode.DONE
    capsys.readouterr()
    assert run(["weights", "verify"]) == ExitCode.ARTEFACT
    assert f"{root / 'inception-2015-12-05.pt'} is not the published inception-2015-12-05.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["import", "/no/such/file"], ExitCode.USAGE),
        (["import", "/etc/hostname", "--as", "inceptoin", "--allow-unverified"], ExitCode.USAGE),
        (["import", "/etc/hostname", "--as", "inception"], ExitCode.USAGE),
        (["fetch", "inceptoin"], ExitCode.USAGE),
        (["fetch", "inception"], ExitCode.MACHINE),
        (["lsit"], ExitCode.USAGE),
    ],
)
def test_bad_words_end_with_one_line(
    words: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICS_OFFLINE", "1")
    assert run(["weights", *words]) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
