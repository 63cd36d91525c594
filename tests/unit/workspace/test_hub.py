"""Models and stores on the Hugging Face Hub: addresses, what is downloaded, the cache, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub

from brics_cli.errors import ArtefactError, BricsError, MachineError, UsageError
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.workspace.hub import Address, address_in_cache, fetch, parse_address

MODEL = {
    "config.json": json.dumps({"format_version": 1, "kind": "autoencoder"}).encode(),
    "model.safetensors": b"weights",
    "README.md": b"card",
    "pictures/curves.png": b"picture",
}
A_COMMIT = "0123456789" * 4


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def read(text: str, heard: Heard | None = None) -> Path:
    address = parse_address(text)
    assert address is not None
    return fetch(address, reporter=heard)


def refused(text: str, kind: type[BricsError] = ArtefactError) -> str:
    with pytest.raises(kind) as error:
        read(text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://user/name", Address("user/name")),
        ("hf://user/name/", Address("user/name")),
        ("hf://models/user/name", Address("user/name")),
        ("hf://datasets/user/na.me", Address("user/na.me", "datasets")),
        ("hf://datasets/name", Address("datasets/name")),
        ("hf://user/name@v1.0", Address("user/name", revision="v1.0")),
        ("hf://user/name@refs%2Fpr%2F1/sub/folder", Address("user/name", "models", "refs/pr/1", "sub/folder")),
        (f"hf://user/name@{A_COMMIT}/codes.h5", Address("user/name", "models", A_COMMIT, "codes.h5")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == parse_address(Path(text)) == parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["hf://", "hf://name", "hf://user/na me", "hf://user/name/../x", "hf://user/name@"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no place on the Hub"):
        parse_address(text)
    assert parse_address("runs/hf:/user") is None


def test_a_model_is_downloaded_once_and_its_commit_is_known(hub: Hub) -> None:
    commit, heard = hub.add("models/user/name", MODEL), Heard()
    path = read("hf://user/name", heard)
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert not (path / "pictures").exists()
    assert heard.messages == [f"hf://user/name is at {commit}, downloading 3 files, 0.0 MB"]
    assert address_in_cache(path) == Address("user/name", revision=commit)
    hub.requests.clear()
    assert read("hf://user/name", heard) == path
    assert heard.messages[-1] == f"hf://user/name is at {commit}, in the cache"
    assert not any("resolve" in request for request in hub.requests)
    hub.requests.clear()
    assert read(f"hf://user/name@{commit}") == path
    assert not hub.requests


def test_without_a_network_the_cache_is_taken_and_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, heard = hub.add("models/user/name", MODEL), Heard()
    path = read("hf://user/name")
    second = hub.add("models/user/name", {"model.safetensors": b"better"})
    for why in ("down", "BRICS_OFFLINE"):
        if why == "down":
            hub.is_down = True
        else:
            monkeypatch.setenv("BRICS_OFFLINE", "1")
        hub.requests.clear()
        assert read("hf://user/name", heard) == path
        assert f"hf://user/name as it was last seen, {first}" in heard.warnings[-1]
        assert f"@{second} is not in the cache" in refused(f"hf://user/name@{second}", MachineError)
        assert bool(hub.requests) == (why == "down")
    hub.is_down = False
    monkeypatch.delenv("BRICS_OFFLINE")
    assert (read("hf://user/name") / "model.safetensors").read_bytes() == b"better"
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_a_download_that_broke_off_is_not_taken_for_whole(hub: Hub) -> None:
    commit = hub.add("models/user/name", MODEL)
    path = read("hf://user/name")
    (path / "model.safetensors").unlink()
    hub.is_down = True
    assert "is not in the cache" in refused(f"hf://user/name@{commit}", MachineError)
    hub.is_down = False
    assert (read(f"hf://user/name@{commit}") / "model.safetensors").read_bytes() == b"weights"


def test_runs_folders_and_stores(hub: Hub) -> None:
    hub.add("models/user/run", {f"model/{name}": data for name, data in MODEL.items()})
    assert (read("hf://user/run") / "model" / "config.json").is_file()
    hub.add("models/user/many", {f"of/{name}": data for name, data in MODEL.items()} | {"other/x.bin": b"x"})
    assert (read("hf://user/many/of") / "config.json").is_file()
    hub.add("datasets/user/codes", {"codes.h5": b"codes"} | {f"autoencoder/{name}": MODEL[name] for name in MODEL})
    store = read("hf://datasets/user/codes")
    assert store.read_bytes() == b"codes"
    assert (store.parent / "autoencoder" / "model.safetensors").is_file()
    assert read("hf://datasets/user/codes/codes.h5") == store
    hub.add("datasets/user/codes", {"b.h5": b"more codes"})
    assert "none of the 2 stores there. Name one: hf://datasets/user/codes/b.h5" in refused("hf://datasets/user/codes")
    assert read("hf://datasets/user/codes/b.h5").read_bytes() == b"more codes"


def test_what_is_not_brics_is_refused_before_its_weights_are_downloaded(hub: Hub) -> None:
    hub.add("models/user/vit", {"config.json": b'{"architectures": []}', "model.safetensors": b"weights"})
    assert "is of something else" in refused("hf://user/vit")
    hub.add("models/user/pickle", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    assert refused("hf://user/pickle").endswith("pytorch_model.bin is a pickle, and brics opens none")
    hub.add("models/user/empty", {"README.md": b""})
    assert "holds no model" in refused("hf://user/empty")
    assert "holds no model" in refused("hf://user/vit/sub")
    downloads = [request for request in hub.requests if "/resolve/" in request]
    assert all(request.endswith("/config.json") for request in downloads), downloads


def test_absent_private_and_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"hf://user/none is not on {hub.url}, or is private or gated" in refused("hf://user/none")
    hub.add("models/user/secret", MODEL, private=True)
    assert "is private or gated" in refused("hf://user/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    assert "hf_of" not in refused("hf://user/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read("hf://user/secret").is_dir()
    assert "has no revision v2 of hf://user/secret" in refused("hf://user/secret@v2")
    assert f"has no revision {A_COMMIT}" in refused(f"hf://user/secret@{A_COMMIT}/sub")
