"""A throw-away PostgreSQL cluster, for the store that several brokers share.

Its data is in a folder of its own directly under the temporary folder: PostgreSQL refuses to run as root, so the user
it runs as must reach the folder, and a unix socket's path may have about 100 bytes only. It asks for no password, and
listens on loopback and on that socket. Commits don't wait for the disk: what survives a power cut is not to be tested
with it.

A cluster may be another's streaming standby, which is promoted when it is told to. What a cluster has at some moment
can be kept, and restored later.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from certplane.sandbox import parts
from certplane.sandbox.errors import SandboxError
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.process import ServerProcess, start_on_free_port

SUPERUSER = "certplane"
"""Whom its clients are."""
_UNPRIVILEGED = ("postgres", "nobody")
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
}


class PostgresCluster:
    """A running PostgreSQL. Use it as an async context manager."""

    def __init__(
        self,
        *,
        part: parts.Part | None = None,
        standby_of: PostgresCluster | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            part: the `postgres` to run, with `initdb` beside it; default: the one on this machine.
            standby_of: a running one whose changes it follows, as `standby`; default: it begins empty.
            settings: the server's, beside or in place of its own.

        Raises:
            PartMissingError: there is no PostgreSQL.
        """
        self._part = part or parts.require("postgresql")
        self._primary = standby_of
        self._settings = {**_SETTINGS, **(settings or {})}
        self._folder: Path | None = None
        self._port: int | None = None
        self._process: ServerProcess | None = None

    @property
    def port(self) -> int:
        """Its port on loopback.

        Raises:
            RuntimeError: it was not started.
        """
        if self._port is None:
            raise RuntimeError("PostgreSQL was not started")
        return self._port

    @property
    def folder(self) -> Path:
        """Where its data, its log and its socket are."""
        if self._folder is None:
            raise RuntimeError("PostgreSQL was not started")
        return self._folder

    def url(self, database: str = "postgres") -> str:
        """`postgresql://...` of a database, over loopback.

        Raises:
            RuntimeError: it was not started.
        """
        return f"postgresql://{SUPERUSER}@{LOOPBACK}:{self.port}/{database}"

    async def execute(self, statement: str) -> None:
        """Run a statement of its operator."""
        async with await psycopg.AsyncConnection.connect(self.url(), autocommit=True) as connection:
            await connection.execute(statement.encode())

    async def promote(self) -> None:
        """Let a standby become a primary; returns when it can be written."""
        await self.execute("SELECT pg_promote()")

    async def keep_copy(self) -> None:
        """Keep what it has now. It must be stopped."""
        await self._copy(self.folder / "data", self.folder / "copy")

    async def restore_copy(self) -> None:
        """Have again what was kept, and nothing of what came after. It must be stopped."""
        await self._copy(self.folder / "copy", self.folder / "data")

    async def _copy(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        copy = ServerProcess("cp", ["cp", "-a", source, target], log=self.folder / "copy.log", user=other_user())
        await copy.run_to_end()

    async def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make a database and return its URL: an empty one, or a copy of one that nobody is connected to."""
        command = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        async with await psycopg.AsyncConnection.connect(self.url(), autocommit=True) as connection:
            await connection.execute(command)
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database, cutting the connections to it. Removing nothing is no error."""
        async with await psycopg.AsyncConnection.connect(self.url(), autocommit=True) as connection:
            command = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            await connection.execute(command)

    async def __aenter__(self) -> Self:
        """Make the cluster, start it and wait until it takes connections.

        Raises:
            ServerStartError: it can't be made, or doesn't come up.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="certplane-pg-"))
        user = other_user()
        if user is not None:
            os.chown(self._folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        try:
            await self._initialise(user)
            self._process = await start_on_free_port(lambda port: self._start(port, user))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove its data."""
        if self._process is not None:
            await self._process.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def stop(self) -> None:
        """Stop it, cutting its clients off; `start` brings it back with its data."""
        if self._process is not None:
            await self._process.stop()

    def crash(self) -> None:
        """End it without a word to anybody, as a machine that fails."""
        if self._process is not None:
            self._process.kill()

    async def start(self) -> None:
        """Start it again after `stop`, on the same port."""
        if self._process is None:
            raise RuntimeError("PostgreSQL was not started")
        await self._process.start(self._takes_connections)

    async def _initialise(self, user: str | None) -> None:
        if self._primary is not None:
            await self._follow(self._primary, user)
            return
        initdb = ServerProcess(
            "initdb",
            [
                self._part.path.parent / "initdb",
                f"--pgdata={self.folder / 'data'}",
                f"--username={SUPERUSER}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ],
            log=self.folder / "initdb.log",
            user=user,
        )
        await initdb.run_to_end()

    async def _follow(self, primary: PostgresCluster, user: str | None) -> None:
        """Begin as a copy of a primary that goes on to follow it."""
        backup = ServerProcess(
            "pg_basebackup",
            [
                self._part.path.parent / "pg_basebackup",
                f"--pgdata={self.folder / 'data'}",
                f"--dbname=host={LOOPBACK} port={primary.port} user={SUPERUSER} application_name=standby",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
            ],
            log=self.folder / "basebackup.log",
            user=user,
        )
        await backup.run_to_end()

    async def _start(self, port: int, user: str | None) -> ServerProcess:
        self._port = port
        settings = {
            **self._settings,
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": str(self.folder),
        }
        process = ServerProcess(
            "PostgreSQL",
            [
                self._part.path,
                "-D",
                self.folder / "data",
                *(option for name, value in settings.items() for option in ("-c", f"{name}={value}")),
            ],
            log=self.folder / "postgres.log",
            user=user,
            stop_signal=signal.SIGINT,  # fast shutdown: SIGTERM would wait for clients to leave
        )
        await process.start(self._takes_connections)
        return process

    async def _takes_connections(self) -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(self.url(), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False


def other_user() -> str | None:
    """Whom to run as: None for ourselves, or an unprivileged user when we are root.

    Raises:
        SandboxError: we are root and there is nobody else.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise SandboxError("PostgreSQL doesn't run as root, and this machine has no other user for it")
