"""docs/setup.md on three booted Debian machines, each line as a reader types it; then what other pages say of units.

Run by tests/e2e/test_setup_on_debian.py in namespaces of its own. The test stands in for the reader where the text asks
for that: it carries files from one machine to the next, and writes the configuration files, in which the sandbox's CA
and DNS server take the places of Let's Encrypt and the world's DNS.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from certplane.sandbox import parts, servers
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer
from tests.support.booted import Machine, World

_ROOT = Path(__file__).parents[2]
_UNITS = _ROOT / "packaging" / "systemd"
_CA, _BROKER, _HOST = "10.77.0.2", "10.77.0.1", "10.77.0.3"
_NAMES = {"ca.internal.example.net": _CA, "broker.internal.example.net": _BROKER, "web1.example.net": _HOST}
_AGENT = "/opt/certplane/bin/certplane-agent"
_CTL = """\
broker:
  url: https://broker.internal.example.net:8443
  server_ca_bundle: /etc/certplane/internal-ca.pem
identity:
  cert: /root/.config/certplane/operator.crt
  key: /root/.config/certplane/operator.key
"""


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

    def __init__(self, folder: Path) -> None:
        self.folder, self.dist = folder, folder / "checkout" / "dist"
        self._start = time.monotonic()
        world = World(folder / "machines", _NAMES)
        step, step_ca = (parts.require(name).path for name in ("step", "step-ca"))
        tools = [(step, "/usr/bin/step")]
        self.ca = Machine(world, "ca", address=_CA, bind=[*tools, (step_ca, "/usr/bin/step-ca")])
        self.broker = Machine(world, "broker", bind=tools)
        self.host = Machine(world, "web1", address=_HOST, bind=tools)
        for machine in (self.ca, self.broker, self.host):
            machine.wait()
        self.tell("machines have booted")

    def before_the_broker(self) -> None:
        """What can be done at once is."""
        with ThreadPoolExecutor() as threads:
            installs = [threads.submit(self.install, *what) for what in ((self.broker, "broker"), (self.host, "agent"))]
            self.internal_ca()
            for install in installs:
                install.result()
        self.tell("broker and host are installed")

    def tell(self, what: str) -> None:
        """Where the time goes, and how far it came."""
        sys.stdout.write(f"{time.monotonic() - self._start:5.1f} s: {what}\n")
        sys.stdout.flush()

    def carry(self, source: Machine, path: str, target: Machine) -> None:
        """Bring a file into another machine's /root."""
        shutil.copy2(source.root / path.lstrip("/"), target.root / "root")

    def install(self, machine: Machine, kind: str) -> None:
        """docs/operations.md, "Install" and "Under systemd", for one kind of machine."""
        shutil.copytree(self.dist, machine.root / "root/dist")
        environment, *lines = blocks("operations.md", "Install", "sh")[1].splitlines()
        # scripts/setup did this when it made the root, and installed what Certplane needs: pip asks no index for it.
        assert environment == "python3 -m venv /opt/certplane"
        machine.run("\n".join(line for line in lines if "dist/" not in line or f"dist/{kind}.txt" in line))
        table = re.findall(r"^\| (`.*?) \| `(/\S+)`", page("operations.md"), re.MULTILINE)
        for file in _UNITS.iterdir():
            if not file.name.startswith(f"certplane-{kind}") or file.name == "certplane-agent-root.conf":
                continue
            target = file_target(file.name, table)
            machine.write(target, file.read_text())
        first, *_ = blocks("operations.md", "Under systemd", "text")
        machine.run(first.splitlines()[0])

    def internal_ca(self) -> None:
        setup, token = blocks("setup.md", "The internal CA", "sh")
        fingerprint = re.search(r"^[0-9a-f]{64}$", self.ca.run(setup), re.MULTILINE)
        assert fingerprint
        self.fingerprint = fingerprint[0]
        (unit,) = blocks("setup.md", "The internal CA", "text")
        self.ca.run(unit)
        self.ca.until(
            "step ca health --ca-url https://ca.internal.example.net --root /etc/step-ca/certs/root_ca.crt", "ok"
        )
        self.ca.run(token)
        for machine in (self.broker, self.host):
            self.carry(self.ca, "/etc/step-ca/certs/root_ca.crt", machine)
        self.carry(self.ca, "/root/broker.token", self.broker)
        self.tell("the internal CA runs")

    def first_broker(self, pebble: Pebble, dns: DnsServer) -> None:
        made, looks = blocks("setup.md", "The broker", "sh")
        self.broker.run(made)
        renewer, started = blocks("setup.md", "The broker", "text")
        self.broker.run(renewer)
        settings = yaml.safe_load(file_of("/etc/certplane/broker.yml"))
        end, acme = dns.endpoint, settings["issuer"]["acme"]
        self.broker.write("/etc/pebble.pem", pebble.https_roots_file.read_text())
        acme |= {"directory_url": pebble.directory_url, "ca_bundle": "/etc/pebble.pem"}
        acme["propagation"] = {"nameservers": [end.host_port], "interval": "100ms"}
        acme["rfc2136"] |= {"server": end.host_port, "tsig_name": end.key.name}
        settings["dns"]["resolvers"] = [end.host_port]
        # A reader gets fewer certificates in a day than this one.
        limits = ("new_keys_per_identity_profile_per_day", "certificates_per_identity_profile_per_day")
        settings["rate_limits"] = dict.fromkeys((*limits, "certificates_per_name_set_per_week"), 0)
        self.broker.write("/etc/certplane/broker.yml", yaml.safe_dump(settings))
        self.broker.write("/etc/certplane/policy.yml", file_of("/etc/certplane/policy.yml"))
        self.broker.write("/etc/certplane/secrets/dns-api-token", end.key.secret)
        self.broker.run(looks)
        assert "serving on port 8443" in self.broker.run(started)
        self.tell("the broker serves")

    def first_host(self) -> None:
        token, made, enrolled = blocks("setup.md", "A host", "sh")
        self.ca.run(token)
        self.carry(self.ca, "/root/web1.token", self.host)
        self.host.run(made)
        self.host.write("/etc/certplane/agent.yml", file_of("/etc/certplane/agent.yml"))
        enroll, check = enrolled.strip().splitlines()
        self.host.run(enroll)
        self.host.run(f"! test -e /etc/certplane/token && ! test -e /root/web1.token && {{ {check} || test $? = 1; }}")
        (started,) = blocks("setup.md", "A host", "text")
        start, status = started.strip().splitlines()
        self.host.run(start)
        # "degraded" until the web server runs, with the cause that the text has.
        self.host.until(f"{status.partition('#')[0]} || true", "nginx.service is not active, cannot reload")
        self.tell("the host has its certificate")

    def operator(self) -> None:
        """An operator at work on the host's machine; the policy that names her is reloaded."""
        (role,) = blocks("operations.md", "Operators", "yaml")
        self.broker.write("/etc/certplane/policy.yml", file_of("/etc/certplane/policy.yml") + role)
        self.broker.run("systemctl reload certplane-broker")
        name = "alice.ops.example.net"
        self.ca.run(
            f"STEPPATH=/etc/step-ca step ca token {name} --provisioner-password-file /etc/step-ca/password >/root/alice"
        )
        self.carry(self.ca, "/root/alice", self.host)
        text = next(each for each in blocks("operations.md", "Operators", "text") if "bootstrap" in each)
        bootstrap, folder, certificate, renewal = text.strip().splitlines()
        self.host.run(bootstrap.replace("FINGERPRINT", self.fingerprint))
        self.host.run(folder)
        self.host.run(f'{certificate} --token "$(cat /root/alice)"')
        self.host.run(renewal.replace("--daemon", "--force"))
        self.host.write("/root/.config/certplane/ctl.yml", _CTL)
        self.host.run("certplanectl fleet | grep -q web1")
        self.tell("an operator sees the fleet")

    def nginx(self) -> None:
        self.host.write("/etc/nginx/sites-enabled/www", file_of("/etc/nginx/sites-enabled/www"))
        self.host.run("rm -f /etc/nginx/sites-enabled/default; systemctl start nginx.service")
        self.host.tried(f"{_AGENT} renew web")  # not renewed, says the document: what is there is in use now
        self.host.until(f"{_AGENT} status && {_AGENT} check")
        self._renewed("nginx")

    def haproxy(self) -> None:
        self.host.run("systemctl stop nginx.service")
        agent = self.host.read("/etc/certplane/agent.yml").replace("reload nginx.service", "reload haproxy.service")
        assert "reload_command: systemctl reload haproxy.service" in page("setup.md")
        self.host.write("/etc/certplane/agent.yml", agent)
        self.host.write("/etc/haproxy/haproxy.cfg", file_of("/etc/haproxy/haproxy.cfg"))
        self.host.run("systemctl restart certplane-agent.service haproxy.service")
        self._renewed("haproxy")
        self.host.run("certplanectl renew --host web1 --reason haproxy --yes --wait")

    def _served(self) -> str:
        return self.host.run(
            "openssl s_client -connect 127.0.0.1:443 -servername www.example.com </dev/null 2>/dev/null | openssl x509 -noout -serial"
        )

    def _renewed(self, service: str) -> None:
        """The agent's user, which is nobody to the service, has it serve the new certificate."""
        before = self._served()
        self.host.run(f"{_AGENT} renew web")
        after = self._served()
        assert before != after, f"{service} still serves {before}"
        assert after == self.host.run("openssl x509 -noout -serial -in /etc/certplane/tls/web.pem")
        self.host.run("sudo -u certplane-agent systemctl restart nginx.service", status=1)  # a reload is all it may do
        self.tell(f"{service} serves what was renewed")

    def units(self) -> None:
        """What operations.md says of reload, of the broker's certificate, of commands under sudo, and of an upgrade."""
        for line in (
            "systemctl status certplane-broker.service certplane-broker-certificate.service",
            "sudo -u certplane-broker certplane-broker check",
            "sudo -u certplane-broker certplane-broker store check",
            "sudo -u certplane-broker /opt/certplane/bin/certplane-broker certs list",
            "certplane-broker reload",
            "certplane-broker preflight --profile web",
        ):
            # preflight is root's, and wants the DNS credential, as docs/setup.md has it.
            preflight = "CREDENTIALS_DIRECTORY=/etc/certplane/secrets " if "preflight" in line else ""
            self.broker.run(preflight + line)
        (staging,) = blocks("setup.md", "From staging to production", "text")
        self.host.run(f"{staging.strip()} --yes")
        policy = self.broker.read("/etc/certplane/policy.yml")
        self.broker.write("/etc/certplane/policy.yml", "version: 1\nhosts: nonsense\n")
        self.broker.run("systemctl reload certplane-broker", status=1)
        assert "policy.yml" in self.broker.run("systemctl status --lines=0 certplane-broker"), "the reason is told"
        self.broker.write("/etc/certplane/policy.yml", policy)
        self.broker.run("systemctl reload certplane-broker")
        self.host.run("systemctl reload certplane-agent.service")
        # The unit's command, now and not when it is due: as its user it may write the files, and the broker takes them.
        (renewal,) = re.findall(r"^ExecStart=(/usr/bin/step ca renew .*)$", page("setup.md"), re.MULTILINE)
        before = self._broker_certificate()
        self.broker.run("sudo -u certplane-broker " + renewal.replace("--daemon", "--force"))
        new = self.broker.run("openssl x509 -noout -serial -in /etc/certplane/broker/server.crt")
        assert new != before
        self.broker.until(self._ASK_BROKER, new)
        _, install = blocks("operations.md", "Install", "sh")
        (pip,) = (line for line in install.splitlines() if "dist/broker.txt" in line)
        self.broker.run(f"{pip}\nsystemctl restart certplane-broker.service")
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
        """docs/machines.md: a host is set up anew, and goes for good."""
        self.host.run(said("machines.md", "systemctl disable --now certplane-agent.service"))
        self.host.run(said("machines.md", "rm -rf /var/lib/certplane/agent /etc/certplane/tls"))
        token, made, _ = blocks("setup.md", "A host", "sh")
        self.ca.run(token)
        self.carry(self.ca, "/root/web1.token", self.host)
        self.host.run(made)
        (enroll,) = blocks("agent.md", "Under systemd", "text")
        self.host.run(enroll)
        self.host.run("! test -e /etc/certplane/token")
        self.host.until(f"test -e /etc/certplane/tls/web.pem && {_AGENT} status")
        self.broker.run(said("machines.md", "sudo -u certplane-broker certplane-broker identity list --all"))
        self.tell("a host is set up anew")
        name = "web1.example.net"
        self.broker.write(
            "/etc/certplane/policy.yml",
            self.broker.read("/etc/certplane/policy.yml").replace(name, "web2.example.net").replace("web1:", "web2:"),
        )
        self.broker.run("certplane-broker reload --confirm")
        deny = said("machines.md", f"certplane-broker identity deny --name {name} --reason 'retired'")
        self.broker.run(f"sudo -u certplane-broker {deny}")
        self.host.run(said("machines.md", "systemctl disable --now certplane-agent.service"))
        self.host.run("rm -rf /var/lib/certplane/agent /etc/certplane/tls")
        self.host.run(said("machines.md", f"certplanectl forget {name} --reason 'retired'") + " --yes")
        self.host.run(f"! certplanectl fleet | grep -q {name}")
        self.tell("a host has gone for good")


def said(document: str, command: str) -> str:
    """A command of a sentence, which must be there as it is run."""
    assert command in " ".join(page(document).split()), f"{document} has no `{command}`"
    return command


def file_target(name: str, table: list[tuple[str, str]]) -> str:
    """Where operations.md's table says that a file goes."""
    for cell, target in table:
        names = re.findall(r"`([^`]+)`", cell)
        if name in names or (name.endswith(".timer") and ".timer" in names):
            return target + name if target.endswith("/") else target
        if "*.sysusers" in names and name.endswith(".sysusers"):
            return target.replace("<name>", name.removesuffix(".sysusers"))
    raise AssertionError(f"operations.md doesn't say where {name} goes")


async def main(folder: Path) -> None:
    walk = Walk(folder)
    async with (
        servers.dns_server(folder / "dns", ("example.com",)) as dns,
        Pebble(folder / "pebble", dns.endpoint.host_port) as pebble,
    ):
        for step in (
            walk.before_the_broker,
            lambda: walk.first_broker(pebble, dns),
            walk.first_host,
            walk.nginx,
            walk.operator,
            walk.haproxy,
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
    asyncio.run(main(Path(sys.argv[1])))
