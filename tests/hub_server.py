"""A Hub of datasets and models on this machine, as far as pushing and loading need it; its files live in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["hub"]

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_LARGE = (".parquet", ".safetensors")


def _sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Hub:
    """What the server holds: files by repository and path, and uploads by hash."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}

    def head(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted((p, _sha1(d)) for p, d in self.repos[repo].items())).encode()).hexdigest()

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        found = {"type": "file", "path": path, "size": len(data), "oid": _sha1(data)}
        return found | ({"lfs": large} if path.endswith(_LARGE) else {})

    def tree(self, repo: str, folder: str) -> list[dict[str, Any]]:
        inside = f"{folder}/" if folder else ""
        files = {path: data for path, data in self.repos[repo].items() if path.startswith(inside)}
        folders = {path[: path.index("/", len(inside))] for path in files if "/" in path[len(inside) :]}
        return [{"type": "directory", "path": path, "size": 0, "oid": _sha1(path.encode())} for path in folders] + [
            self.entry(path, data) for path, data in files.items()
        ]

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                self.repos[repo].pop(value["path"], None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: _Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, content: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, kind: str) -> None:
        self._send({"error": kind}, 404, {"X-Error-Code": kind})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _file(self, repo: str, path: str) -> None:
        data = self.state.repos[repo].get(path)
        if data is None:
            return self._missing("EntryNotFound")
        headers = {"ETag": f'"{_sha1(data)}"', "X-Repo-Commit": self.state.head(repo), "Accept-Ranges": "bytes"}
        if path.endswith(_LARGE):
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        if asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(data[first : last + 1], 206, headers)
        return self._send(data, 200, headers)

    def _api(self, repo: str, verb: str | None, rest: str, body: bytes) -> None:
        base = f"http://{self.headers['Host']}"
        if verb == "tree":
            found = self.state.tree(repo, rest)
            return self._send(found) if found or not rest else self._missing("EntryNotFound")
        if verb == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(_LARGE) else "regular" for name in names]
            return self._send(
                {
                    "files": [
                        {"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(names, modes, strict=True)
                    ]
                }
            )
        if verb == "paths-info":
            text = body.decode()
            wanted = json.loads(text)["paths"] if text[:1] == "{" else parse_qs(text).get("paths", [])
            files = self.state.repos[repo]
            return self._send([self.state.entry(path, files[path]) for path in wanted if path in files])
        if verb == "commit":
            self.state.commit(repo, [json.loads(line) for line in body.decode().splitlines()])
            return self._send({"success": True, "commitOid": self.state.head(repo), "commitUrl": f"{base}/{repo}"})
        if verb == "refs":
            return self._send({"branches": [], "tags": [], "converts": []})
        names = [{"rfilename": path} for path in self.state.repos[repo]]
        facts = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return self._send({"_id": "0", "id": repo, "sha": self.state.head(repo), "siblings": names, **facts})

    def _answer(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/whoami-v2":
            return self._send({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.state.repos.setdefault(repo, {})
            return self._send({"url": f"http://{self.headers['Host']}/datasets/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            self.state.uploads[path.removeprefix("/lfs/")] = body
            return self._send({})
        if path.endswith(".git/info/lfs/objects/batch"):
            place = f"http://{self.headers['Host']}/lfs"
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{place}/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._send({"transfer": "basic", "objects": objects})
        file = re.fullmatch(rf"/(?:datasets/)?{_REPO}/resolve/[^/]+/(?P<path>.+)", path)
        api = re.fullmatch(
            rf"/api/(?:datasets|models)/{_REPO}(?:/(?P<verb>[a-z-]+)(?:/[^/]+(?:/(?P<rest>.*))?)?)?", path
        )
        found = file or api
        if found is None or found["repo"] not in self.state.repos:
            return self._missing("RepoNotFound")
        if file:
            return self._file(file["repo"], file["path"])
        assert api is not None  # one of the two has matched
        return self._api(api["repo"], api["verb"], api["rest"] or "", body)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()


@contextmanager
def hub() -> Iterator[str]:
    """A running server; gives its URL, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": _Hub()}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
