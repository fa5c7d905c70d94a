"""A server that speaks the few routes of the Hugging Face Hub that a pull asks for, and fails as one does."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096
"""Bytes from which on a file is kept as a large one, with a SHA-256."""

PIECE = 16 * 1024


@dataclass
class FakeHub:
    """What the server holds and how it behaves.

    Attributes:
        repositories: Contents by repository and path.
        token: What has to be said to see anything; None where nothing has to.
        refusal: Status and code that every question gets; None where they are answered.
        cut: After how many bytes an answer breaks off, by path; once.
        spoilt: Paths whose content comes with another byte in it.
        slow: Seconds of rest after each piece of a large file.
        gets: Requests for contents as they came: path, first byte asked for, whether a token came along.
        url: Where it listens.
    """

    repositories: dict[str, dict[str, bytes]]
    token: str | None = None
    refusal: tuple[int, str] | None = None
    cut: dict[str, int] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    slow: float = 0.0
    gets: list[tuple[str, int, bool]] = field(default_factory=list)
    url: str = ""

    def commit(self, repo: str) -> str:
        """Changes when the contents do."""
        digest = hashlib.sha1(repo.encode(), usedforsecurity=False)
        for path, content in sorted(self.repositories[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def tree(self, repo: str) -> list[dict[str, Any]]:
        """Files as the hub lists them."""
        return [_entry(path, content) for path, content in self.repositories[repo].items()]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serve_hub(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[FakeHub]:
    """Serves on a port of its own while its body runs."""
    hub = FakeHub(repositories={repo: dict(files) for repo, files in repositories.items()})

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self._content(path.removeprefix("/cdn/"))
            return
        if hub.refusal is not None:
            status, code = hub.refusal
            self._json(status, {"error": "refused"}, {"X-Error-Code": code} if code else {})
            return
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._json(401, {"error": "Invalid username or password."})
            return
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = "/".join(parts[:2])
        if repo not in hub.repositories:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        revision = parts[3] if len(parts) > 3 else "main"
        if revision not in ("main", "v1", hub.commit(repo)):
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/") and len(parts) > 2 and parts[2] == "tree":
            self._tree(repo)
        elif path.startswith("/api/"):
            self._json(200, {"id": repo, "sha": hub.commit(repo), "siblings": [], "tags": []})
        else:
            self._resolve(repo, "/".join(parts[4:]))

    def _tree(self, repo: str) -> None:
        """Two pages, as a large repository has them."""
        files = self.served.tree(repo)
        second = "cursor=2" in self.path
        half = (len(files) + 1) // 2
        link = {} if second else {"Link": f'<{self.served.url}{self.path}&cursor=2>; rel="next"'}
        self._json(200, files[half:] if second else files[:half], link)

    def _resolve(self, repo: str, name: str) -> None:
        hub = self.served
        if name not in hub.repositories[repo]:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = hub.repositories[repo][name]
        entry = _entry(name, content)
        headers = {"X-Repo-Commit": hub.commit(repo)}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
            # To another host, as to a content network: the token must not go there.
            cdn = hub.url.replace("127.0.0.1", "localhost")
            self._send(302, b"", headers | {"Location": f"{cdn}/cdn/{repo}/{name}"})
        elif self.command == "HEAD":
            self._send(200, content, headers | {"ETag": f'"{entry["oid"]}"'})
        else:
            self._content(f"{repo}/{name}", headers | {"ETag": f'"{entry["oid"]}"'})

    def _content(self, place: str, headers: Mapping[str, str] | None = None) -> None:
        hub = self.served
        owner, name, path = place.split("/", 2)
        content = hub.repositories[f"{owner}/{name}"][path]
        if path in hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        hub.gets.append((path, start, "Authorization" in self.headers))
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        rest = content[start:]
        limit = hub.cut.pop(path, None)
        self._send(206 if asked else 200, rest, {**(headers or {}), **extra}, limit=limit, slow=len(rest) >= LARGE)

    def _json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, limit: int | None = None, slow: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if limit is not None:
            self.close_connection = True
            body = body[:limit]
        for start in range(0, len(body), PIECE):
            try:
                self.wfile.write(body[start : start + PIECE])
            except OSError:
                return
            if slow and self.served.slow:
                time.sleep(self.served.slow)
