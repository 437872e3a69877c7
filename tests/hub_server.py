"""A Hub to publish to and load from, for tests: the routes of docs/HUB.md on 127.0.0.1, with a log and faults on demand.

    with HubServer() as hub:
        hub.endpoint                               # for HF_ENDPOINT of a client in a process of its own
        hub.fault("commit", "cut", times=1)        # the next request of that route breaks off
        hub.log                                    # every request, in order

The large files lie on a second port, as the real Hub's do. Nothing is written to disk. `python tests/hub_server.py`
serves until Ctrl-C, to try commands by hand.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_tests"


@dataclass
class Blob:
    """Content of one file; of a large one `lfs` is true. `claims` is the size that is told instead of the true one."""

    content: bytes
    lfs: bool = False
    claims: int | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def size(self) -> int:
        return len(self.content) if self.claims is None else self.claims

    def listed(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "oid": self.git, "size": self.size}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return entry

    def sibling(self, path: str) -> dict:
        entry = {"rfilename": path, "blobId": self.git, "size": self.size}
        if self.lfs:
            entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 130}
        return entry


@dataclass
class Repo:
    """Commits by their id, and what names them; `branches` holds pull requests as refs/pr/N too."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], branch: str = "main") -> str:
        """Make `files` the content of a new head of the branch."""
        names = "".join(f"{path}{blob.sha256}" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.branches.get(revision) or self.tags.get(revision)
        return oid or (revision if revision in self.commits else None)

    def head(self, branch: str = "main") -> dict[str, Blob]:
        return self.commits[self.branches[branch]]


@dataclass
class Request:
    route: str
    method: str
    path: str
    token: str | None
    body: bytes
    status: int | None = None  # None: the connection was cut


@dataclass
class Fault:
    """kind: cut, cut_after, half, flip, slow, page (of a proxy) or a status code."""

    kind: str | int
    times: int
    seconds: float = 0.0


class HubServer:
    """The state of the Hub, and the two servers in threads."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: dict[str, Fault] = {}
        self.before: dict[str, Callable[[], object]] = {}  # called once, at the next request of a route
        self.lock = threading.RLock()
        servers = [ThreadingHTTPServer(("127.0.0.1", p), _handler(self)) for p in (port, 0)]
        self.servers = servers
        self.endpoint, self.storage = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def fault(self, route: str, kind: str | int, times: int = 10**6, seconds: float = 0.0) -> None:
        self.faults[route] = Fault(kind, times, seconds)

    def reset(self) -> None:
        """Forget faults and the log; repositories stay."""
        self.faults.clear()
        self.before.clear()
        self.log.clear()

    def add(self, repo_id: str, files: dict[str, bytes | Blob], private: bool = False) -> str:
        """A repository with one commit, as somebody else published it."""
        repo = self.repos[repo_id] = Repo(private)
        blobs = {p: c if isinstance(c, Blob) else Blob(c, p.endswith(".safetensors")) for p, c in files.items()}
        return repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n"), **blobs})

    def routes(self) -> list[str]:
        return [request.route for request in self.log]


ROUTES = [  # name, method, pattern
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)"),
    ("tag", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<rev>[^/]+)"),
    ("untag", "DELETE", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<rev>[^/]+)"),
    ("refs", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs"),
    ("tree", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)"),
    ("info", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("verify", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/verify"),
    ("resolve", "GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)"),
    ("resolve", "HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)"),
    ("put", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})"),
    ("storage", "GET", r"/storage/(?P<oid>[0-9a-f]{64})"),
]
WRITES = ("create", "preupload", "commit", "tag", "untag", "batch", "verify")


class Cut(Exception):
    """The connection is to be closed without an answer."""


class Answer(Exception):
    """An answer that ends the handling."""

    def __init__(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, dict(headers or {})
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def refuse(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            url = urlsplit(self.path)
            route, found = "unknown", None
            for name, method, pattern in ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, url.path)):
                    route = name
                    break
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            request = Request(route, self.command, unquote(self.path), token, b"")
            with hub.lock:
                hub.log.append(request)
                if action := hub.before.pop(route, None):
                    action()
                fault = hub.faults.get(route)
                if fault is not None and fault.times == 0:
                    fault = None
                elif fault is not None:
                    fault.times -= 1
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if fault is not None and fault.kind == "cut":
                    self.rfile.read(length // 2)
                    raise Cut
                if self.headers.get("Transfer-Encoding") == "chunked":
                    request.body = self._chunks()
                else:
                    request.body = self.rfile.read(length)
                if fault is not None and fault.kind == "slow":
                    time.sleep(fault.seconds)
                if fault is not None and fault.kind == "page":
                    raise Answer(200, b"<html>Log in to this network</html>", {"Content-Type": "text/html"})
                if fault is not None and isinstance(fault.kind, int):
                    raise Answer(fault.kind, {"error": "on demand"}, {"Retry-After": "0"})
                names = {k: unquote(v) for k, v in (found.groupdict() if found else {}).items() if v is not None}
                try:
                    self.authorise(route, request, names)
                    with hub.lock:
                        getattr(self, f"do_{route}")(request, parse_qs(url.query), **names)
                except Answer as answer:
                    if fault is not None and fault.kind == "cut_after":
                        raise Cut from None
                    self.send(request, answer, fault)
            except Answer as answer:
                self.send(request, answer, None)
            except (Cut, ConnectionError):
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client was faster
                    self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

        def _chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def send(self, request: Request, answer: Answer, fault: Fault | None) -> None:
            body, headers = answer.body, answer.headers
            if fault is not None and fault.kind == "flip" and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            request.status = answer.status
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                if fault is not None and fault.kind == "half":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    raise Cut
                self.wfile.write(body)

        # --- who may -------------------------------------------------------------------------------------------------

        def authorise(self, route: str, request: Request, names: dict[str, str]) -> None:
            if route in ("put", "storage"):
                assert request.token is None, "a token went to the storage"
                return
            if request.token is not None and request.token != TOKEN:
                raise refuse(401, "", "Invalid credentials in Authorization header")
            if route in WRITES and request.token is None:
                raise refuse(401, "", "Invalid username or password.")
            repo = hub.repos.get(names.get("repo", ""))
            if "repo" in names and (repo is None or (repo.private and request.token is None)):
                raise refuse(404 if request.token else 401, "RepoNotFound", "Repository not found")
            if "rev" in names and route not in ("untag", "resolve") and repo.find(names["rev"]) is None:
                raise refuse(404, "RevisionNotFound", f"Invalid rev id: {names['rev']}")

        # --- the routes ----------------------------------------------------------------------------------------------

        def do_unknown(self, request: Request, query: dict) -> None:
            raise refuse(404, "", f"no route {request.method} {request.path}")

        def do_create(self, request: Request, query: dict) -> None:
            wanted = json.loads(request.body)
            repo_id = f"{wanted['organization']}/{wanted['name']}"
            url = {"url": f"{hub.endpoint}/{repo_id}"}
            if repo_id in hub.repos:
                raise Answer(409, url)
            repo = hub.repos[repo_id] = Repo(wanted.get("visibility") == "private")
            repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n")})
            raise Answer(200, url)

        def do_validate(self, request: Request, query: dict) -> None:
            content = json.loads(request.body)["content"]
            if not content.startswith("---\n") or "license:" not in content:
                raise Answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
            raise Answer(200, {"errors": [], "warnings": []})

        def do_preupload(self, request: Request, query: dict, repo: str, rev: str) -> None:
            there = hub.repos[repo].commits[hub.repos[repo].find(rev)]
            files = []
            for wanted in json.loads(request.body)["files"]:
                path, lfs = wanted["path"], wanted["path"].endswith((".safetensors", ".bin"))
                entry = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                if path in there:
                    entry["oid"] = there[path].sha256 if lfs else there[path].git
                files.append(entry)
            raise Answer(200, {"files": files})

        def do_batch(self, request: Request, query: dict, repo: str) -> None:
            objects = []
            for wanted in json.loads(request.body)["objects"]:
                entry = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in hub.objects:
                    entry["actions"] = {
                        "upload": {"href": f"{hub.storage}/storage/{wanted['oid']}", "header": {}},
                        "verify": {"href": f"{hub.endpoint}/{repo}.git/info/lfs/verify"},
                    }
                objects.append(entry)
            raise Answer(200, {"transfer": "basic", "objects": objects})

        def do_put(self, request: Request, query: dict, oid: str) -> None:
            if hashlib.sha256(request.body).hexdigest() != oid:
                raise Answer(400, {"error": "sha256 differs"})
            hub.objects[oid] = request.body
            raise Answer(200)

        def do_verify(self, request: Request, query: dict, repo: str) -> None:
            wanted = json.loads(request.body)
            if len(hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
                raise Answer(404, {"error": "not stored"})
            raise Answer(200, {})

        def do_commit(self, request: Request, query: dict, repo: str, rev: str) -> None:
            here = hub.repos[repo]
            head = here.find(rev)
            files = dict(here.commits[head])
            for line in request.body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "header" and value.get("parentCommit", head) != head:
                    raise refuse(412, "", "A commit has happened since. Please refresh and try again.")
                if entry["key"] == "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]))
                if entry["key"] == "lfsFile":
                    files[value["path"]] = Blob(hub.objects[value["oid"]], lfs=True)
            if query.get("create_pr"):
                number = 1 + sum(name.startswith("refs/pr/") for name in here.branches)
                oid = here.commit(files, f"refs/pr/{number}")
                pull = {"pullRequestUrl": f"{hub.endpoint}/{repo}/discussions/{number}"}
            else:
                oid, pull = here.commit(files, rev), {}
            raise Answer(200, {"commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}", **pull})

        def do_tag(self, request: Request, query: dict, repo: str, rev: str) -> None:
            name = json.loads(request.body)["tag"]
            if name in hub.repos[repo].tags:
                raise Answer(409, {"error": "Tag exists"})
            hub.repos[repo].tags[name] = hub.repos[repo].find(rev)
            raise Answer(200, {})

        def do_untag(self, request: Request, query: dict, repo: str, rev: str) -> None:
            if hub.repos[repo].tags.pop(rev, None) is None:
                raise refuse(404, "RevisionNotFound", "no such tag")
            raise Answer(200, {})

        def do_refs(self, request: Request, query: dict, repo: str) -> None:
            def listed(names: dict[str, str], kind: str) -> list[dict]:
                return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in names.items()]

            here = hub.repos[repo]
            raise Answer(
                200, {"branches": listed(here.branches, "heads"), "tags": listed(here.tags, "tags"), "converts": []}
            )

        def do_tree(self, request: Request, query: dict, repo: str, rev: str) -> None:
            here = hub.repos[repo]
            raise Answer(200, [blob.listed(path) for path, blob in here.commits[here.find(rev)].items()])

        def do_info(self, request: Request, query: dict, repo: str, rev: str = "main") -> None:
            here = hub.repos[repo]
            oid = here.find(rev)
            siblings = [blob.sibling(path) for path, blob in here.commits[oid].items()]
            raise Answer(200, {"id": repo, "sha": oid, "private": here.private, "siblings": siblings})

        def do_resolve(self, request: Request, query: dict, repo: str, rev: str, file: str) -> None:
            here = hub.repos[repo]
            oid = here.find(rev)
            if oid is None:
                raise refuse(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            blob = here.commits[oid].get(file)
            if blob is None:
                answer = refuse(404, "EntryNotFound", f"Entry not found: {file}")
                answer.headers["X-Repo-Commit"] = oid
                raise answer
            if not blob.lfs:
                raise Answer(200, blob.content, {"X-Repo-Commit": oid, "ETag": f'"{blob.git}"'})
            hub.objects.setdefault(blob.sha256, blob.content)
            headers = {
                "X-Repo-Commit": oid,
                "X-Linked-ETag": f'"{blob.sha256}"',
                "X-Linked-Size": str(blob.size),
                "Location": f"{hub.storage}/storage/{blob.sha256}",
            }
            raise Answer(302, b"", headers)

        def do_storage(self, request: Request, query: dict, oid: str) -> None:
            content = hub.objects[oid]
            start = self.headers.get("Range")
            if start:
                first = int(start.removeprefix("bytes=").rstrip("-"))
                part = content[first:]
                raise Answer(206, part, {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"})
            raise Answer(200, content)

    return Handler


if __name__ == "__main__":
    with HubServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as served:
        print(f"export HF_ENDPOINT={served.endpoint} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
        threading.Event().wait()
