"""What the issuing process asks of the accounts' rows, and what its broker answers."""

from __future__ import annotations

import asyncio

import pytest

from certplane.broker.accounts.model import Account
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.accounts import AccountAnswers, AskedAccounts
from certplane.errors import Reason, RefusalError
from tests.fakes.accounts import FakeAccounts
from tests.support.waiting import no_hang

DIRECTORY = "https://ca.example/directory"
ACCOUNT = Account("default", DIRECTORY, "a" * 64, bytes(range(256)), "b" * 64, b"\0")
UNAVAILABLE = RefusalError(Reason.STORE_UNAVAILABLE, "the store can't be read now")


class Pair:
    """Both halves, each message written and read as between two processes."""

    def __init__(self) -> None:
        self.answers = AccountAnswers()
        self.asked = AskedAccounts(self._send)
        self.tasks: set[asyncio.Task[None]] = set()
        self.lost = False

    def _send(self, message: m.ToBroker) -> None:
        question = m.decode_to_broker(m.encode(message))
        assert isinstance(question, m.FindAccount | m.ChangeAccount)
        if not self.lost:
            task = asyncio.create_task(self._answer(question))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _answer(self, question: m.FindAccount | m.ChangeAccount) -> None:
        answer = m.decode_to_child(m.encode(await self.answers.answer(question)))
        assert isinstance(answer, m.AccountAnswer)
        self.asked.take(answer)


async def test_rows_cross_whole() -> None:
    """Found, changed, and what stands instead."""
    pair, rows = Pair(), FakeAccounts()
    pair.answers.open(rows, lambda _issuer, _sha256: None)
    assert await pair.asked.find("default", DIRECTORY) is None
    assert await pair.asked.change(None, ACCOUNT) == ACCOUNT
    assert await pair.asked.find("default", DIRECTORY) == ACCOUNT == rows.rows["default", DIRECTORY]
    other = Account("default", DIRECTORY, "c" * 64)
    assert await pair.asked.change(None, other) == ACCOUNT
    assert await asyncio.gather(*(pair.asked.find("default", DIRECTORY) for _ in range(3))) == [ACCOUNT] * 3


async def test_a_refusal_is_one_there_too() -> None:
    """Without a database, and of one that is away; what was read before is answered meanwhile."""
    pair, rows = Pair(), FakeAccounts()
    with pytest.raises(RefusalError) as caught:
        await pair.asked.find("default", DIRECTORY)
    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    pair.answers.open(rows, lambda _issuer, _sha256: None)
    await pair.asked.change(None, ACCOUNT)
    rows.faults.fail_always("find", UNAVAILABLE)
    rows.faults.fail_always("change", UNAVAILABLE)
    assert await pair.asked.find("default", DIRECTORY) == ACCOUNT
    for asking in (pair.asked.find("other", DIRECTORY), pair.asked.change(ACCOUNT, ACCOUNT)):
        with pytest.raises(RefusalError) as caught:
            await asking
        assert caught.value.refusal == UNAVAILABLE.refusal


async def test_a_bug_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    """The log has it whole, and the issuing process doesn't wait for ever."""
    pair, rows = Pair(), FakeAccounts()
    pair.answers.open(rows, lambda _issuer, _sha256: None)
    rows.faults.fail("find", RuntimeError("closed"))
    with pytest.raises(RefusalError) as caught:
        await pair.asked.find("default", DIRECTORY)
    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert "RuntimeError: closed" in caplog.text


async def test_an_answer_that_nobody_waits_for_any_more() -> None:
    """It is passed over, as is one to no question."""
    pair = Pair()
    pair.lost = True
    waiting = asyncio.create_task(pair.asked.find("default", DIRECTORY))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pair.asked.take(m.AccountAnswer(1, ACCOUNT, None))
    pair.asked.take(m.AccountAnswer(99, ACCOUNT, None))


async def test_keys_of_before_the_database_are_told_with_it() -> None:
    """The first process may be ready before the store is open."""
    heard: list[tuple[str, str]] = []
    answers = AccountAnswers()
    answers.take_keys({"default": "a", "other": "b"})
    answers.open(FakeAccounts(), lambda issuer, sha256: heard.append((issuer, sha256)))
    answers.take_keys({"other": "c"})
    assert heard == [("default", "a"), ("other", "b"), ("other", "c")]


async def test_who_needs_the_database_waits_for_it() -> None:
    """No other does."""
    async with no_hang():
        await AccountAnswers().until_open()
    answers = AccountAnswers(awaited=True)
    waiting = asyncio.create_task(answers.until_open())
    await asyncio.sleep(0)
    assert not waiting.done()
    answers.open(FakeAccounts(), lambda _issuer, _sha256: None)
    async with no_hang():
        await waiting
