"""The child's half of a connection: calls are made of the adapters, side by side, and what became of them is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import msgspec

from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.connection import TooLargeError
from certplane.broker.model import Profile
from certplane.broker.ports import ChallengeSolver, Issuer, OrderPreflight, Revoker
from certplane.broker.renewal.model import RenewalInfoError, RenewalInfoUnsupportedError
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.broker.telling import telling
from certplane.errors import RefusalError
from certplane.runtime import tracing
from certplane.runtime.logging import request_id
from certplane.runtime.tracing import Span, SpanKind

_logger = logging.getLogger(__name__)


class NotingIssuer(Issuer, Revoker, Protocol):
    """An issuer that can say at the start whether its CA's directory is there."""

    async def note_directory(self, timeout: timedelta) -> None:
        """Say it in the log if it isn't. Never raises."""
        ...

    async def look_at_account_key(self, timeout: timedelta) -> str:
        """Use the account's key that is kept now; the SHA-256 of the one in use then. Never raises."""
        ...


class CheckingSolver(ChallengeSolver, Protocol):
    """A solver that can say what its credentials are good for."""

    async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> Any:
        """What is wrong with them. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Adapters:
    """What calls are made of; by issuer where there are several."""

    issuers: Mapping[str, NotingIssuer]
    solver: CheckingSolver
    preflight: OrderPreflight
    renewal_infos: Mapping[str, RenewalInfoSource]


class Answering:
    """Answers requests. For the event loop's thread."""

    def __init__(self, adapters: Adapters, send: Callable[[bytes], None]) -> None:
        """`send` takes what is to be sent; `TooLargeError` if that can't be."""
        self._adapters, self._send = adapters, send
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def begin(self, request: m.Request) -> None:
        """Make the call; its end is sent."""
        task = asyncio.create_task(self._answer(request), name=type(request.call).__name__)
        self._tasks[request.number] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.number, None))

    def cancel(self, number: int) -> None:
        """Nobody waits for it; it may have ended."""
        if (task := self._tasks.get(number)) is not None:
            task.cancel()

    async def end(self, within: timedelta) -> None:
        """Cancel all, and let them end what can't be left half-done."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=within.total_seconds())

    async def _answer(self, request: m.Request) -> None:
        request_id.set(request.request_id)
        number = request.number
        try:
            with telling(lambda text: self._tell(number, text)), _span(request):
                value = await self._call(request.call, number)
            answer = m.encode(m.Returned(number, msgspec.Raw(m.encode(value))))
        except RefusalError as error:
            answer = m.encode(m.Refused(number, error.refusal))
        except RenewalInfoError as error:
            unsupported = isinstance(error, RenewalInfoUnsupportedError)
            answer = m.encode(m.NoRenewalInfo(number, str(error), error.temporary, error.retry_after, unsupported))
        except Exception as error:
            _logger.exception("a call of the issuing process failed unexpectedly: %s", type(request.call).__name__)
            answer = m.encode(m.Broke(number, type(error).__name__))
        try:
            self._send(answer)
        except TooLargeError as error:
            self._send(m.encode(m.Broke(number, str(error))))

    def _call(self, call: m.AnyCall, number: int) -> Coroutine[Any, Any, Any]:  # noqa: C901, PLR0911, PLR0912 - a row a call
        solver, timeout = self._adapters.solver, call.timeout
        match call:
            case m.CreateOrder():
                return self._issuer(call.issuer).create_order(
                    call.csr_der, call.profile, timeout, replaces=call.replaces
                )
            case m.GetOrder():
                return self._issuer(call.issuer).get_order(call.url, timeout)
            case m.AnswerChallenges():
                return self._issuer(call.issuer).answer_challenges(call.order, timeout)
            case m.Finalize():
                return self._issuer(call.issuer).finalize(call.order, call.csr_der, timeout)
            case m.Download():
                return self._issuer(call.issuer).download(call.order, timeout)
            case m.Revoke():
                return self._issuer(call.issuer).revoke(call.certificate_pem, call.reason, timeout)
            case m.NoteDirectory():
                return self._issuer(call.issuer).note_directory(timeout)
            case m.LookAtAccountKey():
                return self._issuer(call.issuer).look_at_account_key(timeout)
            case m.Plan():
                return solver.plan(call.challenges, call.profile, timeout)
            case m.Present():
                return solver.present(call.records, timeout)
            case m.WaitUntilVisible():
                return solver.wait_until_visible(call.records, timeout, lambda text: self._tell(number, text))
            case m.Remove():
                return solver.remove(call.records, timeout)
            case m.CheckAccounts():
                return self._findings(call)
            case m.CheckOrder():
                return self._adapters.preflight.check_order(call.dns_names, call.issuer, timeout)
            case m.AskRenewalInfo():
                return self._adapters.renewal_infos[call.issuer].renewal_info(call.certificate_pem, timeout)

    def _issuer(self, name: str) -> NotingIssuer:
        return self._adapters.issuers[name]

    async def _findings(self, call: m.CheckAccounts) -> tuple[AccountFinding, ...]:
        profiles = [Profile("", "", names, "", credentials=credentials) for credentials, names in call.names.items()]
        return tuple(await self._adapters.solver.check_accounts(profiles, call.timeout))

    def _tell(self, number: int, text: str) -> None:
        with contextlib.suppress(TooLargeError):
            self._send(m.encode(m.Told(number, text)))


def _span(request: m.Request) -> AbstractContextManager[Span]:
    """What the call takes here, below the span of who waits for it in the broker."""
    attributes = {"certplane.request_id": request.request_id}
    issuer: str | None = getattr(request.call, "issuer", None)
    if issuer:
        attributes["certplane.issuer"] = issuer
    name = type(request.call).__name__
    return tracing.span(name, SpanKind.SERVER, parent=request.trace, attributes=attributes)
