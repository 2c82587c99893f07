"""Equal texts of strangers are one object, in bounded number."""

import asyncio
import gc
import re
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import certplane
from certplane.broker.services.interceptors.peer import peer_of
from certplane.broker.services.renewal_convert import hello_of
from certplane.runtime.sharing import SharedTexts
from certplane.v1 import renewal_pb2 as pb


def text(number: int) -> str:
    return "".join(("text-", str(number)))


def test_equal_texts_are_one_object() -> None:
    """Whoever says what somebody said before takes no memory for it."""
    texts = SharedTexts()
    first = texts.share(text(1))
    assert texts.share(text(1)) is first
    assert text(1) is not first


def test_the_number_of_texts_is_bounded() -> None:
    """The one that was not said for longest goes."""
    texts = SharedTexts(2)
    a, b = texts.share(text(1)), texts.share(text(2))
    assert texts.share(text(1)) is a
    texts.share(text(3))
    assert len(texts) == 2
    assert texts.share(text(1)) is a
    assert texts.share(text(2)) is not b


def test_a_long_text_is_not_kept() -> None:
    """Two hundred names of 64 KiB would be more memory than a fleet's."""
    texts = SharedTexts()
    assert texts.share("x" * 1000) == "x" * 1000
    assert len(texts) == 0


def hellos(number: int) -> None:
    hello = pb.StreamRenewalStatusRequest.Hello(
        agent_version=f"1.{number}",
        epoch="epoch",
        certificate_names=[f"name-{number}-{index:050}" for index in range(1000)],
    )
    hello.host_time.FromDatetime(datetime(2026, 11, 28, tzinfo=UTC))
    asyncio.run(hello_of(hello))


def user_agents(number: int) -> None:
    for index in range(1000):
        peer_of({}, "ipv4:192.0.2.1:5000", f"agent/{number}-{index:0200}")


@pytest.mark.parametrize("say", [hellos, user_agents])
def test_what_strangers_say_is_let_go(say: Callable[[int], None]) -> None:
    """A hundred thousand texts that nobody said before are gone when they are heard, on every version of Python."""
    for number in range(6):  # until the pools are full
        say(number)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(10, 110):
            say(number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4 << 20, "the pools themselves are some 2 MB"


def test_no_text_is_made_immortal() -> None:
    """`sys.intern` keeps what it is given for good on Python 3.12: nothing of ours calls it."""
    assert sys.version_info >= (3, 11)
    package = Path(certplane.__file__).parent
    found = [path for path in package.rglob("*.py") if re.search(r"\bintern\(", path.read_text(encoding="utf-8"))]
    assert found == []
