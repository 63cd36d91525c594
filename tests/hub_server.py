"""A Hugging Face Hub of a test's own: the endpoints by which huggingface_hub reads, makes and fills repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a-token-of-the-tests"


@dataclass
class Repository:
    """Its commits, (sha, files by name), the newest last. `private`: without TOKEN it is not there."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes | None]) -> str:
        """Add, replace and (None) delete files; the sha of the commit."""
        before = self.commits[-1][1] if self.commits else {}
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((sha, {name: data for name, data in {**before, **files}.items() if data is not None}))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """What the server holds: repositories by `models/user/name`, uploads by sha256, and every request it was sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.is_down = False
        self.url = ""

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """Commit `files` to `repo`, which is made if it is not there; the sha of the commit."""
        return self.repositories.setdefault(repo, Repository(private)).commit(files)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, value: Any = None, *, status: int = 200, data: bytes | None = None, **headers: str) -> None:
        body = data if data is not None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status=status, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.hub.is_down:
            return self.refuse(503, "Down")
        if self.command in ("POST", "PUT") and not has_token and not path.startswith(("/upload/", "/api/validate")):
            return self.refuse(401, "NoToken")
        if self.command == "PUT":
            self.hub.uploads[path.removeprefix("/upload/")] = body
            return self.answer(data=b"")
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer({"objects": [self.upload_of(each) for each in json.loads(body)["objects"]]})
        asked = re.fullmatch(r"/api/(models|datasets)/(\w+/[\w-]+)(?:/(\w+)(?:/([^/]+))?)?(?:/.*)?", path)
        file = re.fullmatch(r"/(?:(datasets)/)?(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path)
        found = asked or file
        if found is None:
            return self.refuse(404, "NoSuchPlace")
        repository = self.hub.repositories.get(f"{found[1] or 'models'}/{found[2]}")
        if repository is None or (repository.private and not has_token):
            return self.refuse(401, "RepoNotFound")
        if asked is not None and asked[3] == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": each["path"], "uploadMode": "regular" if each["path"].endswith((".json", ".md")) else "lfs",
                 "shouldIgnore": False}
                for each in files
            ]  # fmt: skip
            return self.answer({"files": modes})
        if asked is not None and asked[3] == "commit":
            return self.commit(repository, [json.loads(line) for line in body.splitlines()])
        commit = repository.at(found[4] or "main" if asked else found[3])
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        sha, contents = commit
        if asked is None:
            return self.send_file(sha, contents.get(found[4]))
        rows = [
            {"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in contents.items()
        ]
        if asked[3] == "tree":
            inside = path.partition(f"/tree/{asked[4]}")[2].strip("/")
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            return self.answer(tree(rows, f"{inside}/" if inside else "", recursive=recursive))
        return self.answer({"id": found[2], "sha": sha, "private": repository.private, "siblings": rows})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('type', 'model')}s/{asked.get('organization') or 'user'}/{asked['name']}"
        if name in self.hub.repositories:
            return self.answer({"error": "exists", "url": f"{self.hub.url}/{name}"}, status=409)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.hub.repositories[name].commit({})
        return self.answer({"url": f"{self.hub.url}/{name.removeprefix('models/')}"})

    def upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}"}}
        return {**wanted, **({} if wanted["oid"] in self.hub.uploads else {"actions": upload})}

    def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        files: dict[str, bytes | None] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                files[value["path"]] = None
        sha = repository.commit(files)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/user/name/commit/{sha}"})

    def send_file(self, sha: str, data: bytes | None) -> None:
        if data is None:
            return self.refuse(404, "EntryNotFound")
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.answer(data=data, ETag=tag, X_Repo_Commit=sha)


def tree(rows: list[dict[str, Any]], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Those of the files `rows` that are in `folder`, or below it, and its folders."""
    inside = [row for row in rows if row["path"].startswith(folder)]
    here = [row for row in inside if recursive or "/" not in row["path"].removeprefix(folder)]
    folders = {folder + row["path"].removeprefix(folder).partition("/")[0] for row in inside if row not in here}
    return [*here, *({"type": "directory", "path": each, "oid": each, "size": 0} for each in sorted(folders))]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on this machine while the block runs, empty at first."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
