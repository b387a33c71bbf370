"""An imitation of the Hub on this machine, for the real client: what it reads, what it writes, and how it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import pytest

Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: the files of each commit, and the commit of each branch."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add files to a branch."""
        together = {**self.files(branch), **files}
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(together)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = together, sha
        return sha

    def files(self, revision: str = "main") -> Files:
        """Return the files of a branch or commit."""
        return self.commits.get(self.branches.get(revision, revision), {})


class Hub:
    """The server. ``fault`` decides for each request (method, path) how it fails, if it does: see :class:`Handler`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []

    def add(self, name: str, folder: Path, into: str = "", branch: str = "main", **options: bool) -> Repository:
        """Put the files of a folder into a repository."""
        repository = self.repositories.setdefault(name, Repository(**options))
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        repository.commit({f"{into}{name}": path.read_bytes() for name, path in files.items()}, branch)
        return repository

    def fails(self, how: str, where: str, times: int = 10**9) -> None:
        """Let the next requests that match a pattern, "GET .*safetensors" for example, fail."""
        left = [times]

        def fault(method: str, path: str) -> str | None:
            if not re.fullmatch(where, f"{method} {path}") or not left[0]:
                return None
            left[0] -= 1
            return how

        self.fault = fault


class Handler(BaseHTTPRequestHandler):
    """Answers requests. Faults are a status, "500" for example, "drop", "truncate" and "garble"."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self._read()
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append((self.command, path))
        self.fault = self.hub.fault(self.command, path)
        if self.fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif self.fault and self.fault.isdigit():
            self._send(int(self.fault), {})
        else:
            self._route(path)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, path: str) -> None:
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*file.groups())
        elif path == "/api/repos/create":
            wanted = json.loads(self.body)
            name = f"{wanted.get('organization') or 'you'}/{wanted['name']}"
            known = self.hub.repositories.setdefault(name, Repository(commits={"0" * 40: {}}, branches={}))
            known.branches.setdefault("main", "0" * 40)
            self._json({"url": f"http://127.0.0.1/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+))?(?:/(.+))?", path):
            self._api(*api.groups())
        else:
            self._send(404, {})

    def _allowed(self, name: str) -> Repository | None:
        repository, token = self.hub.repositories.get(name), self.headers.get("Authorization")
        if repository is None or (repository.private and not token):
            self._send(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self._send(403, {"X-Error-Code": "GatedRepo"})
        else:
            return repository
        return None

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        elif path not in repository.commits[sha]:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        else:
            content = repository.commits[sha][path]
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, content)

    def _api(self, name: str, what: str | None, rest: str | None) -> None:
        repository = self._allowed(name)
        if repository is None:
            return
        if what == "refs":
            refs = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repository.branches.items()]
            self._json({"branches": refs, "tags": [], "converts": []})
        elif what == "branch":
            repository.branches.setdefault(rest, repository.branches["main"])
            self._json({})
        elif what == "tree":
            files = repository.files(rest.split("/")[0])
            self._json([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()])
        elif what == "preupload":
            files = json.loads(self.body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif what == "commit":
            lines = [json.loads(line) for line in self.body.splitlines() if line]
            files = [line["value"] for line in lines if line["key"] == "file"]
            sha = repository.commit({f["path"]: base64.b64decode(f["content"]) for f in files}, rest)
            self._json({"commitOid": sha, "commitUrl": f"http://127.0.0.1/{name}/commit/{sha}"})
        else:
            files = [{"rfilename": path} for path in repository.files(rest or "main")]
            self._json({"id": name, "sha": repository.branches["main"], "siblings": files})

    def _json(self, content: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        if self.fault == "garble":
            content = b"\xff" * len(content)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)


@contextmanager
def running_hub(cache: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """Run the server; also return the settings with which another process finds it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub, {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(cache)}
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run the server and let the client of this process use it, without waiting between its attempts."""
    with running_hub(cache) as (hub, settings):
        endpoint, constants = settings["HF_ENDPOINT"], huggingface_hub.constants
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        patch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr("time.sleep", lambda seconds: None)
        yield hub
