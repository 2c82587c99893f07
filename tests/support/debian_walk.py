"""docs/setup.md on three booted Debian machines, each line as a reader types it; then what other pages say of units.

Run by tests/e2e/test_setup_on_debian.py in namespaces of its own. The test stands in for the reader where the text asks
for that: it carries files from one machine to the next, and writes the configuration files, in which the sandbox's CA
and DNS server take the places of Let's Encrypt and the world's DNS.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import sys
import threading
import time
from pathlib import Path

import yaml

from certplane.sandbox import parts, servers
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer
from tests.support.booted import Machine, World

_ROOT = Path(__file__).parents[2]
_CA, _BROKER, _HOST = "10.77.0.2", "10.77.0.1", "10.77.0.3"
_NAMES = {"ca.internal.example.net": _CA, "broker.internal.example.net": _BROKER, "web1.example.net": _HOST}
_WEB = "127.0.0.1:443 -servername www.example.com"
_MAIL = "127.0.0.1:25 -starttls smtp"


def page(name: str) -> str:
    return (_ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(document: str, chapter: str, language: str) -> list[str]:
    """The fenced blocks of a language in a chapter, those of its sections included."""
    # Fences first: a comment within one isn't a heading.
    pieces = re.findall(r"^```(\w+)\n(.*?)^```|^## ([^\n]+)$", page(document), re.MULTILINE | re.DOTALL)
    found, here = [], ""
    for written, text, heading in pieces:
        here = heading or here
        if (here, written) == (chapter, language):
            found.append(text)
    assert found, f"{document} has no {language} in {chapter}"
    return found


def file_of(path: str) -> str:
    """A file that docs/setup.md shows, by the path in its first line."""
    (text,) = re.findall(rf"^```\w+\n(# {re.escape(path)}\n.*?)^```", page("setup.md"), re.MULTILINE | re.DOTALL)
    return str(text)


class Walk:
    """The reader."""

    def __init__(self, folder: Path, debs: Path) -> None:
        self._debs = debs
        self._start = time.monotonic()
        world = World(folder / "machines", _NAMES)
        step, step_ca = (parts.require(name).path for name in ("step", "step-ca"))
        tools = [(step, "/usr/bin/step")]
        self.ca = Machine(world, "ca", address=_CA, bind=[*tools, (step_ca, "/usr/bin/step-ca")])
        self.broker = Machine(world, "broker", bind=tools)
        self.host = Machine(world, "web1", address=_HOST)
        for machine in (self.ca, self.broker, self.host):
            machine.wait()
        for machine in (self.broker, self.host):
            machine.run("rm -r /opt/certplane")  # scripts/setup made it, for others
            for deb in debs.glob("*.deb"):
                shutil.copy(deb, machine.root / "root")
        self.tell("machines have booted")

    def tell(self, what: str) -> None:
        """Where the time goes, and how far it came."""
        sys.stdout.write(f"{time.monotonic() - self._start:5.1f} s: {what}\n")
        sys.stdout.flush()

    def carry(self, source: Machine, path: str, target: Machine) -> None:
        """Bring a file into another machine's /root."""
        shutil.copy2(source.root / path.lstrip("/"), target.root / "root")

    def internal_ca(self) -> None:
        setup, tokens = blocks("setup.md", "The internal CA", "sh")
        fingerprint = re.search(r"^[0-9a-f]{64}$", self.ca.run(setup), re.MULTILINE)
        assert fingerprint
        self.fingerprint = fingerprint[0]
        (unit,) = blocks("setup.md", "The internal CA", "text")
        self.ca.run(unit)
        health = "step ca health --ca-url https://ca.internal.example.net --root /etc/step-ca/certs/root_ca.crt"
        self.ca.until(health, "ok")
        self.ca.run(tokens)
        self.ca.until(health, "ok")
        for name in ("broker.token", "alice.token", "bootstrap.key"):
            self.carry(self.ca, f"/root/{name}", self.broker)
        self.tell("the internal CA runs")

    def first_broker(self, pebble: Pebble, dns: DnsServer) -> None:
        end, acme_ca = dns.endpoint, "/root/pebble.pem"
        self.broker.write("/root/tsig.secret", end.key.secret, 0o600)
        self.broker.write(acme_ca, pebble.https_roots_file.read_text())
        install, starts = blocks("setup.md", "The broker", "sh")
        for written, here in (
            ("letsencrypt-staging", f"{pebble.directory_url} --acme-ca {acme_ca}"),
            ("192.0.2.53:53", end.host_port),
            ("tsig_name=certplane", f"tsig_name={end.key.name}"),
            ("FINGERPRINT", self.fingerprint),
        ):
            assert written in install
            install = install.replace(written, here)
        self.broker.run(install)
        self.tell("the broker is set up")
        settings = yaml.safe_load(self.broker.read("/etc/certplane/broker.yml"))
        # The sandbox's DNS server has a port of its own, and a reader gets fewer certificates in a day than this one.
        settings["issuer"]["acme"]["propagation"] = {"nameservers": [end.host_port], "interval": "100ms"}
        settings["dns"] = {"resolvers": [end.host_port]}
        limits = ("new_keys_per_identity_profile_per_day", "certificates_per_identity_profile_per_day")
        settings["rate_limits"] = dict.fromkeys((*limits, "certificates_per_name_set_per_week"), 0)
        self.broker.write("/etc/certplane/broker.yml", yaml.safe_dump(settings))
        self.broker.write("/etc/certplane/policy.yml", file_of("/etc/certplane/policy.yml"))
        assert "serving on port 8443" in self.broker.run(starts)
        self.tell("the broker serves")

    def operator(self) -> None:
        certificate, add = blocks("setup.md", "The operator", "sh")
        self.broker.run(certificate)
        self.broker.write("/root/.config/certplane/ctl.yml", file_of("~/.config/certplane/ctl.yml"))
        self.added = self.broker.run(add.rstrip() + " -o table\n")  # what a terminal gets
        self.tell("an operator has added a host")

    def first_host(self) -> None:
        """Three commands from nothing, of which the second is the one that the operator was shown."""
        install, start, *_ = blocks("setup.md", "A host", "sh")
        (written,) = blocks("setup.md", "A host", "text")
        (init,) = re.findall(r"^\s*(echo \S+ \| certplane-agent init .*)$", self.added, re.MULTILINE)
        token = shlex.split(init)[1]
        meant = written.replace("FINGERPRINT", self.fingerprint).replace("TOKEN", token)
        assert shlex.split(init) == shlex.split(meant.replace("\\\n", " "))
        commands = [*install.splitlines(), init, *start.splitlines()]
        assert len(commands) == 3
        for command in commands:
            self.host.run(command)
        # "degraded" until the web server runs, with the cause that the text has.
        self.host.until("certplane-agent status || true", "nginx.service is not active, cannot reload")
        self.tell("the host has its certificates")

    def services(self) -> None:
        self.host.write("/etc/nginx/sites-enabled/www", file_of("/etc/nginx/sites-enabled/www"))
        self.host.run("rm -f /etc/nginx/sites-enabled/default; systemctl start nginx.service")
        *_, postfix, haproxy, other = blocks("setup.md", "A host", "sh")
        self.host.run(postfix)
        for name in ("web", "mail"):
            self.host.tried(f"certplane-agent renew {name}")  # what is there is in use now, says the document
        self.host.until("certplane-agent status && certplane-agent check")
        self._renewed("nginx", "web", "pem", _WEB)
        self._renewed("postfix", "mail", "combined", _MAIL)

        self.host.run(haproxy.replace("FINGERPRINT", self.fingerprint))
        self.host.until("test -e /etc/certplane/tls/web.combined")
        self.host.write("/etc/haproxy/haproxy.cfg", file_of("/etc/haproxy/haproxy.cfg"))
        self.host.run(other)
        self._renewed("haproxy", "web", "combined", _WEB)
        self.broker.run("certplanectl renew --host web1 --reason haproxy --yes --wait")

    def _served(self, address: str) -> str:
        return self.host.run(
            f"openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial"
        )

    def _renewed(self, service: str, name: str, ending: str, address: str) -> None:
        """The agent's user, which is nobody to the service, has it serve the new certificate."""
        before = self._served(address)
        self.host.run(f"certplane-agent renew {name}")
        after = self._served(address)
        assert before != after, f"{service} still serves {before}"
        assert after == self.host.run(f"openssl x509 -noout -serial -in /etc/certplane/tls/{name}.{ending}")
        self.host.run(
            f"sudo -u certplane-agent systemctl restart {service}.service", status=1
        )  # a reload is all it may do
        self.tell(f"{service} serves what was renewed")

    def units(self) -> None:
        """What operations.md says of reload, of the broker's certificate, of commands under sudo, and of an upgrade."""
        for line in (
            "systemctl status certplane-broker.service certplane-broker-certificate.timer",
            "sudo -u certplane-broker certplane-broker check",
            "sudo -u certplane-broker certplane-broker store check",
            "sudo -u certplane-broker /opt/certplane/bin/certplane-broker certs list",
            "certplane-broker reload",
            "certplane-broker preflight --profile web",
        ):
            # preflight is root's, and wants the DNS credential, as docs/setup.md has it.
            preflight = "CREDENTIALS_DIRECTORY=/etc/certplane/secrets " if "preflight" in line else ""
            self.broker.run(preflight + line)
        text = next(each for each in blocks("operations.md", "Operators", "text") if "bootstrap" in each)
        bootstrap, *_, renewal = text.strip().splitlines()
        self.broker.run(bootstrap.replace("FINGERPRINT", self.fingerprint))
        self.broker.run(f"{renewal.replace('--daemon', '--force')}; certplanectl health")
        (staging,) = blocks("setup.md", "From staging to production", "text")
        self.broker.run(f"{staging.strip()} --yes")
        policy = self.broker.read("/etc/certplane/policy.yml")
        self.broker.write("/etc/certplane/policy.yml", "version: 1\nhosts: nonsense\n")
        self.broker.run("systemctl reload certplane-broker", status=1)
        assert "policy.yml" in self.broker.run("systemctl status --lines=0 certplane-broker"), "the reason is told"
        self.broker.write("/etc/certplane/policy.yml", policy)
        self.broker.run("systemctl reload certplane-broker")
        self.host.run("systemctl reload certplane-agent.service")
        # What the timer starts, now and not when it is due: the broker takes what it writes.
        self.broker.run("systemctl start certplane-broker-certificate.service")
        before = self._broker_certificate()
        self.broker.run("sudo -u certplane-broker certplane-broker renew-certificate --now")
        new = self.broker.run("openssl x509 -noout -serial -in /etc/certplane/broker/server.crt")
        assert new != before
        self.broker.until(self._ASK_BROKER, new)
        self.broker.run("apt-get install --yes --reinstall ./certplane-broker_*.deb")
        self.tell("broker and agent are operated")

    # It wants a certificate of its callers, and ends the connection: its own has been shown by then.
    _ASK_BROKER = (
        "(openssl s_client -connect broker.internal.example.net:8443 </dev/null 2>/dev/null || true)"
        " | openssl x509 -noout -serial"
    )

    def _broker_certificate(self) -> str:
        return self.broker.run(self._ASK_BROKER)

    def backup(self) -> None:
        """A copy of root's by the crontab's line, and the way back."""
        (copy,) = blocks("operations.md", "Backup", "sh")
        self.broker.run(copy)
        (cron,) = blocks("operations.md", "Backup", "text")
        self.broker.run(cron.strip().split("  ", 1)[1].replace("\\%", "%"))
        assert self.broker.run("stat -c '%a %U' /var/backups/certplane-broker*.db").split() == ["600", "root"] * 2
        count = self.broker.run("sudo -u certplane-broker certplane-broker certs list --json | wc -l")
        self.broker.run(said("machines.md", "systemctl disable --now certplane-broker.service"))
        self.broker.run(
            "cd /var/lib/certplane; mkdir /root/old; mv broker.db* /root/old/\n"
            "install -o certplane-broker -g certplane-broker -m 600 /var/backups/certplane-broker.db broker.db\n"
            "sudo -u certplane-broker certplane-broker store check\n"
            "systemctl enable --now certplane-broker.service"
        )
        assert self.broker.run("sudo -u certplane-broker certplane-broker certs list --json | wc -l") == count
        self.tell("the database is a copy")

    def machines(self) -> None:
        """docs/machines.md: a host gets a new machine, and goes for good."""
        name = "web1.example.net"
        self.host.run("systemctl disable --now certplane-agent.service")
        shown = self.broker.run(f"certplanectl host replace {name} --reason 'new disk' --yes -o table")
        self.host.run(
            "rm -rf /var/lib/certplane/agent /etc/certplane/tls /etc/certplane/agent.yml; systemd-tmpfiles --create"
        )
        (init,) = re.findall(r"^\s*(echo \S+ \| certplane-agent init .*)$", shown, re.MULTILINE)
        self.host.run(f"{init}\nsystemctl enable --now certplane-agent.service")
        self.host.until("test -e /etc/certplane/tls/web.pem && certplane-agent status || test $? = 1")
        self.tell("a host is set up anew")
        text = re.sub(r"^  web1: .*\n", "", self.broker.read("/etc/certplane/policy.yml"), flags=re.MULTILINE)
        self.broker.write("/etc/certplane/policy.yml", text.replace("hosts:\n", "hosts: {}\n"))
        self.broker.run("certplane-broker reload --confirm")
        self.broker.run(f"certplanectl host retire {name} --reason 'retired' --yes")
        self.broker.run(f"! certplanectl fleet | grep -q {name}")
        self.host.run("apt-get purge --yes certplane-agent; ! test -e /var/lib/certplane/agent; rm -rf /etc/certplane")
        self.tell("a host has gone for good")


def said(document: str, command: str) -> str:
    """A command of a sentence, which must be there as it is run."""
    assert command in " ".join(page(document).split()), f"{document} has no `{command}`"
    return command


async def main(folder: Path, debs: Path) -> None:
    walk = Walk(folder, debs)
    async with (
        servers.dns_server(folder / "dns", ("example.com",)) as dns,
        Pebble(folder / "pebble", dns.endpoint.host_port) as pebble,
    ):
        for step in (
            walk.internal_ca,
            lambda: walk.first_broker(pebble, dns),
            walk.operator,
            walk.first_host,
            walk.services,
            walk.units,
            walk.backup,
            walk.machines,
        ):
            await asyncio.to_thread(step)


def stand(folder: Path) -> None:
    """One machine that has booted, which a file tells, and nobody who ends it."""
    Machine(World(folder / "machines", {}), "alone").wait()
    (folder / "booted").touch()
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[2:] == ["stand"]:
        stand(Path(sys.argv[1]))
    asyncio.run(main(*map(Path, sys.argv[1:])))
