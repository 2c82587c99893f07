"""The cookbook of docs/cookbook.md, typed as it stands into bash, with the real grpcurl, against a running broker.

The document defines shell variables in its first block; the test gives these other values and runs the rest unchanged,
in one shell. What the document shows below a command is compared line by line, in order: `...` at a line's end, or in
quotes, stands for any text, a line `...` for any lines.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator
from tests.support.parts import need_part
from tests.support.waiting import no_hang

pytestmark = pytest.mark.e2e

_DOCUMENT = Path(__file__).parents[2] / "docs" / "cookbook.md"
_BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n(?:```(?:json|text)\n(?P<shown>.*?)```)?", re.DOTALL)
_MARK = "#### end of block"

_POLICY = {
    "version": 1,
    "profiles": {
        "web": {"type": "multi_san", "dns_names": ["www.certplane.test", "api.certplane.test"]},
        "payments": {"type": "multi_san", "dns_names": ["pay.certplane.test"]},
    },
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
    "services": {"shop": {"identity": "shop.certplane.test", "profiles": ["payments"]}},
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["operator"]}},
}


_NOT_OURS = "grpc.health.v1.Health"
"""What the proto files don't have."""


def without_reflection() -> str:
    """The document's commands that take the place of reflection."""
    section = _DOCUMENT.read_text(encoding="utf-8").partition("\n## grpcurl without")[2]
    return next(match["commands"] for match in _BLOCK.finditer(section) if "-proto " in match["commands"])


def blocks() -> list[tuple[str, str]]:
    """Each block of commands with what the document shows of its output."""
    text = _DOCUMENT.read_text(encoding="utf-8").partition("\n## Preparation\n")[2].partition("\n## grpcurl without")[0]
    return [(match["commands"], match["shown"] or "") for match in _BLOCK.finditer(text)]


def normal(line: str) -> str:
    """A line without what differs between grpcurl's versions: the case of JSON names, and spaces."""
    line = re.sub(r'"\w+":\s*', lambda name: re.sub(r"([A-Z])", r"_\1", name[0].rstrip()).lower() + " ", line)
    return " ".join(line.split())


def matches(shown: str, line: str) -> bool:
    pattern = re.escape(normal(shown)).replace(r"\.\.\.", ".*")
    return re.search(pattern, normal(line)) is not None  # grpcurl 1.8 writes each detail in one line


def missing_line(shown: str, output: str) -> str:
    """The first shown line that isn't in the output in its order; empty when all are."""
    lines = iter(output.splitlines())
    for expected in shown.splitlines():
        if expected != "..." and not any(matches(expected, line) for line in lines):
            return expected
    return ""


@pytest.mark.parametrize(
    ("shown", "output", "missing"),
    [
        pytest.param('"a": "..."\n"b": 1', '{\n  "a": "x"\n  "b": 1\n}', "", id="in-order"),
        pytest.param('"b": 1\n"a": 2', '"a": 2\n"b": 1', '"a": 2', id="other-order"),
        pytest.param('"certificate_id": "..."', '"certificateId": "x"', "", id="grpcurl-1.8"),
        pytest.param('"reason": "X"', '1)  {"domain":"d","reason":"X"}', "", id="grpcurl-1.8-details"),
        pytest.param("state: ISSUED", "state: FAILED", "state: ISSUED", id="other-value"),
    ],
)
def test_comparison(shown: str, output: str, missing: str) -> None:
    """The comparison finds what differs, and only that."""
    assert missing_line(shown, output) == missing


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    need_part("pebble")
    async with Deployment(tmp_path / "deployment", DeploymentOptions(_POLICY)) as running:
        await running.start_broker()
        enrolled = await running.add_host("web1.certplane.test").run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        yield running


@pytest.mark.parametrize("reflection", [True, False], ids=["reflection", "proto-files"])
async def test_commands_work_as_they_stand(deployment: Deployment, tmp_path: Path, reflection: bool) -> None:
    """Each command of the cookbook, in its order, answers what the document shows; with proto files too."""
    need_part("openssl")
    grpcurl = need_part("grpcurl")
    operator = Operator(deployment, "alice.certplane.test")
    service = Operator(deployment, "shop.certplane.test")  # enrolled as any caller is
    for caller in (operator, service):
        enrolled = await caller.enroll()
        assert enrolled.status == 0, enrolled.stderr
    certificate, key = deployment.hosts["web1.certplane.test"].identity
    values = {
        "BROKER": f"localhost:{deployment.broker_port}",
        "CA": str(deployment.broker_folder / "root.crt"),
        "CERT": str(certificate),
        "KEY": str(key),
        "OPERATOR_CERT": str(operator.identity[0]),
        "OPERATOR_KEY": str(operator.identity[1]),
        "SERVICE_CERT": str(service.identity[0]),
        "SERVICE_KEY": str(service.identity[1]),
    }
    first, *others = blocks()
    defined = dict(re.findall(r"^(\w+)=(?!\()(.*)$", first[0], re.MULTILINE))
    assert defined.keys() == values.keys(), "the document's variables are the ones that are replaced here"
    preparation = re.sub(
        r"^(\w+)=(?!\().*$", lambda match: f"{match[1]}={values[match[1]]}", first[0], flags=re.MULTILINE
    )
    if not reflection:
        python = tmp_path / "python"
        python.mkdir()
        (python / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (python / "python3").chmod(0o755)
        preparation += f"{{ PATH={python}:$PATH; {without_reflection()} }} >&2\n"
        others = [(commands, shown) for commands, shown in others if _NOT_OURS not in commands + shown]
    script = preparation + "".join(f"{commands}\necho '{_MARK}'\n" for commands, _ in others)
    work = tmp_path / "work"
    work.mkdir()
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=work,
        env={"PATH": f"{grpcurl.path.parent}:{os.environ['PATH']}", "HOME": str(work)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with no_hang():
        stdout, stderr = (stream.decode() for stream in await process.communicate())
    outputs = stdout.split(f"{_MARK}\n")
    assert len(outputs) == len(others) + 1, stdout + stderr
    for (commands, shown), output in zip(others, outputs, strict=False):
        assert shown, f"the document shows no output of:\n{commands}"
        missing = missing_line(shown, output)
        assert not missing, (
            f"{missing!r} isn't, or isn't there in its order, in the output of:\n{commands}\n{output}\n{stderr}"
        )


def test_every_asked_for_topic_is_there() -> None:
    """The cookbook says who am I, issue, get, list and health."""
    topics = re.findall(r"^## (.+)$", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"Who am I?", "Issue", "Get", "List", "The fleet", "Health"} <= set(topics)
