"""A server of Vault's KV API on loopback that takes a request only if it has exactly the published shape.

Path, method, headers and body are those of the API documentation of KV versions 1 and 2, errors those that a real Vault
1.21 gave to the same requests. A wrong path, a missing token, a body, a query or a header of `X-` that the API doesn't
know is an error of the test: `mistakes` names it, and the answer is 400.
"""

from __future__ import annotations

import json
import ssl
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.http_server import LoopbackHandler, LoopbackServer

KNOWN_HEADERS = frozenset({"x-vault-token", "x-vault-request", "x-vault-namespace"})
FAMILIAR_HEADERS = frozenset({"host", "accept", "accept-encoding", "connection", "user-agent"})
Answer = tuple[int, tuple[tuple[str, str], ...], bytes]


@dataclass
class VaultServer:
    """HTTPS, or plain HTTP without a folder for its certificate; use it as a context manager.

    Attributes:
        folder: for the server's certificate; None for plain HTTP.
        version: of the KV store.
        mount: where it is mounted.
        token: the one that may read.
        namespace: that the store is in.
        entries: by path, each with its fields; None is a deleted version.
        sealed: whether the vault is.
        script: the next answers, whatever is asked.
        requests: the paths asked for.
        mistakes: what was wrong with requests.
    """

    folder: Path | None = None
    version: int = 2
    mount: str = "secret"
    token: str = "hvs.CAESIJ-correct"
    namespace: str = ""
    entries: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    sealed: bool = False
    script: deque[Answer] = field(default_factory=deque)
    requests: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        context = None
        if self.folder is not None:
            ca = CertificateAuthority.root("Vault Test Root")
            self.roots = self.folder / "vault-roots.pem"
            self.roots.write_bytes(ca.pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*ca.issue("127.0.0.1", ["127.0.0.1"]).write(self.folder, "vault"))
        self._server = _Server(self, context)
        self._server.run()
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, failed: object = None, *_: object) -> None:
        self._server.stop()
        assert failed or not self.mistakes, self.mistakes

    def serve(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append(target)
        if self.script:
            return self.script.popleft()
        if problem := self._mistake(method, target, headers, body):
            self.mistakes.append(problem)
            return _errors(400, problem)
        if self.sealed:
            return _errors(503, "Vault is sealed")
        if headers["x-vault-token"] != self.token:
            return _errors(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        path = unquote(urlsplit(target).path).removeprefix("/v1/")
        if headers.get("x-vault-namespace", "") != self.namespace or not path.startswith(f"{self.mount}/"):
            return _errors(404, f'no handler for route "{path}". route entry not found.')
        return self._entry(path.removeprefix(f"{self.mount}/"))

    def _mistake(self, method: str, target: str, headers: dict[str, str], body: bytes) -> str:
        parts = urlsplit(target)
        if method != "GET" or body or "content-length" in headers:
            return f"{method} with {len(body)} bytes, where entries are read with GET and nothing"
        if parts.query or not parts.path.startswith("/v1/") or "//" in parts.path:
            return f"the path {target}"
        if strange := headers.keys() - KNOWN_HEADERS - FAMILIAR_HEADERS:
            return f"the headers {sorted(strange)}"
        if not headers.get("x-vault-token"):
            return "no X-Vault-Token"
        if headers.get("x-vault-request") != "true":
            return "no X-Vault-Request: true"
        return ""

    def _entry(self, path: str) -> Answer:
        if self.version == 2:
            kind, _, path = path.partition("/")
            if kind != "data":
                return _errors(404)
        if path not in self.entries:
            return _errors(404)
        fields = self.entries[path]
        data: Any = fields
        if self.version == 2:
            metadata = {"created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": False, "version": 1}
            metadata |= {"custom_metadata": None, "deletion_time": "" if fields else "2026-01-02T00:00:00Z"}
            data = {"data": fields, "metadata": metadata}
        elif fields is None:
            return _errors(404)
        lease = {"request_id": "0b6a0c14", "lease_id": "", "renewable": False, "lease_duration": 0}
        content = {**lease, "data": data, "wrap_info": None, "warnings": None, "auth": None, "mount_type": "kv"}
        return 200 if fields else 404, (), json.dumps(content).encode()


def _errors(status: int, *errors: str) -> Answer:
    return status, (), json.dumps({"errors": errors}).encode()


class _Server(LoopbackServer):
    def __init__(self, vault: VaultServer, context: Any) -> None:
        super().__init__("the vault", 0, _Handler, context)
        self.vault = vault


class _Handler(LoopbackHandler):
    def reply(self, method: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.body()
        status, extra, content = cast("_Server", self.server).vault.serve(method, self.path, headers, body)
        self.answer(status, content, "application/json", extra)
