"""What crosses between the broker and its issuing process: nothing else is ever sent or decoded.

A call names its result by its base (`Call[IssuerOrder]`), so that both halves and mypy read one declaration. There is
no field that a secret could go in: whoever adds a message keeps it so.
"""

from __future__ import annotations

import functools
import typing
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

import msgspec

from certplane.broker.accounts.model import Account
from certplane.broker.issuers.dns.provider import AccountFinding
from certplane.broker.model import DnsChallenge, IssuerOrder, Profile, RevocationReason, TxtRecord
from certplane.broker.renewal.model import RenewalInfo
from certplane.errors import ConfigurationProblem, Refusal

R_co = TypeVar("R_co", covariant=True)


class Call(msgspec.Struct, Generic[R_co], frozen=True, tag=True):
    """A method of an adapter, to be ended within `timeout`."""

    timeout: timedelta

    @property
    def writes_dns(self) -> bool:
        """Whether it changes records: two processes mustn't at once, since a provider may replace what it finds."""
        return isinstance(self, Present | Remove)


class CreateOrder(Call[IssuerOrder], frozen=True, kw_only=True):
    """`Issuer.create_order`."""

    issuer: str
    csr_der: bytes
    profile: Profile
    replaces: str


class GetOrder(Call[IssuerOrder], frozen=True, kw_only=True):
    """`Issuer.get_order`."""

    issuer: str
    url: str


class AnswerChallenges(Call[IssuerOrder], frozen=True, kw_only=True):
    """`Issuer.answer_challenges`."""

    issuer: str
    order: IssuerOrder


class Finalize(Call[IssuerOrder], frozen=True, kw_only=True):
    """`Issuer.finalize`."""

    issuer: str
    order: IssuerOrder
    csr_der: bytes


class Download(Call[str], frozen=True, kw_only=True):
    """`Issuer.download`."""

    issuer: str
    order: IssuerOrder


class Revoke(Call[None], frozen=True, kw_only=True):
    """`Revoker.revoke`."""

    issuer: str
    certificate_pem: str
    reason: RevocationReason


class NoteDirectory(Call[None], frozen=True, kw_only=True):
    """`AcmeIssuer.note_directory`."""

    issuer: str


class LookAtAccountKey(Call[str], frozen=True, kw_only=True):
    """`AcmeIssuer.look_at_account_key`."""

    issuer: str


class Plan(Call[tuple[TxtRecord, ...]], frozen=True, kw_only=True):
    """`ChallengeSolver.plan`."""

    challenges: tuple[DnsChallenge, ...]
    profile: Profile


class Present(Call[tuple[TxtRecord, ...]], frozen=True, kw_only=True):
    """`ChallengeSolver.present`."""

    records: tuple[TxtRecord, ...]


class WaitUntilVisible(Call[tuple[str, ...]], frozen=True, kw_only=True):
    """`ChallengeSolver.wait_until_visible`; what it tells meanwhile comes as `Told`."""

    records: tuple[TxtRecord, ...]


class Remove(Call[tuple[TxtRecord, ...]], frozen=True, kw_only=True):
    """`ChallengeSolver.remove`."""

    records: tuple[TxtRecord, ...]


class CheckAccounts(Call[tuple[AccountFinding, ...]], frozen=True, kw_only=True):
    """`DnsSolver.check_accounts`: of profiles, the names that are written with each credentials' name.

    The profiles of a large policy would be more than a message may hold; each of these names is in the policy's text.
    """

    names: dict[str, tuple[str, ...]]


class CheckOrder(Call[None], frozen=True, kw_only=True):
    """`OrderPreflight.check_order`."""

    dns_names: tuple[str, ...]
    issuer: str


class AskRenewalInfo(Call[RenewalInfo], frozen=True, kw_only=True):
    """`RenewalInfoSource.renewal_info`."""

    issuer: str
    certificate_pem: str


AnyCall = (
    CreateOrder
    | GetOrder
    | AnswerChallenges
    | Finalize
    | Download
    | Revoke
    | NoteDirectory
    | LookAtAccountKey
    | Plan
    | Present
    | WaitUntilVisible
    | Remove
    | CheckAccounts
    | CheckOrder
    | AskRenewalInfo
)


# From the broker to the child.


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message: broker.yml as the broker has read it, under the name that problems carry."""

    file: str
    text: bytes
    level: str


class Request(msgspec.Struct, frozen=True, tag=True):
    """A call; `number` is never used again on this connection. `request_id` is for the log, `trace` for spans."""

    number: int
    request_id: str
    call: AnyCall
    trace: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody waits for the call any more."""

    number: int


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Alive`; `in_trouble` is whether secrets are to be looked at again (`secrets.watch`)."""

    in_trouble: bool


class SetLevel(msgspec.Struct, frozen=True, tag=True):
    """Another level of the log is in force."""

    level: str


class AccountAnswer(msgspec.Struct, frozen=True, tag=True):
    """The answer to `FindAccount` or `ChangeAccount` of that number: a row, none, or a refusal."""

    number: int
    account: Account | None
    refusal: Refusal | None


ToChild = Begin | Request | Cancel | Beat | SetLevel | AccountAnswer


# From the child to the broker.


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The adapters are made. `accounts`: SHA-256 of the SPKI of each account's key, by issuer."""

    accounts: dict[str, str]


class AccountKey(msgspec.Struct, frozen=True, tag=True):
    """The issuer's account has another key, of this SHA-256, from now on."""

    issuer: str
    sha256: str


class FindAccount(msgspec.Struct, frozen=True, tag=True):
    """`AccountRows.find`: the child has no database. Keys cross sealed, and only the child reads what unseals them."""

    number: int
    issuer: str
    directory_url: str


class ChangeAccount(msgspec.Struct, frozen=True, tag=True):
    """`AccountRows.change`."""

    number: int
    before: Account | None
    after: Account


class Unfit(msgspec.Struct, frozen=True, tag=True):
    """The adapters can't be made; the child ends."""

    problems: tuple[ConfigurationProblem, ...]


class Returned(msgspec.Struct, frozen=True, tag=True):
    """The call's result, which only its caller can decode."""

    number: int
    value: msgspec.Raw


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The call ended with a `RefusalError`."""

    number: int
    refusal: Refusal


class NoRenewalInfo(msgspec.Struct, frozen=True, tag=True):
    """The call ended with a `RenewalInfoError`."""

    number: int
    message: str
    temporary: bool
    retry_after: timedelta | None
    unsupported: bool


class Broke(msgspec.Struct, frozen=True, tag=True):
    """The call ended with what no port allows; the log has it whole."""

    number: int
    error: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """What a long wait is for."""

    number: int
    text: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Beat`; `resident` is octets of memory."""

    resident: int


class SecretChanged(msgspec.Struct, frozen=True, tag=True):
    """The secret of this name is another one now."""

    name: str


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """A record of the child's log, printable; `exception` is its text with line breaks."""

    logger: str
    level: int
    time: float
    message: str
    request_id: str
    fields: dict[str, Any]
    exception: str


ToBroker = (
    Ready
    | Unfit
    | AccountKey
    | FindAccount
    | ChangeAccount
    | Returned
    | Refused
    | NoRenewalInfo
    | Broke
    | Told
    | Alive
    | SecretChanged
    | LogLine
)


def _as_text(value: object) -> str:
    """A kind of text of our own, such as `DnsName`: it crosses as the text that it is."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"no message holds a {type(value).__name__}")


encode: Final = msgspec.msgpack.Encoder(enc_hook=_as_text).encode
decode_to_child: Final = msgspec.msgpack.Decoder[ToChild](ToChild).decode
decode_to_broker: Final = msgspec.msgpack.Decoder[ToBroker](ToBroker).decode

NOT_A_MESSAGE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoders raise for octets that are none of the messages."""


def decode_result(call: Call[R_co], value: msgspec.Raw) -> R_co:
    """The result of `call`.

    Raises:
        NOT_A_MESSAGE: it is none.
    """
    result: R_co = _decoder(type(call)).decode(value)
    return result


@functools.cache
def _decoder(call: type[Call[Any]]) -> msgspec.msgpack.Decoder[Any]:
    """By the declared base, `Call[<result>]`."""
    (base,) = [base for base in call.__orig_bases__ if typing.get_origin(base) is Call]  # type: ignore[attr-defined]  # PEP 560
    (result,) = typing.get_args(base)
    return msgspec.msgpack.Decoder(result)
