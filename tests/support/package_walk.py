"""The Debian packages' whole life on one booted machine that has all of them: agent and broker side by side.

Run by tests/e2e/test_debian_packages.py in namespaces of its own. The machine shares the network of this process, so the
sandbox's CAs and DNS server are at its loopback addresses. The steps follow each other: what one leaves is what the next finds.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

import yaml

from certplane import __version__
from certplane.sandbox import servers
from certplane.sandbox.dns import SandboxDnsServer
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import IdentityCa
from tests.support.booted import Machine, World
from tests.support.debian_packages import PROGRAMS, RULES
from tests.support.debian_walk import blocks
from tests.support.next_release import NEXT_VERSION
from tests.support.packaged_settings import BROKER, HOST, POLICY, agent_settings, broker_pair, broker_settings
from tests.support.waiting import until

_ROOT = Path(__file__).parents[2]
_UNITS = "certplane-agent.service certplane-broker.service"
_OURS = "find /etc /opt /run /usr /var -xdev -name '*certplane*' -not -path '/usr/bin/certplane-test-root' -not -path '/var/log/journal*' -not -path '/var/cache*' 2>/dev/null || true"


class Walk:
    """The administrator of one machine."""

    def __init__(self, folder: Path, old: Path, new: Path) -> None:
        self._start = time.monotonic()
        self.folder = folder
        self.box = Machine(World(folder / "machines", {BROKER: LOOPBACK}), "box")
        for name, source in (("old", old), ("new", new)):
            (self.box.root / "root" / name).mkdir()
            for deb in source.glob("*.deb"):
                shutil.copy(deb, self.box.root / "root" / name / f"{deb.name.partition('_')[0]}.deb")
        shutil.copytree(old.parents[1] / "build" / "debs" / "release", self.box.root / "root" / "dist")
        self.box.wait()
        self.tell("the machine has booted")

    def tell(self, what: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._start:5.1f} s: {what}\n")
        sys.stdout.flush()

    def run(self, script: str, *, status: int = 0) -> str:
        return self.box.run(script, status=status)

    def debs(self, folder: str, *names: str) -> str:
        return " ".join(f"/root/{folder}/{name}.deb" for name in names or PROGRAMS)

    def versions(self) -> set[str]:
        return set(
            self.run(f"dpkg-query -W -f '${{Version}} ${{db:Status-Abbrev}}\\n' {' '.join(PROGRAMS)}").splitlines()
        )

    def in_the_way_of_pip(self) -> None:
        """docs/operations.md, "Install"; what pip installed isn't half replaced, and the refusal has the line that helps."""
        environment, *lines = blocks("operations.md", "Install", "sh")[1].splitlines()
        # scripts/setup did this when it made the root, and installed what Certplane needs: pip asks no index for it.
        assert environment == "python3 -m venv /opt/certplane"
        self.run("\n".join(line for line in lines if "dist/agent.txt" not in line))
        assert __version__ in self.run(
            "cd / && sudo -u nobody certplane-broker --version; rm /usr/local/bin/certplane*"
        )
        said = self.run(f"dpkg -i {self.debs('old', 'certplane-agent')} 2>&1", status=1)
        (remedy,) = re.findall(r"^ +(mv /opt/certplane .*)$", said, re.MULTILINE)
        self.run(f"test -e /opt/certplane/pyvenv.cfg\n{remedy}\nrm -r /opt/certplane-by-pip")

    def installed(self) -> None:
        """Everything is in place, and nothing runs, now or after a boot."""
        self.run(f"dpkg -i {self.debs('old')}")
        assert {version.partition("-")[0] for version in self.versions()} == {__version__}
        for program in PROGRAMS:
            assert __version__ in self.run(f"cd / && sudo -u nobody {program} --version"), "on PATH, for everyone"
        assert self.run(f"systemctl is-enabled {_UNITS} certplane-agent-once.timer || true").split() == ["disabled"] * 3
        assert self.run(f"systemctl is-active {_UNITS} certplane-agent-once.timer || true").split() == ["inactive"] * 3
        paths = "/etc/certplane /etc/certplane/tls /etc/certplane/broker /etc/certplane/secrets /var/lib/certplane /var/lib/certplane/agent"
        assert self.run(f"stat -c '%a %U' {paths}").splitlines() == [
            "755 root", "755 certplane-agent", "700 certplane-broker", "700 root", "711 certplane-broker", "755 certplane-agent",
        ]  # fmt: skip
        assert self.run("find /opt/certplane -perm /022 -not -type l -o -not -user root") == "", "root's alone"
        assert not self.run("find /opt/certplane -name '*.py' -newer /opt/certplane/bin -path '*/tests/*'")
        assert RULES in self.run("dpkg-query -W -f '${Conffiles}' certplane-agent")
        for page in ("man1/certplane-agent.1.gz", "bash-completion/completions/certplanectl"):
            assert page in self.run("dpkg -L certplane-agent certplanectl")
        self.run("test -s /opt/certplane/agent/share/certplane/schemas/agent.schema.json", status=0)
        self.tell("installed, and nothing runs")

    async def serves(self, ca: IdentityCa, pebble: Pebble, dns: SandboxDnsServer) -> None:
        """Both programs run, side by side, as their units and users."""
        box, end = self.box, dns.endpoint
        for name, text in (await broker_pair(ca, self.folder)).items():
            box.write(f"/etc/certplane/broker/server.{name}", text, 0o600)
        box.write("/etc/certplane/broker/agent-ca.pem", ca.roots_file.read_text())
        box.write("/etc/certplane/internal-ca.pem", ca.roots_file.read_text())
        box.write("/etc/certplane/secrets/dns-api-token", end.key.secret, 0o600)
        box.write("/etc/pebble.pem", pebble.https_roots_file.read_text())
        broker, agent = broker_settings(pebble, dns), agent_settings(ca)
        broker["server"]["drain_timeout"] = "1s"
        for path, content in (("broker", broker), ("policy", POLICY), ("agent", agent)):
            box.write(f"/etc/certplane/{path}.yml", yaml.safe_dump(content))
        box.write("/etc/certplane/token", ca.mint_token(HOST), 0o600)
        (enroll,) = blocks("agent.md", "Under systemd", "text")
        self.run(
            f"chown -R certplane-broker: /etc/certplane/broker\n{enroll}\n"
            f"! test -e /etc/certplane/token\nsystemctl enable --now {_UNITS}"
        )
        assert self.run("stat -c %U /var/lib/certplane/agent/*").split().count("certplane-broker") == 0
        self.tell("both run")

    async def upgraded(self, pebble: Pebble, dns: SandboxDnsServer) -> None:
        """An order that waits for the DNS while both packages are replaced is the order that gives the certificate."""
        await until(lambda: any("_acme-challenge" in each.name for each in dns.questions), what="the order's record")
        self.run("! test -e /etc/certplane/tls/web.pem")
        rules = self.box.read(RULES).replace('"nginx.service"', '"nginx.service", "mine.service"')
        self.box.write(RULES, rules)
        # As unattended upgrades do it; without these options dpkg asks.
        await asyncio.to_thread(self.run, f"dpkg --force-confdef --force-confold -i {self.debs('new')}")
        assert {version.partition("-")[0] for version in self.versions()} == {NEXT_VERSION}
        assert self.box.read(RULES) == rules, "what the administrator wrote stays"
        assert self.box.read(f"{RULES}.dpkg-dist").startswith("// of the next release")
        self.run(
            f"systemctl is-active {_UNITS}; ! systemctl is-active certplane-agent-once.timer; ! test -e /run/certplane-agent.ran"
        )
        self.run("! test -e /etc/certplane/tls/web.pem")
        dns.faults[LOOPBACK].visible_after = timedelta()
        await asyncio.to_thread(self.box.until, "test -e /etc/certplane/tls/web.pem && certplane-agent status")
        assert len(await pebble.issued_certificates()) == 1, "one order, one certificate"
        self.tell("upgraded in the middle of an order")

    def downgraded(self) -> None:
        """The older release goes on with the newer database; a key that it doesn't know yet is told, and dpkg is content."""
        agent = self.box.read("/etc/certplane/agent.yml")
        self.box.write("/etc/certplane/agent.yml", agent + "of_the_next_release: 1\n")
        said = self.run(f"dpkg --force-confdef --force-confold -i {self.debs('old')} 2>&1")
        assert {version.strip() for version in self.versions()} == {f"{__version__}-1 ii"}
        assert "systemctl start certplane-agent.service" in said, said
        assert "of_the_next_release" in said, "the cause, from the journal"
        self.run("systemctl is-active certplane-broker.service; ! systemctl is-active certplane-agent.service")
        self.box.write("/etc/certplane/agent.yml", agent)
        self.run("systemctl start certplane-agent.service")
        self.box.until("certplane-agent status")
        assert "mine.service" in self.box.read(RULES)
        self.tell("downgraded")

    def stopped_stays_stopped(self) -> None:
        """An upgrade starts what ran, and nothing that an administrator had stopped."""
        self.run(f"systemctl stop certplane-broker.service\ndpkg --force-confold -i {self.debs('old')}")
        self.run("systemctl is-active certplane-agent.service; ! systemctl is-active certplane-broker.service")

    def removed(self) -> None:
        """The programs are gone, and stopped; what was configured and made is there, and serves a new installation."""
        self.run(f"dpkg -r {' '.join(PROGRAMS)}")
        self.run("! pgrep -u certplane-agent,certplane-broker; ! test -e /opt/certplane; ! command -v certplanectl")
        for path in ("agent.yml", "policy.yml", "broker/server.key", "tls/web.key", "secrets/dns-api-token"):
            self.run(f"test -s /etc/certplane/{path}")
        self.run(f"test -s {RULES}; test -s /var/lib/certplane/broker.db")
        self.run(f"dpkg -i {self.debs('old')}; ! systemctl is-active {_UNITS}")
        self.run(f"systemctl start {_UNITS}; certplane-agent status")
        assert "mine.service" in self.box.read(RULES)
        self.tell("removed, and installed again")

    def purged(self) -> None:
        """What stays is what docs/packages.md says, and the purge says so too."""
        said = self.run(f"dpkg -P {' '.join(PROGRAMS)} 2>&1")
        assert "/etc/certplane/tls stays" in said
        assert "/var/lib/certplane stays" in said
        left = self.run(_OURS).split()
        assert sorted(left) == ["/etc/certplane", "/var/lib/certplane"], left
        assert self.run("find /etc/certplane -mindepth 1 | sort").split() == [
            "/etc/certplane/tls", "/etc/certplane/tls/web.key", "/etc/certplane/tls/web.pem",
        ]  # fmt: skip
        kept = self.run("ls /var/lib/certplane").split()
        assert "broker.db" in kept
        assert "agent" not in kept, "no identity's key stays"
        self.run("rm -rf /etc/certplane /var/lib/certplane")
        self.tell("purged")


async def main(folder: Path, old: Path, new: Path) -> None:
    walk = Walk(folder, old, new)
    dns = SandboxDnsServer(("example.com",))
    async with (
        dns,
        Pebble(folder / "pebble", dns.endpoint.host_port) as pebble,
        servers.identity_ca(folder / "ca") as ca,
    ):
        dns.faults[LOOPBACK].visible_after = timedelta(hours=1)
        for step in (walk.in_the_way_of_pip, walk.installed):
            await asyncio.to_thread(step)
        await walk.serves(ca, pebble, dns)
        await walk.upgraded(pebble, dns)
        for step in (walk.downgraded, walk.stopped_stays_stopped, walk.removed, walk.purged):
            await asyncio.to_thread(step)


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
