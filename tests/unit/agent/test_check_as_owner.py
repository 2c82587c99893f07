"""`check` as root becomes the agent's user, who may have no way to the files of Python's modules."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from certplane.sandbox.certificates import CertificateAuthority

_PROGRAM = """
import builtins, os, sys
from certplane.agent import cli
for name in ("initgroups", "setresgid", "setresuid"):
    setattr(os, name, lambda *_: None)
from certplane.agent import inspection
before = inspection.act_as_owner
def act(host):
    found = before(host)
    known = {*sys.modules}
    load = builtins.__import__
    def watched(name, *rest, **more):
        if name.startswith("certplane") and name not in known:
            print("imported later:", name)
        return load(name, *rest, **more)
    builtins.__import__ = watched
    return found
inspection.act_as_owner = act
sys.exit(cli.main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_nothing_is_imported_as_another_user(tmp_path: Path) -> None:
    """A virtual environment below /root is closed to that user: what is needed is imported before."""
    root = CertificateAuthority.root("Nobody")
    (tmp_path / "root.crt").write_bytes(root.pem)
    (tmp_path / "state").mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path / "state", nobody.pw_uid, nobody.pw_gid)
    (tmp_path / "token").write_text("a.b.c")
    (tmp_path / "token").chmod(0o600)
    settings = {
        "state_dir": str(tmp_path / "state"),
        "identity": {
            "name": "web1.certplane.test",
            "bootstrap_token": str(tmp_path / "token"),
            "step_ca": {"url": "https://127.0.0.1:9", "fingerprint": root.fingerprint},
        },
        "broker": {"url": "https://localhost:9", "server_ca_bundle": str(tmp_path / "root.crt")},
        "certificates": [{"name": "web", "profile": "web", "dns_names": ["a.certplane.test"]}],
    }
    (tmp_path / "agent.yml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", _PROGRAM, "-c", str(tmp_path / "agent.yml"), "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "runs as user nobody" in done.stdout
    assert "imported later" not in done.stdout
    assert "the bootstrap token is not a step-ca token" in done.stdout
    assert "Traceback" not in done.stderr
