"""Tests wait by tests/support/waiting.py: what fails on a busy machine alone is found here, on a quiet one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PYTHON = [path for path in sorted(TESTS.rglob("*.py")) if path != TESTS / "support" / "waiting.py"]
ENOUGH_FOR_NOBODY = 5
"""Seconds. A shorter limit is what a test is about; a longer one is meant for a hang, and has a name there: HANG."""
_SLEEPS = ("asyncio.sleep", "time.sleep")
_LIMITS = ("asyncio.timeout", "asyncio.wait_for")


def mistakes(tree: ast.AST) -> Iterator[str]:
    """What waits by itself, by line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.While) and not isinstance(node.test, ast.Constant) and _sleeps(node):
            yield f"{node.lineno}: a loop that asks and sleeps; use `until`"
        elif isinstance(node, ast.For) and _turns(node.iter) >= 50 and _sleeps(node):
            yield f"{node.lineno}: so many looks, and then? use `until`"
        elif isinstance(node, ast.Call):
            limits = [keyword.value for keyword in node.keywords if keyword.arg in {"timeout", "within"}]
            limits += node.args[-1:] if ast.unparse(node.func) in _LIMITS else []
            if any(isinstance(limit, ast.Constant) and _seconds(limit) >= ENOUGH_FOR_NOBODY for limit in limits):
                yield f"{node.lineno}: a time limit of some seconds; use `HANG` or `no_hang()`"


def _sleeps(loop: ast.AST) -> bool:
    calls = (node for node in ast.walk(loop) if isinstance(node, ast.Call) and ast.unparse(node.func) in _SLEEPS)
    return any(isinstance(span, ast.Constant) and span.value for call in calls for span in call.args)


def _turns(what: ast.expr) -> float:
    match what:
        case ast.Call(func=ast.Name(id="range"), args=[ast.Constant() as end]):
            return _seconds(end)
    return 0


def _seconds(constant: ast.Constant) -> float:
    return constant.value if isinstance(constant.value, int | float) else 0


@pytest.mark.parametrize("folder", [path.name for path in sorted(TESTS.iterdir()) if path.is_dir()])
def test_nothing_waits_by_itself(folder: str) -> None:
    """Neither a poll of one's own nor a time limit that a busy machine reaches."""
    mine = [path for path in PYTHON if path.relative_to(TESTS).parts[0] == folder]
    found = [f"{path}:{text}" for path in mine for text in mistakes(ast.parse(path.read_text()))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "count"),
    [
        pytest.param("while not done(): await asyncio.sleep(0.1)", 1, id="poll"),
        pytest.param("while time.monotonic() < end:\n    if done(): break\n    time.sleep(0.1)", 1, id="deadline"),
        pytest.param("for _ in range(100):\n    if done(): break\n    time.sleep(1)", 1, id="fixed-number-of-looks"),
        pytest.param("async with asyncio.timeout(30): pass", 1, id="limit"),
        pytest.param("await asyncio.wait_for(task, 10)", 1, id="wait-for"),
        pytest.param("stub.GetOrder(request, timeout=10)", 1, id="call"),
        pytest.param("await until(done, within=20)", 1, id="until-with-a-time"),
        pytest.param("process.wait(timeout=HANG)", 0, id="named"),
        pytest.param("probe(port, timeout=0.2)", 0, id="what-the-test-is-about"),
        pytest.param("while True: await asyncio.sleep(0.1)", 0, id="a-pace"),
        pytest.param("while not done(): await asyncio.sleep(0)", 0, id="the-loop-s-turn"),
    ],
)
def test_what_counts_as_a_mistake(code: str, count: int) -> None:
    """The rules, by example."""
    assert len(list(mistakes(ast.parse(code)))) == count
