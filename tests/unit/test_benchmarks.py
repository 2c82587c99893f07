"""The benchmarks' own parts: what they say of a figure, of a Python and of a process. Nothing here is timed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import __main__ as bench
from benchmarks import agent, interpreter, night, orders, processes, result, start, streams
from benchmarks.load import LoadResult


@pytest.mark.parametrize(
    ("goal", "value", "expected"),
    [
        pytest.param("<= 2", 2.0, True, id="at most"),
        pytest.param("<= 2", 2.1, False, id="above"),
        pytest.param(">= 0.45", 0.44, False, id="below"),
        pytest.param(">= 0.45", 0.5, True, id="at least"),
        pytest.param("", 1.0, None, id="none"),
        pytest.param("all ISSUED", 1.0, None, id="words"),
    ],
)
def test_a_goal_is_met_by_the_median(goal: str, value: float, expected: bool | None) -> None:
    """The least and the most say how far to trust it, not whether it is met."""
    assert result.met(result.figure("a", [value, value, 1000.0], goal)["median"], goal) is expected


def test_goals_tell_what_is_met_and_what_was_not_measured(tmp_path: Path) -> None:
    """Each goal is a line, with the Python of the run that measured it, or with what measures it."""
    kept = tmp_path / "build" / "bench.json"
    result.keep(kept, "one", "Python 3.11.2, built", "now", [result.figure("fast", [1.0, 3.0, 2.0], ">= 2")])
    result.keep(kept, "two", "Python 3.12.0, built", "now", [result.figure("small", [9.0], "<= 8")])
    lines = result.goals(
        result.kept(kept), [("one", "fast", ">= 2"), ("two", "small", "<= 8"), ("three", "gone", "<= 1")]
    )
    assert lines[2:] == [
        "| fast | 2 (1 to 3) | >= 2 | met | Python 3.11.2, 3 |",
        "| small | 9 (9 to 9) | <= 8 | missed | Python 3.12.0, 1 |",
        "| gone | not measured: `scripts/bench three` | <= 1 | | |",
    ]


def test_a_section_measured_again_takes_the_place_of_what_it_said_before(tmp_path: Path) -> None:
    """What other sections said stays."""
    kept = tmp_path / "bench.json"
    for section, value in (("one", 1.0), ("two", 2.0), ("one", 3.0)):
        result.keep(kept, section, "Python", "now", [result.figure("same name", [value], "")])
    assert sorted((row["section"], row["median"]) for row in result.kept(kept)) == [("one", 3.0), ("two", 2.0)]


def test_every_goal_names_a_section_that_prints_its_figure() -> None:
    """The figures' names are those of the goals' table, and so are their goals."""
    memory = processes.Memory(1, 1)
    run, began = agent.Run(1.0, 1), agent.Start(1.0, memory)
    side = streams.Side(1.0, 1.0, 1.0, 1.0)
    order = orders.Round(1.0, 1.0, 0.0, 2.0, 0.0, 0.0, 1.0, (1.0, 1.0), (1.0, 1.0))
    printed = {
        "agent": agent.figures([agent.Round(began, began, run, run, run)]),
        "start": start.figures([start.Start(1.0, 1.0, 1.0, memory, memory)]),
        "orders": orders.figures([order]),
        "night": night.figures(night.Measured(20, 1.0, 1.0, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), 0, 0)),
        "streams": streams.figures([streams.Round(streams.Handshakes(1.0, 1.0), side, side, (1.0, 1.0))]),
    }
    for section, name, goal in bench.WANTED:
        assert section in bench.SECTIONS
        if section in printed:
            assert [row["goal"] for row in printed[section] if row["figure"] == name] == [goal], name


@pytest.mark.parametrize(
    ("arguments", "flags", "another", "expected"),
    [
        pytest.param("'--enable-optimizations' '--with-lto'", "-O3", False, "built by a profile", id="asked for"),
        pytest.param("'--prefix=/usr'", "-O3 -fprofile-use", False, "built by a profile", id="in the flags"),
        pytest.param("'--enable-shared'", "-O3", False, "without a profile", id="none"),
        pytest.param("'--enable-shared'", "-O2", True, "or not", id="Debian's"),
    ],
)
def test_a_python_is_told_by_how_it_was_built(arguments: str, flags: str, another: bool, expected: str) -> None:
    """A figure of one interpreter doesn't compare with that of another."""
    assert expected in interpreter.profile_of(arguments, flags, about_another_build=another)
    assert sys.version.split()[0] in interpreter.describe()


def test_processor_time_and_memory_count_child_processes() -> None:
    """A broker that has others work for it is measured with them."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            before = processes.memory(os.getpid(), children=False)
            child.stdout.readline()
            own = processes.processor_seconds(child.pid)
            assert own >= 0.2  # of a clock that ticks a hundred times a second
            assert processes.processor_seconds(os.getpid()) >= own
            assert processes.memory(os.getpid()).private > before.private
        finally:
            child.kill()


def test_a_percentile_lies_on_a_straight_line_between_the_edges() -> None:
    """As Prometheus' histogram_quantile has it."""
    assert orders._quantile({0.01: 0.0, 0.02: 100.0, float("inf"): 100.0}, 0.99) == pytest.approx(0.0199)


def test_a_run_with_failures_has_no_figures() -> None:
    """`LoadResult` keeps how many were not OK, so that a section can refuse."""
    assert LoadResult(1.0, 1.0, 1.0, 2, 1).failed == 1


def test_help_names_every_section() -> None:
    """`scripts/bench --help` is where a reader looks for them."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'scripts'}:{root}"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert all(section in done.stdout for section in (*bench.SECTIONS, bench.GOALS, "--python"))
