"""A hub of one repo on this machine, with its file store at another origin, as the real one has."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "org/repo"
COMMIT = "a" * 40


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Hub:
    """What it has and how it answers; tests change it between requests.

    `pushes` are files that change the repo, each with the next answer of the store; what a commit had stays.
    `stored` takes the place of a file's bytes where they are fetched, `cuts` are numbers of bytes after which the next
    answers of the store break off, `refusal` (status, error code) answers everything, `head` overrides headers of a
    file (None: leaves one out).
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    past: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pushes: list[dict[str, bytes]] = field(default_factory=list)
    endpoint: str = ""
    store: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    knows_ranges: bool = True
    refusal: tuple[int, str] | None = None
    head: dict[str, str | None] = field(default_factory=dict)
    listing: bytes | None = None
    asked: list[Asked] = field(default_factory=list)

    def push(self, files: dict[str, bytes]) -> None:
        self.past[self.commit] = self.files
        self.commit, self.files = f"{len(self.past):040x}", self.files | files

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a commit or of `main`; None if there is none of that name."""
        return self.files if revision in ("main", self.commit) else self.past.get(revision)

    def of_store(self) -> list[Asked]:
        return [each for each in self.asked if each.path.startswith("/store/")]

    def ranges(self) -> list[str | None]:
        """Of the requests to the store."""
        return [each.headers.get("range") for each in self.of_store()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(Asked(self.command, path, {key.lower(): each for key, each in self.headers.items()}))
            if hub.refusal:
                self._send(hub.refusal[0], {"X-Error-Code": hub.refusal[1]})
            elif path.startswith("/store/"):
                commit, _, name = path.removeprefix("/store/").partition("/")
                self._send_bytes(commit, name)
            elif path.startswith(f"/api/models/{REPO}/tree/"):
                names = json.dumps([{"type": "file", "path": name} for name in hub.files]).encode()
                self._send(200, {}, names if hub.listing is None else hub.listing)
            elif path.startswith(f"/{REPO}/resolve/"):
                revision, _, name = path.removeprefix(f"/{REPO}/resolve/").partition("/")
                self._send_file_head(revision, name)
            else:
                self._send(401, {"X-Error-Code": "RepoNotFound"})

        def _send_file_head(self, revision: str, name: str) -> None:
            commit, files = hub.commit if revision == "main" else revision, hub.at(revision)
            if files is None:
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
            elif name not in files:
                self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            else:
                data = files[name]
                said: dict[str, str | None] = {
                    "Location": f"{hub.store}/store/{commit}/{name}",
                    "X-Repo-Commit": commit,
                    "X-Linked-ETag": f'"{sha256(data)}"',
                    "X-Linked-Size": str(len(data)),
                }
                self._send(302, {key: each for key, each in (said | hub.head).items() if each is not None})

        def _send_bytes(self, commit: str, name: str) -> None:
            data = hub.stored.get(name) or (hub.at(commit) or {})[name]
            if hub.pushes:
                hub.push(hub.pushes.pop(0))
            wanted = self.headers.get("Range") if hub.knows_ranges else None
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            said = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
            cut = hub.cuts.pop(0) if hub.cuts else None
            self._send(206 if wanted else 200, said, data[start:], cut=cut)

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"", *, cut: int | None = None) -> None:
            self.send_response(status)
            for key, each in headers.items():
                self.send_header(key, each)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
            self.close_connection = cut is not None

    with _server(Handler) as hub.endpoint, _server(Handler) as hub.store:
        yield hub


@contextmanager
def _server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
