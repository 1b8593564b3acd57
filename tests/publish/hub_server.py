"""The Hugging Face hub as far as publishing sees it, on loopback, over HTTP: the real client talks to it.

A stand-in, for tests must not write to the real one. What it answers was read from the client's own source
(huggingface_hub 1.33: hf_api, _commit_api, lfs) and holds the client to it: a commit may only name large files that
were sent whole, with the digest that they have.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 512
"""Bytes from which on a file is a large one; the real hub goes by its name and 10 MB."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Hub:
    """What the hub holds, what it was asked, and what shall go wrong: (method, pattern of the path, status or act)."""

    url: str = ""
    key: str = "hf_" + "k" * 34
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuses_cards: str = ""
    faults: list[tuple[str, str, int | Callable[[], None]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.asked)

    def fault(self, method: str, path: str) -> int | Callable[[], None] | None:
        with self.lock:
            for number, (verb, pattern, what) in enumerate(self.faults):
                if verb == method and re.search(pattern, path):
                    del self.faults[number]
                    return what
        return None


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub of its own, for as long as the block lasts."""
    hub = Hub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    held: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.held
        with hub.lock:
            hub.asked.append(f"{method} {path}")
        fault = hub.fault(method, path)
        if callable(fault):  # before the body is read: a connection that breaks in the middle
            fault()
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if fault is not None:
            self._send(fault, {"error": "it was not to be"})
        elif method != "PUT" and self.headers.get("authorization") != f"Bearer {hub.key}":
            self._send(401, {"error": "who are you?"})
        else:
            self._route(method, path, body)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _route(self, method: str, path: str, body: bytes) -> None:
        hub = self.held
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            errors = [{"message": hub.refuses_cards}] if hub.refuses_cards else []
            return self._send(200, {"errors": errors, "warnings": []})
        if found := re.fullmatch(r"/large/([0-9a-f]{64})", path):
            return self._keep(found[1], body)
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/main/(.+)", path):
            return self._resolve(method, f"{found[1] or 'models/'}{found[2]}", found[3])
        found = re.fullmatch(
            r"/api/((?:models|datasets)/[\w.-]+/[\w.-]+)(?:/(preupload|commit|tree|revision)/main)?", path
        )
        repository = hub.repositories.get(found[1]) if found else None
        if not found or repository is None:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self._of_repository(repository, found[1], found[2] or "", body)

    def _of_repository(self, repository: Repository, name: str, what: str, body: bytes) -> None:
        if what == "preupload":
            asked = json.loads(body)["files"]
            self._send(200, {"files": [self._preupload(repository, file) for file in asked]})
        elif what == "commit":
            self._commit(repository, name, body)
        elif what == "tree":
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": _git_id(data)}
                for path, data in repository.files.items()
            ]
            self._send(200, files)
        else:
            self._send(
                200,
                {
                    "id": name.partition("/")[2],
                    "private": repository.private,
                    "sha": "0" * 40,
                    "tags": [],
                    "siblings": [],
                },
            )

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        with self.held.lock:
            exists = name in self.held.repositories
            self.held.repositories.setdefault(name, Repository(private))
        self._send(409 if exists else 200, {"url": f"{self.held.url}/{name.removeprefix('models/')}"})

    def _preupload(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["size"] >= LARGE
        there = repository.files.get(file["path"])
        oid = None if there is None else hashlib.sha256(there).hexdigest() if is_large else _git_id(there)
        return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _batch(self, asked: dict[str, Any]) -> None:
        assert asked["operation"] == "upload"
        objects = []
        for wanted in asked["objects"]:
            told: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.held.objects:
                told["actions"] = {"upload": {"href": f"{self.held.url}/large/{wanted['oid']}"}}
            objects.append(told)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _keep(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "these are other bytes"})
        with self.held.lock:
            self.held.objects[oid] = body
        return self._send(200, {})

    def _commit(self, repository: Repository, name: str, body: bytes) -> None:
        files, commit = dict(repository.files), {"changes": []}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                commit |= value
                continue
            commit["changes"].append(value["path"])
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.held.objects:
                    return self._send(400, {"error": f"{value['path']} was never sent"})
                files[value["path"]] = self.held.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        with self.held.lock:
            repository.files = files
            repository.commits.append(commit)
        oid = f"{len(repository.commits):040x}"
        url = f"{self.held.url}/{name.removeprefix('models/')}/commit/{oid}"
        return self._send(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def _resolve(self, method: str, name: str, path: str) -> None:
        repository = self.held.repositories.get(name)
        data = repository.files.get(path) if repository else None
        if data is None:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        more = {"ETag": f'"{_git_id(data)}"', "X-Repo-Commit": "0" * 39 + "1", "Content-Length": str(len(data))}
        return self._send(200, data, more)

    def _send(self, status: int, said: Any, more: dict[str, str] | None = None) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (more or {})
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _git_id(data: bytes) -> str:
    """The name that git gives a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
