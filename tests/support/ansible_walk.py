"""The roles of packaging/ansible, run by ansible-core on a booted machine that has nothing of Certplane.

Run by tests/e2e/test_ansible_roles.py in namespaces of its own. Ansible reaches the machine by what it takes for ssh: a script that
enters the machine's namespaces.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from certplane.sandbox import parts, servers
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer, IdentityCa
from tests.support.booted import Machine, World
from tests.support.packaged_settings import BROKER, HOST, POLICY, agent_settings, broker_pair, broker_settings
from tests.support.waiting import MINUTES_OF_WORK

_ROOT = Path(__file__).parents[2]
_SSH = """#!/bin/bash
# The last argument is what to run; the others are for a network that isn't there.
exec nsenter --target {process} --all -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 sh -c "${{@: -1}}"
"""
_PLAY = [{"hosts": "all", "gather_facts": False, "roles": ["certplane_broker", "certplane_agent"]}]


class Controller:
    """Where Ansible runs, and what it is told."""

    def __init__(self, folder: Path, debs: Path) -> None:
        self.folder = folder
        self.box = Machine(World(folder / "machines", {BROKER: LOOPBACK}), "box")
        self.box.wait()
        self.box.run("rm -rf /opt/certplane")
        ssh = folder / "ssh"
        ssh.write_text(_SSH.format(process=self.box.first_process))
        ssh.chmod(0o755)
        self.variables: dict[str, Any] = {
            "ansible_ssh_executable": str(ssh),
            "ansible_ssh_transfer_method": "piped",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        for kind in ("agent", "broker"):
            (deb,) = debs.glob(f"certplane-{kind}_*.deb")
            self.variables[f"certplane_{kind}_deb"] = str(deb)

    async def told(self, ca: IdentityCa, pebble: Pebble, dns: DnsServer) -> None:
        """The variables of both roles."""
        self.box.write("/etc/pebble.pem", pebble.https_roots_file.read_text())
        pair = await broker_pair(ca, self.folder)
        (self.folder / "token").write_text(ca.mint_token(HOST))
        self.variables |= {
            "certplane_broker_settings": broker_settings(pebble, dns),
            "certplane_broker_policy": POLICY,
            "certplane_broker_agent_ca_bundle": ca.roots_file.read_text(),
            "certplane_broker_certificate": pair["crt"],
            "certplane_broker_key": pair["key"],
            "certplane_broker_secrets": {"dns-api-token": dns.endpoint.key.secret},
            "certplane_agent_ca_bundle": ca.roots_file.read_text(),
            "certplane_agent_settings": agent_settings(ca),
            "certplane_agent_token": "{{ lookup('pipe', '"
            f"echo asked >>{self.folder}/asked; cat {self.folder}/token') }}}}",
        }

    def play(self, *options: str, status: int = 0) -> tuple[int, str]:
        """Run both roles; how many things changed, and what was said."""
        (self.folder / "play.yml").write_text(json.dumps(_PLAY))
        (self.folder / "variables.json").write_text(json.dumps(self.variables))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "ANSIBLE_ROLES_PATH": str(_ROOT / "packaging" / "ansible" / "roles"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
        }
        python = parts.require("ansible").path.with_name("python")
        command = [
            python,
            "-m",
            "ansible",
            "playbook",
            "--inventory",
            "box,",
            "--extra-vars",
            f"@{self.folder}/variables.json",
        ]
        done = subprocess.run(
            [*command, *options, self.folder / "play.yml"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MINUTES_OF_WORK,
            check=False,
        )
        assert done.returncode == status, done.stdout
        changed = re.search(r"changed=(\d+)", done.stdout)
        assert changed, done.stdout
        return int(changed[1]), done.stdout


def walk(controller: Controller, token: str, secret: str) -> None:
    """From nothing to a certificate, and then only what changes."""
    box = controller.box
    asked = controller.folder / "asked"
    changed, said = controller.play()
    assert asked.read_text() == "asked\n", "a token was made more than once"
    assert changed > 8, said
    assert token not in said
    assert secret not in said
    box.until("test -e /etc/certplane/tls/web.pem && certplane-agent status")
    box.run("! test -e /etc/certplane/token")
    assert box.run("systemctl is-enabled certplane-agent certplane-broker").split() == ["enabled"] * 2
    mode = "stat -c '%a %U %G' /etc/certplane/broker.yml /etc/certplane/secrets/dns-api-token /etc/certplane/broker/server.key"
    assert box.run(mode).splitlines() == [
        "640 root certplane-broker",
        "600 root root",
        "600 certplane-broker certplane-broker",
    ]

    changed, said = controller.play()
    assert changed == 0, said
    assert asked.read_text() == "asked\n", "a token was made for a host with an identity"
    changed, said = controller.play("--check", "--diff")
    assert changed == 0, said

    started = box.run("systemctl show --property ActiveEnterTimestampMonotonic certplane-broker certplane-agent")
    policy = {
        **POLICY,
        "profiles": {**POLICY["profiles"], "mail": {"type": "multi_san", "dns_names": ["mail.example.com"]}},
    }
    controller.variables["certplane_broker_policy"] = policy
    controller.variables["certplane_agent_settings"]["logging"] = {"level": "debug"}
    changed, said = controller.play()
    assert changed == 4, said  # two files, two reloads
    assert started == box.run(
        "systemctl show --property ActiveEnterTimestampMonotonic certplane-broker certplane-agent"
    )

    controller.variables["certplane_broker_policy"] = {**policy, "hosts": "nonsense"}
    for _ in range(2):  # the second run finds no wrong file that the first one left
        _, said = controller.play("--start-at-task", "The policy is there", status=2)
        assert "hosts" in said, said
    box.run("! grep nonsense /etc/certplane/policy.yml; systemctl is-active certplane-broker")
    controller.variables["certplane_broker_policy"] = policy
    controller.variables["certplane_agent_settings"]["no_such_key"] = 1
    for _ in range(2):
        _, said = controller.play("--start-at-task", "The policy is there", status=2)
        assert "no_such_key: is not a known key" in said, said
    box.run("! grep no_such_key /etc/certplane/agent.yml; certplane-agent status")
    sys.stdout.write(said)


async def main(folder: Path, debs: Path) -> None:
    """Both roles on one machine."""
    controller = Controller(folder, debs)  # the servers are in its world
    async with (
        servers.dns_server(folder / "dns", ("example.com",)) as dns,
        Pebble(folder / "pebble", dns.endpoint.host_port) as pebble,
        servers.identity_ca(folder / "ca") as ca,
    ):
        await controller.told(ca, pebble, dns)
        await asyncio.to_thread(walk, controller, (controller.folder / "token").read_text(), dns.endpoint.key.secret)


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
