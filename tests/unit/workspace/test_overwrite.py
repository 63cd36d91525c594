"""What --overwrite may remove: an output of the same kind, and nothing that anybody needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from brics_cli.errors import WouldOverwriteError
from brics_cli.workspace import Artefact, check_output, write_provenance


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"pixels")
    write_provenance(Artefact("shards", folder, "2026-01-01T00:00:00"))
    return folder


def overwrite(path: Path, *, kind: str, inputs: tuple[str, ...] = ()) -> None:
    check_output(path, overwrite=True, what="the output", kind=kind, inputs=inputs)


def test_an_output_of_the_same_kind_is_emptied(shards: Path) -> None:
    overwrite(shards, kind="shards", inputs=("/elsewhere",))
    assert not shards.exists()


def test_another_kind_stays(shards: Path) -> None:
    with pytest.raises(WouldOverwriteError, match="kind 'shards', and --overwrite replaces kind 'samples' alone"):
        overwrite(shards, kind="samples")
    assert (shards / "00000.tar").exists()


@pytest.mark.parametrize("text", ["", "/00000.tar", "/{00000..00000}.tar", "/precious"])
def test_what_the_command_reads_stays(shards: Path, text: str) -> None:
    with pytest.raises(WouldOverwriteError, match="which this command reads"):
        overwrite(shards, kind="shards", inputs=(f"{shards}{text}",))
    assert (shards / "00000.tar").exists()


def test_a_directory_with_other_artefacts_in_it_stays(shards: Path) -> None:
    (shards / "run").mkdir()
    write_provenance(Artefact("samples", shards / "run", "2026-01-01T00:00:00"))
    with pytest.raises(WouldOverwriteError, match="holds other artefacts"):
        overwrite(shards, kind="shards")
