"""PgBouncer, a pooler before PostgreSQL: several clients share a few sessions of the server."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import psycopg

from certplane.sandbox import parts
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.postgres import SUPERUSER, PostgresCluster, other_user
from certplane.sandbox.process import ServerProcess, start_on_free_port


class PgBouncer:
    """A running PgBouncer before a cluster. Use it as an async context manager.

    It asks for no password. Its folder is the cluster's, which the user that it runs as can reach.
    """

    def __init__(
        self,
        cluster: PostgresCluster,
        *,
        pool_mode: str,
        settings: Mapping[str, str] | None = None,
        part: parts.Part | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            cluster: a running one.
            pool_mode: `session`, `transaction` or `statement`.
            settings: further lines of its section `[pgbouncer]`.
            part: the program to run; default: the one on this machine.

        Raises:
            PartMissingError: there is no PgBouncer.
        """
        self._part = part or parts.require("pgbouncer")
        self._cluster = cluster
        self._settings = {"pool_mode": pool_mode, **(settings or {})}
        self._port: int | None = None
        self._process: ServerProcess | None = None

    def url(self, database: str = "postgres") -> str:
        """`postgresql://...` of a database of the cluster, through the pooler.

        Raises:
            RuntimeError: it was not started.
        """
        if self._port is None:
            raise RuntimeError("PgBouncer was not started")
        return f"postgresql://{SUPERUSER}@{LOOPBACK}:{self._port}/{database}"

    async def __aenter__(self) -> Self:
        """Start it and wait until the database answers through it.

        Raises:
            ServerStartError: it doesn't come up.
        """
        self._process = await start_on_free_port(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            await self._process.stop()

    async def _start(self, port: int) -> ServerProcess:
        self._port = port
        settings = {
            "listen_addr": LOOPBACK,
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "any",
            **self._settings,
        }
        file = self._cluster.folder / f"pgbouncer-{port}.ini"
        file.write_text(
            f"[databases]\n* = host={LOOPBACK} port={self._cluster.port} user={SUPERUSER}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        process = ServerProcess(
            "PgBouncer",
            [self._part.path, file],
            log=self._cluster.folder / f"pgbouncer-{port}.log",
            user=other_user(),  # it refuses root, as PostgreSQL does
            stop_signal=signal.SIGTERM,
        )
        await process.start(self._answers)
        return process

    async def _answers(self) -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(
                self.url(), connect_timeout=2, prepare_threshold=None, autocommit=True
            ) as connection:
                await connection.execute("SELECT 1")
                return True
        except psycopg.OperationalError:
            return False
