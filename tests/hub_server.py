"""Small Hub on localhost: the part of its HTTP protocol that the real client uses, with injected faults.

Supports create, whoami, validate-yaml, info, tree, branch, preupload, LFS batch, PUT and verify. A commit is atomic,
with `parentCommit`, and resolve redirects LFS files, as on the Hub. Data is kept in memory. Xet is not supported.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writersecret", "hf_readersecret"
RIGHTS = {f"Bearer {WRITER}": "write", f"Bearer {READER}": "read"}
CUT, LOSE_ANSWER = "cut", "lose the answer"


@dataclass
class Repository:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, ref: str, files: dict[str, bytes]) -> str:
        commit = os.urandom(20).hex()
        self.commits[commit], self.refs[ref] = files, commit
        return commit

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """Fault for the next `times` matching requests: a status, CUT within the body, or LOSE_ANSWER after execution."""

    method: str
    path: str
    answer: int | str
    times: int = 1


class Hub(ThreadingHTTPServer):
    """Server in a thread of the tests. `url` is the value for HF_ENDPOINT."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"  # a different host for the client
        self.lock = threading.Lock()
        self.upload_began = threading.Event()
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.on_preupload: Callable[[], None] | None = None
        self.upload_began.clear()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.find(revision)]

    def fault_for(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.answer
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        if self.fault == LOSE_ANSWER:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.fault = self.server.fault_for(self.command, path)
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT":
            self.server.upload_began.set()
        if self.fault == CUT:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = (
            self.read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        )
        if isinstance(self.fault, int):
            self.fail(self.fault, "", "on order")
            return
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                getattr(self, action)(**match.groupdict())
                return
        self.fail(404, "EntryNotFound", f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def right(self) -> str | None:
        return RIGHTS.get(self.headers.get("Authorization", ""))

    def repository(self, repo_id: str, write: bool = False) -> Repository | None:
        """Return the repository if this request may access it. Otherwise send the error."""
        actual = self.server.repositories.get(repo_id)
        if actual is None or (actual.private and self.right is None):
            self.fail(404 if self.right else 401, "RepoNotFound", "Repository not found")
            return None
        if write and self.right != "write":
            self.fail(403 if self.right else 401, "", "You do not have write access")
            return None
        return actual

    def create(self) -> None:
        expected = json.loads(self.body)
        repo_id = f"{expected['organization']}/{expected['name']}"
        if self.right != "write":
            self.fail(403 if self.right else 401, "", "You don't have the rights to create a model")
        elif repo_id in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{repo_id}"})
        else:
            repository = Repository(private=expected.get("visibility") == "private" or expected.get("private") is True)
            repository.add("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            self.server.repositories[repo_id] = repository
            self.answer(200, {"url": f"{self.server.url}/{repo_id}"})

    def whoami(self) -> None:
        if self.right:
            self.answer(200, {"name": "user", "type": "user"})
        else:
            self.fail(401, "", "Invalid username or password.")

    def validate_yaml(self) -> None:
        ok = json.loads(self.body)["content"].startswith("---\n")
        self.answer(200 if ok else 400, {"errors": [] if ok else [{"message": "no metadata"}], "warnings": []})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        self.answer(200, {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings})

    def tree(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id)
        if repository is not None:
            files = repository.commits[repository.find(revision)]
            self.answer(200, [self.entry(path, content) for path, content in files.items()])

    def entry(self, path: str, content: bytes) -> dict:
        actual = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}
        return actual | (lfs if is_large(path) else {})

    def branch(self, repo_id: str, name: str) -> None:
        repository = self.repository(repo_id, write=True)
        if repository is not None:
            exists = name in repository.refs
            repository.refs.setdefault(name, repository.refs["main"])
            self.answer(409 if exists else 200, {"error": "Reference already exists"} if exists else {})

    def preupload(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        if repository is None:
            return
        if self.server.on_preupload:
            self.server.on_preupload()
        there = repository.commits[repository.find(revision)]
        self.answer(200, {"files": [self.mode(file["path"], there) for file in json.loads(self.body)["files"]]})

    def mode(self, path: str, there: dict[str, bytes]) -> dict:
        large = is_large(path)
        hashed = hashlib.sha256(there[path]).hexdigest() if large and path in there else git_hash(there.get(path, b""))
        stored = {"oid": hashed} if path in there else {}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False} | stored

    def batch(self, repo_id: str) -> None:
        if self.repository(repo_id, write=True) is None:
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            links = {action: {"href": f"{self.server.url}/lfs/{item['oid']}"} for action in ("upload", "verify")}
            objects.append(item if item["oid"] in self.server.objects else item | {"actions": links})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.fail(400, "", "The content is not what its hash says")
            return
        self.server.objects[oid] = self.body
        self.answer(200)

    def verify(self, oid: str) -> None:
        self.answer(200 if oid in self.server.objects else 404)

    def commit(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        if repository is None:
            return
        with self.server.lock:
            head = repository.find(revision)
            files = dict(repository.commits[head])
            for line in self.body.splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                if key == "header" and value.get("parentCommit", head) != head:
                    self.fail(412, "", "A commit has happened since. Please refresh and try again.")
                    return
                if key == "lfsFile" and value["oid"] not in self.server.objects:
                    self.fail(400, "", f"{value['path']} was never uploaded")
                    return
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
            commit = repository.add(revision, files)
        url = f"{self.server.url}/{repo_id}/commit/{commit}"
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.repository(repo_id)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path not in repository.commits[commit]:
            self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit)
        elif is_large(path):
            content = repository.commits[commit][path]
            oid = hashlib.sha256(content).hexdigest()
            self.server.objects[oid] = content
            linked = {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(content))}
            self.answer(302, X_Repo_Commit=commit, Location=f"{self.server.cdn}/lfs/{oid}", **linked)
        else:
            content = repository.commits[commit][path]
            self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{git_hash(content)}"')

    def download(self, oid: str) -> None:
        if "Authorization" in self.headers:
            self.fail(400, "", "The token is none of the CDN's business")
            return
        self.answer(200, self.server.objects[oid], ETag=f'"{oid}"')


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


ID = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", f"/api/models/{ID}", "info"),
    ("GET", f"/api/models/{ID}/revision/(?P<revision>.+)", "info"),
    ("GET", f"/api/models/{ID}/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", f"/api/models/{ID}/branch/(?P<name>.+)", "branch"),
    ("POST", f"/api/models/{ID}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "upload"),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})", "verify"),
    ("GET HEAD", "/lfs/(?P<oid>[0-9a-f]{64})", "download"),
    ("POST", f"/api/models/{ID}/commit/(?P<revision>.+)", "commit"),
    ("GET HEAD", f"/{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
