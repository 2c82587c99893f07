"""Real services that serve a certificate over TLS on this machine: nginx, and HAProxy with its combined file.

Each runs in the foreground of its own process group, as the test's user, with all of its files in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import ssl
from pathlib import Path

import psutil
from cryptography import x509

from certplane.sandbox.parts import Part
from certplane.sandbox.process import ServerProcess, accepts_tcp, start_on_free_port
from tests.support.waiting import no_hang


class TlsService:
    """One service. `pair` is the folder with `web.key`, `web.pem` and `web.combined`."""

    template = ""

    def __init__(self, part: Part, folder: Path, pair: Path) -> None:
        self.part = part
        self.folder = folder
        self.pair = pair
        self.port = 0
        self._process: ServerProcess | None = None
        folder.mkdir()

    @property
    def config(self) -> Path:
        return self.folder / "service.conf"

    @property
    def pid_file(self) -> Path:
        return self.folder / "service.pid"

    @property
    def reload_command(self) -> str:
        """What an operator would write."""
        raise NotImplementedError

    @property
    def argv(self) -> list[str | Path]:
        raise NotImplementedError

    async def start(self) -> None:
        """Start, the first time on a port of its own choice, later on that port again."""
        if self.port:
            await self._start(self.port)
        else:
            await start_on_free_port(self._start)

    async def _start(self, port: int) -> None:
        self.config.write_text(self.template.format(port=port, folder=self.folder, pair=self.pair))
        process = ServerProcess(self.part.name, self.argv, self.folder / "log")

        async def ready() -> bool:
            return await accepts_tcp("127.0.0.1", port)

        await process.start(ready)
        self._process, self.port = process, port

    def break_config(self) -> None:
        """What an operator does who makes a mistake: no reload succeeds until it is mended."""
        self.config.write_text(self.config.read_text() + "\nthis is no directive of any server\n")

    def mend_config(self) -> None:
        self.config.write_text(self.template.format(port=self.port, folder=self.folder, pair=self.pair))

    def kill(self) -> None:
        """SIGKILL for all of it."""
        assert self._process is not None
        self._process.kill()

    def freeze(self) -> None:
        """Stop every process: connections are accepted by the kernel, and never answered."""
        for process in self._family():
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._family():
            process.send_signal(signal.SIGCONT)

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    async def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.thaw()
            await self._process.stop()


class Nginx(TlsService):
    """nginx with key and full chain in two files."""

    template = """\
daemon off;
user root;
worker_processes 1;
pid {folder}/service.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name web.example;
        ssl_certificate {pair}/web.pem;
        ssl_certificate_key {pair}/web.key;
        return 200 "ok";
    }}
}}
"""

    @property
    def argv(self) -> list[str | Path]:
        return [self.part.path, "-e", "stderr", "-c", self.config]

    @property
    def reload_command(self) -> str:
        return shlex.join([str(self.part.path), "-e", "stderr", "-c", str(self.config), "-s", "reload"])


class Haproxy(TlsService):
    """HAProxy in master-worker mode with the combined file."""

    template = """\
global
    log stderr format raw local0 warning
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend web
    bind 127.0.0.1:{port} ssl crt {pair}/web.combined
    http-request return status 200
"""

    @property
    def argv(self) -> list[str | Path]:
        return [self.part.path, "-W", "-p", self.pid_file, "-f", self.config]

    @property
    def reload_command(self) -> str:
        check = shlex.join([str(self.part.path), "-c", "-f", str(self.config)])
        return f"{check} && kill -USR2 $(head -n 1 {shlex.quote(str(self.pid_file))})"


async def served_serial(port: int) -> str:
    """The serial number of the leaf that a client is shown, hexadecimal."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with no_hang():
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="web.example")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return format(x509.load_der_x509_certificate(der).serial_number, "x")
