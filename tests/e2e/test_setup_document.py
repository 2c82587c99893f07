"""docs/setup.md as it is written: its commands and files, in their order, bring a host its certificate.

Users, units and the three machines are left out: folders of the test stand in for the machines, and the sandbox's CA and
DNS server for those of the world.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.sandbox import parts, servers
from certplane.sandbox.loopback import free_port
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer
from certplane.sandbox.process import ServerProcess, accepts_tcp
from tests.support.parts import need_part
from tests.support.waiting import HANG, no_hang

pytestmark = pytest.mark.e2e

_DOCUMENT = (Path(__file__).parents[2] / "docs" / "setup.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```|^## ([^\n]+)$", re.MULTILINE | re.DOTALL)
_NAME = "www.certplane.test"


@dataclass(frozen=True)
class Block:
    """A fenced block of the document, and the chapter that it stands in."""

    chapter: str
    language: str
    text: str


def blocks() -> list[Block]:
    found, chapter = [], ""
    for language, text, heading in _BLOCK.findall(_DOCUMENT):
        if heading:
            chapter = heading
        else:
            found.append(Block(chapter, language, text))
    return found


class Machines:
    """Folders for machines, ports for their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_port, self.broker_port, self.service_port = free_port(), free_port(), free_port()
        (folder / "root").mkdir()
        programs = [str(need_part(name).path.parent) for name in ("step", "step-ca", "openssl")]
        self.environment = {
            "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
            "HOME": str(folder / "root"),
            "LANG": "C.UTF-8",
        }

    def on(self, machine: str, path: str) -> Path:
        """A path of a machine."""
        return self.folder / machine / path.lstrip("/")

    def localised(self, text: str, machine: str) -> str:
        """A text of the document for the folder and ports that stand in for a machine."""
        python = f"{sys.executable} -P -m"
        for written, meant in (
            (r"sudo -u \S+ ", ""),
            (r"^(chown|chgrp) .*$", ":"),
            (r" -[og] (root|certplane-\w+)", ""),
            (r"/opt/certplane/bin/certplane-broker", f"{python} certplane.broker -c /etc/certplane/broker.yml"),
            (r"/opt/certplane/bin/certplane-agent", f"{python} certplane.agent -c /etc/certplane/agent.yml"),
            (r"(?<![\w/])/root/", f"{self.folder}/root/"),
            (r"(?<![\w/])/etc/step-ca", str(self.on("ca", "/etc/step-ca"))),
            (r"(?<![\w/])/(?=etc/certplane|var/lib/certplane)", f"{self.folder}/{machine}/"),
            (r"--address :443", f"--address 127.0.0.1:{self.ca_port}"),
            (r"https://ca\.internal\.example\.net", f"https://localhost:{self.ca_port}"),
            (r"broker\.internal\.example\.net:8443", f"localhost:{self.broker_port}"),
            (r"(ca|broker)\.internal\.example\.net", "localhost"),
            (r"www\.example\.com", _NAME),
            (r"(127\.0\.0\.1:|listen |bind :)443", rf"\g<1>{self.service_port}"),
        ):
            text = re.sub(written, meant, text, flags=re.MULTILINE)
        return text

    async def run(self, script: str, machine: str) -> None:
        """Run a block's commands; the first that fails ends it."""
        # What is told of `check` is that a service which doesn't run yet is a failure.
        script = re.sub(r"(certplane\.agent .* check)$", r"\1 || test $? = 1", script, flags=re.MULTILINE)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            self.localised(script, machine),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with no_hang():
            output, _ = await process.communicate()
        assert process.returncode == 0, f"{script}\n{output.decode()}"


@asynccontextmanager
async def running(name: str, argv: list[str | Path], log: Path, port: int, **environment: str) -> AsyncIterator[None]:
    server = ServerProcess(name, argv, log, environment=environment)
    await server.start(lambda: accepts_tcp("127.0.0.1", port))
    try:
        yield
    finally:
        await server.stop()


def yaml_of(found: list[Block], file: str) -> str:
    (text,) = [block.text for block in found if block.text.startswith(f"# {file}\n")]
    return text


def broker_settings(machines: Machines, text: str, pebble: Pebble, dns: DnsServer) -> dict[str, Any]:
    """The document's broker.yml with what the sandbox has in place of Let's Encrypt and the world's DNS."""
    settings: dict[str, Any] = yaml.safe_load(machines.localised(text, "broker"))
    settings["server"]["address"] = f"127.0.0.1:{machines.broker_port}"
    settings["metrics"]["address"] = "127.0.0.1:0"
    end, acme = dns.endpoint, settings["issuer"]["acme"]
    acme |= {
        "directory_url": pebble.directory_url,
        "ca_bundle": str(pebble.https_roots_file),
        "propagation": {"nameservers": [end.host_port], "interval": "100ms"},
    }
    acme["rfc2136"] |= {"server": end.host_port, "tsig_name": end.key.name}
    settings["dns"]["resolvers"] = [end.host_port]
    return settings


async def test_set_up_from_nothing(tmp_path: Path) -> None:
    """A CA, a broker and a host are made by the document's lines; nginx serves the certificate, HAProxy would."""
    pebble_part, nginx, haproxy = need_part("pebble"), need_part("nginx"), need_part("haproxy")
    assert pebble_part.path
    machines, found = Machines(tmp_path), blocks()
    shell = {
        chapter: [block.text for block in found if block.language == "sh" and block.chapter == chapter]
        for chapter in ("The internal CA", "The broker", "A host")
    }
    for text in shell["The internal CA"][:1]:
        await machines.run(text, "ca")
    step_ca = machines.on("ca", "/etc/step-ca")
    argv = [need_part("step-ca").path, step_ca / "config/ca.json", "--password-file", step_ca / "password"]
    log = tmp_path / "step-ca.log"
    async with (
        running("step-ca", argv, log, machines.ca_port, STEPPATH=str(step_ca)),
        servers.dns_server(tmp_path / "dns", ("certplane.test",)) as dns,
        Pebble(tmp_path / "pebble", dns.endpoint.host_port) as pebble,
    ):
        (broker_token,) = shell["The internal CA"][1:]
        await machines.run(broker_token, "ca")
        shutil.copy(step_ca / "certs/root_ca.crt", tmp_path / "root/root_ca.crt")

        first, looks = shell["The broker"]
        await machines.run(first, "broker")
        settings = broker_settings(machines, yaml_of(found, "/etc/certplane/broker.yml"), pebble, dns)
        config = machines.on("broker", "/etc/certplane/broker.yml")
        secrets = machines.on("broker", "/etc/certplane/secrets")
        config.write_text(yaml.safe_dump(settings))
        policy = machines.localised(yaml_of(found, "/etc/certplane/policy.yml"), "broker")
        machines.on("broker", "/etc/certplane/policy.yml").write_text(policy)
        (secrets / "dns-api-token").write_text(dns.endpoint.key.secret)
        await machines.run(looks, "broker")
        program: list[str | Path] = [sys.executable, "-P", "-m"]
        serve = [*program, "certplane.broker", "-c", config, "serve"]
        log = tmp_path / "broker.log"
        async with running("broker", serve, log, machines.broker_port, CREDENTIALS_DIRECTORY=str(secrets)):
            token, made, enrolled = shell["A host"]
            await machines.run(token, "ca")
            await machines.run(made, "host")
            nginx_config = tmp_path / "nginx.conf"
            agent: dict[str, Any] = yaml.safe_load(
                machines.localised(yaml_of(found, "/etc/certplane/agent.yml"), "host")
            )
            (web,) = agent["certificates"]
            web["reload_command"] = f"{nginx.path} -c {nginx_config} -s reload"
            web["verify"] |= {"attempts": 1, "timeout": "1s"}
            agent_config = machines.on("host", "/etc/certplane/agent.yml")
            agent_config.write_text(yaml.safe_dump(agent))
            await machines.run(enrolled, "host")
            assert not (tmp_path / "root/web1.token").exists()
            assert not machines.on("host", "/etc/certplane/token").exists()
            await machines.run(f"! {program_line('run --once')}", "host")  # nginx isn't there yet

            site = machines.localised(yaml_of(found, "/etc/nginx/sites-enabled/www"), "host")
            nginx_config.write_text(
                f"daemon off; pid {tmp_path}/nginx.pid; error_log stderr; events {{}}\n"
                f"http {{ access_log off;\n{site} }}\n"
            )
            balancer = tmp_path / "haproxy.cfg"
            balancer.write_text(machines.localised(yaml_of(found, HAPROXY), "host"))
            await machines.run(f"{haproxy.path} -c -f {balancer}", "host")
            serve = [nginx.path, "-c", nginx_config, "-e", "stderr"]
            async with running("nginx", serve, tmp_path / "nginx.log", machines.service_port):
                # Which says that nothing is renewed: the version that was there is in use now.
                await machines.run(f"! {program_line('renew web')}", "host")
                await machines.run(f"{program_line('status')} && {program_line('check')}", "host")
                served = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", machines.service_port))
            installed = machines.on("host", "/etc/certplane/tls/web.pem").read_text()
            assert installed.startswith(served.strip())


HAPROXY = "/etc/haproxy/haproxy.cfg"


def program_line(command: str) -> str:
    return f"/opt/certplane/bin/certplane-agent {command}"


def test_each_block_is_of_a_kind_that_is_run() -> None:
    """Commands that need systemd are `text`; every other block is run, written or read by a server."""
    assert {block.language for block in blocks()} == {"sh", "yaml", "text", "nginx", "haproxy"}
    assert all(
        "systemctl" in block.text or "certplanectl" in block.text for block in blocks() if block.language == "text"
    )


def test_units_are_clean(tmp_path: Path) -> None:
    """Not a word from `systemd-analyze verify`: the document's units, with programs that exist."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        if parts.all_required():
            pytest.fail("systemd-analyze is left out", pytrace=False)
        pytest.skip("systemd-analyze isn't here: Debian's package systemd has it")
    found = re.findall(r"^cat > /etc/systemd/system/(\S+) <<'END'\n(.*?)^END$", _DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    for name, text in found:
        unit = re.sub(r"^User=.*\n", "", text, flags=re.MULTILINE)  # whom the shipped units make
        (tmp_path / name).write_text(re.sub(r"/usr/bin/step\S*", sys.executable, unit))
        command = [analyze, "verify", f"./{name}"]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False)
        assert (finished.returncode, finished.stdout + finished.stderr) == (0, "")
