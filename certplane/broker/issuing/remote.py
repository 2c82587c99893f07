"""The ports over whatever makes calls of the issuing process.

What becomes of a call that was cut off because the process ended is each port's own: see `docs/adr/0024`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from typing_extensions import override

from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.child import ChildEndedError
from certplane.broker.issuing.connection import TooLargeError
from certplane.broker.model import DnsChallenge, IssuerOrder, Profile, RevocationReason, TxtRecord
from certplane.broker.ports import ChallengeSolver, Issuer, OrderPreflight, Revoker
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoError
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.broker.telling import hearer
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

R = TypeVar("R")
_logger = logging.getLogger(__name__)

_AGAIN = timedelta(milliseconds=100)
"""Before a removal of TXT records that was cut off is tried again."""

_CUT_OFF = "the broker's process for CAs and DNS has ended; it is started again"


class Calls(Protocol):
    """Who makes calls of the issuing process."""

    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        """As `Child.ask`; waits a little for a process that is being started."""
        ...


class RemoteIssuer(Issuer, Revoker):
    """An issuer of the process. A step that is cut off is ISSUER_UNAVAILABLE: the order looks at the CA first."""

    def __init__(self, calls: Calls, name: str, directory: str) -> None:
        """`name` and `directory` as the configuration has them."""
        self._calls, self._name, self._directory = calls, name, directory

    @property
    @override
    def name(self) -> str:
        return self._name

    @property
    @override
    def directory(self) -> str:
        return self._directory

    @override
    async def create_order(
        self, csr_der: bytes, profile: Profile, timeout: timedelta, *, replaces: str = ""
    ) -> IssuerOrder:
        return await self._ask(
            m.CreateOrder(timeout, issuer=self._name, csr_der=csr_der, profile=profile, replaces=replaces)
        )

    @override
    async def get_order(self, url: str, timeout: timedelta) -> IssuerOrder:
        return await self._ask(m.GetOrder(timeout, issuer=self._name, url=url))

    @override
    async def answer_challenges(self, order: IssuerOrder, timeout: timedelta) -> IssuerOrder:
        return await self._ask(m.AnswerChallenges(timeout, issuer=self._name, order=order))

    @override
    async def finalize(self, order: IssuerOrder, csr_der: bytes, timeout: timedelta) -> IssuerOrder:
        return await self._ask(m.Finalize(timeout, issuer=self._name, order=order, csr_der=csr_der))

    @override
    async def download(self, order: IssuerOrder, timeout: timedelta) -> str:
        return await self._ask(m.Download(timeout, issuer=self._name, order=order))

    @override
    async def revoke(self, certificate_pem: str, reason: RevocationReason, timeout: timedelta) -> None:
        await self._ask(m.Revoke(timeout, issuer=self._name, certificate_pem=certificate_pem, reason=reason))

    async def note_directory(self, timeout: timedelta) -> None:
        """Have it said in the log if the CA's directory can't be read. Never raises a refusal."""
        with contextlib.suppress(ChildEndedError):
            await self._calls.ask(m.NoteDirectory(timeout, issuer=self._name))

    async def look_at_account_key(self, timeout: timedelta) -> str:
        """Have the account's key that is kept now used; the SHA-256 of the one in use then.

        Raises:
            RefusalError: ISSUER_UNAVAILABLE: the process has ended; the next one reads the key anyway.
        """
        return await self._ask(m.LookAtAccountKey(timeout, issuer=self._name))

    async def _ask(self, call: m.Call[R]) -> R:
        try:
            return await self._calls.ask(call, hearer())
        except ChildEndedError as error:
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, _CUT_OFF) from error


class RemoteSolver(ChallengeSolver):
    """The solver of the process. What is cut off is DNS_UNAVAILABLE; a removal is repeated, since nobody else does."""

    def __init__(self, calls: Calls, clock: Clock) -> None:
        """`clock` is for the deadline of a removal."""
        self._calls, self._clock = calls, clock

    @override
    async def plan(
        self, challenges: Sequence[DnsChallenge], profile: Profile, timeout: timedelta
    ) -> Sequence[TxtRecord]:
        return list(await self._ask(m.Plan(timeout, challenges=tuple(challenges), profile=profile)))

    @override
    async def present(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        return list(await self._ask(m.Present(timeout, records=tuple(records))))

    @override
    async def wait_until_visible(
        self, records: Sequence[TxtRecord], timeout: timedelta, tell: Callable[[str], object] | None = None
    ) -> Sequence[str]:
        return list(await self._ask(m.WaitUntilVisible(timeout, records=tuple(records)), tell))

    @override
    async def remove(self, records: Sequence[TxtRecord], timeout: timedelta) -> Sequence[TxtRecord]:
        until = self._clock.monotonic() + timeout.total_seconds()
        while True:
            left = timedelta(seconds=max(0.0, until - self._clock.monotonic()))
            try:
                return list(await self._calls.ask(m.Remove(left, records=tuple(records))))
            except ChildEndedError as error:
                # Otherwise they would stand until the broker's next start. One that is gone already is removed.
                if self._clock.monotonic() >= until:
                    _logger.warning("TXT records not removed: %s: %s", _CUT_OFF, error)
                    return list(records)
                await self._clock.sleep(min(_AGAIN, left))  # it may be cut off at once, and again
            except RuntimeError:
                _logger.exception("TXT records not removed")
                return list(records)

    async def check_accounts(self, profiles: Iterable[Profile], timeout: timedelta) -> Sequence[AccountFinding]:
        """What is wrong with the credentials of these profiles' records. Never raises a refusal."""
        names: defaultdict[str, set[str]] = defaultdict(set)
        for profile in profiles:
            names[profile.credentials].update(profile.dns_names)
        call = m.CheckAccounts(timeout, names={credentials: tuple(used) for credentials, used in names.items()})
        try:
            return await self._calls.ask(call)
        except ChildEndedError:
            return [AccountFinding(f"credentials can't be checked: {_CUT_OFF}", "none, if it passes")]
        except TooLargeError as error:  # the same names with many credentials, through aliases
            return [
                AccountFinding(
                    f"credentials can't be checked: {error}", "none: an order says what its credentials can't do"
                )
            ]

    async def _ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        try:
            return await self._calls.ask(call, tell or hearer())
        except ChildEndedError as error:
            raise RefusalError(Reason.DNS_UNAVAILABLE, _CUT_OFF) from error


class RemotePreflight(OrderPreflight):
    """The preflight of the process. One that is cut off is a doubt, and holds nothing up."""

    def __init__(self, calls: Calls) -> None:
        """Nothing is asked yet."""
        self._calls = calls

    @override
    async def check_order(self, dns_names: Sequence[str], issuer: str, timeout: timedelta) -> None:
        with contextlib.suppress(ChildEndedError):
            await self._calls.ask(m.CheckOrder(timeout, dns_names=tuple(dns_names), issuer=issuer))


class RemoteRenewalInfo(RenewalInfoSource):
    """What an issuer of the process says of renewals. A question that is cut off has no answer, for now."""

    def __init__(self, calls: Calls, issuer: str) -> None:
        """`issuer` is its name in the configuration."""
        self._calls, self._issuer = calls, issuer

    @override
    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        call = m.AskRenewalInfo(timeout, issuer=self._issuer, certificate_pem=certificate_pem)
        try:
            return await self._calls.ask(call)
        except ChildEndedError as error:
            raise RenewalInfoError(_CUT_OFF, temporary=True) from error
