"""A Hub on this machine: what huggingface_hub asks of one to create, read and update model repositories over HTTP.

Files of 8 kB or more go through LFS and are read from another origin, as on the real Hub. Faults can be injected: the
next requests that match are refused, broken off, or answered only after they took effect.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_LoopbackSecretToken"
LFS_BYTES = 8192
Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches point to commits, a commit is its files."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, branch: str, files: Files) -> str:
        text = f"{len(self.commits)}" + "".join(f"{n}{hashlib.sha1(c).hexdigest()}" for n, c in sorted(files.items()))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Fault:
    """What happens to the next `times` requests that match.

    action: an HTTP status; "cut" breaks the connection off before the body is read; "lose" does what was asked and
    breaks off in place of the answer.
    """

    method: str
    path: str
    action: int | str
    times: int = 1


class LoopbackHub:
    """State of the server, for tests to prepare and look at."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens_seen_by_storage: list[str] = []
        self.before_commit: Callable[[Repository], Any] | None = None
        self.corrupt: Callable[[str, bytes], bytes] | None = None
        self.lock = threading.RLock()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.port}"

    def fail(self, method: str, path: str, action: int | str, times: int = 1) -> None:
        self.faults.append(Fault(method, path, action, times))

    def files(self, repo_id: str, revision: str = "main") -> Files:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision) or ""]

    def take_fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.action
        return None


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    """A Hub that answers until the block ends."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message, self.code, self.headers = status, message, code, headers


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        # %2F inside a branch name stays one part of the path
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        action = self.hub.take_fault(self.command, unquote(url.path))
        if action == "cut":
            self._break_off()
            return
        self.body = self._read_body()
        try:
            if isinstance(action, int):
                raise _Refused(action, f"injected {action}")
            with self.hub.lock:
                answer = self._route(parts, query)
        except _Refused as refusal:
            headers = {"X-Error-Message": refusal.message, **refusal.headers}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)
            return
        if action == "lose":
            self._break_off()
        elif isinstance(answer, tuple):
            self._send(*answer)
        else:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self, parts: list[str], query: dict[str, str]) -> Any:
        match self.command, parts:
            case "PUT", ["storage", oid]:
                return self._store(oid)
            case "GET" | "HEAD", ["storage", oid]:
                self.hub.tokens_seen_by_storage += self.headers.get_all("Authorization", [])
                return 200, self.hub.blobs[oid], {"ETag": f'"{oid}"'}
            case "GET" | "HEAD", [user, name, "resolve", revision, *path]:
                return self._read_file(f"{user}/{name}", revision, "/".join(path))
            case "GET", ["api", "models", user, name]:
                return self._info(f"{user}/{name}", "main")
            case "GET", ["api", "models", user, name, "revision", revision]:
                return self._info(f"{user}/{name}", revision)
            case "GET", ["api", "models", user, name, "tree", revision, *_]:
                return self._tree(f"{user}/{name}", revision)
        self._check_token()
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                return self._create()
            case "POST", ["api", "validate-yaml"]:
                return {"errors": [], "warnings": []}
            case "POST", ["api", "models", user, name, "branch", branch]:
                return self._branch(f"{user}/{name}", branch)
            case "POST", ["api", "models", user, name, "preupload", revision]:
                return self._upload_modes(f"{user}/{name}", revision)
            case "POST", [user, name, "info", "lfs", "objects", "batch"]:
                return self._lfs_batch()
            case "POST", ["api", "models", user, name, "commit", revision]:
                return self._commit(f"{user}/{name}", revision, "create_pr" in query)
        raise _Refused(404, f"no such route: {self.command} {self.path}")

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _Refused(401 if repository else 404, "Repository not found", "RepoNotFound")
        return repository

    def _at(self, repo_id: str, revision: str) -> tuple[str, Files]:
        repository = self._repository(repo_id)
        oid = repository.resolve(revision)
        if oid is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repository.commits[oid]

    def _create(self) -> Any:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            body = json.dumps({**answer, "error": "You already created this model repo"}).encode()
            return 409, body, {"X-Error-Message": "You already created this model repo"}
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = self.hub.repositories[repo_id] = Repository(bool(private))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return answer

    def _branch(self, repo_id: str, branch: str) -> Any:
        repository = self._repository(repo_id)
        if branch in repository.branches:
            raise _Refused(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        return {}

    def _info(self, repo_id: str, revision: str) -> dict[str, Any]:
        oid, files = self._at(repo_id, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        return {"id": repo_id, "sha": oid, "private": self._repository(repo_id).private, "siblings": siblings}

    def _tree(self, repo_id: str, revision: str) -> list[dict[str, Any]]:
        return [_entry(name, content) for name, content in sorted(self._at(repo_id, revision)[1].items())]

    def _upload_modes(self, repo_id: str, revision: str) -> dict[str, Any]:
        known = self._at(repo_id, revision)[1]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_BYTES else "regular",
                "shouldIgnore": False,
                "oid": _blob_id(known[file["path"]]) if file["path"] in known else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return {"files": modes}

    def _lfs_batch(self) -> dict[str, Any]:
        body = json.loads(self.body)
        objects = []
        for asked in body["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.storage}/storage/{asked['oid']}"}}
            objects.append(entry)
        # as on the real Hub, which takes Xet where it is offered; there is none behind this one
        return {"transfer": "xet" if "xet" in body["transfers"] else "basic", "objects": objects}

    def _store(self, oid: str) -> Any:
        self.hub.tokens_seen_by_storage += self.headers.get_all("Authorization", [])
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content does not have this hash")
        self.hub.blobs[oid] = self.body
        return {}

    def _commit(self, repo_id: str, revision: str, create_pr: bool) -> dict[str, Any]:
        repository = self._repository(repo_id)
        if self.hub.before_commit:
            self.hub.before_commit(repository)
        oid, files = self._at(repo_id, revision)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", oid) != oid:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "deletedFile":
                del files[path]
                continue
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.blobs:
                content = self.hub.blobs[value["oid"]]
            else:
                raise _Refused(400, f"LFS object of {path} was not uploaded")
            files[path] = self.hub.corrupt(path, content) if self.hub.corrupt else content
        answer = {}
        if create_pr:
            repository.pull_requests += 1
            revision = f"refs/pr/{repository.pull_requests}"
            url = f"{self.hub.endpoint}/{repo_id}/discussions/{repository.pull_requests}"
            answer["pullRequestUrl"] = url
        new = repository.commit(revision, files)
        return {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{new}", "commitOid": new, **answer}

    def _read_file(self, repo_id: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        oid, files = self._at(repo_id, revision)
        headers = {"X-Repo-Commit": oid}
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound", **headers)
        content = files[path]
        if len(content) < LFS_BYTES:
            return 200, content, {**headers, "ETag": f'"{_blob_id(content)}"'}
        digest = _blob_id(content)
        self.hub.blobs.setdefault(digest, content)
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return 302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/storage/{digest}"}


def _blob_id(content: bytes) -> str:
    """What the Hub compares to see whether a file has changed: git's hash, or the hash of a large file's content."""
    if len(content) >= LFS_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if len(content) >= LFS_BYTES:
        entry["lfs"] = {"oid": _blob_id(content), "size": len(content), "pointerSize": 130}
    return entry
