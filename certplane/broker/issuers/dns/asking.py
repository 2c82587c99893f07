"""One question to one server, over UDP and, when the answer is cut off, over TCP. Only `NoDnsAnswerError` is raised.

Each question has a socket of its own, connected to the server: the kernel picks its port at random and passes on what
comes from the server's address and port alone, and it is closed with the first answer. So who can't see the question
has to guess the port (about 15 bits on Linux, `net.ipv4.ip_local_port_range`) and the id (16 bits) in the time that the
answer takes (RFC 5452), and one that is late or comes twice finds nobody. Sockets that are kept and shared would save
some 20 us of a question, and give such a guesser the time to look for their ports. The name's letters aren't mixed
(0x20): it would add bits, but there are servers that answer other spellings wrongly, and then no record is ever seen.

A port where nothing listens is told by the kernel at once (ICMP), instead of after the whole time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from datetime import timedelta
from typing import Self

import dns.asyncquery
import dns.inet
import dns.name
import dns.rcode
import dns.rdatatype

from certplane.broker.issuers.dns.dns_messages import MALFORMED, Answer, NoDnsAnswerError, SilentServerError
from certplane.broker.issuers.dns.dns_wire import Question, TruncatedError, read
from certplane.config.values import HostPort

_LARGEST = 65535
_EDNS_UNKNOWN = frozenset({int(dns.rcode.FORMERR), int(dns.rcode.NOTIMP), int(dns.rcode.BADVERS)})
_FAILING = frozenset({int(dns.rcode.SERVFAIL), int(dns.rcode.REFUSED)})


async def ask(
    name: dns.name.Name,
    kind: dns.rdatatype.RdataType,
    address: str,
    port: int,
    timeout: timedelta,
    *,
    recursive: bool = False,
    edns: bool = True,
) -> Answer:
    """Ask one address for records of `name`, over UDP and, when the answer is cut off, over TCP.

    Without `recursive` the RD bit is off: a server's own data are wanted, not a cache's. A server that refuses EDNS, or
    says nothing to it for half of the time, is asked once more without (RFC 6891 7); the first usable answer counts.
    Without `edns` there is one question, without it.

    Raises:
        SilentServerError: nothing came in `timeout`, or nothing listens there.
        NoDnsAnswerError: nothing readable came, or the address can't be reached from here.
    """
    seconds = timeout.total_seconds()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    by_tcp = ""
    try:
        with _Exchange(address, port, end, loop) as exchange:
            exchange.send(Question(name, kind, recursive=recursive, edns=edns))
            cut_off = await exchange.answer
            if isinstance(cut_off, Answer):
                return cut_off
        by_tcp = " over TCP, and over UDP it is cut off"
        async with asyncio.timeout_at(end):
            answer = await _over_tcp(cut_off, address, port, end - loop.time())
            if cut_off.edns and _refuses_edns(answer):
                answer = await _over_tcp(cut_off.without_edns(), address, port, end - loop.time())
            return answer
    except (TimeoutError, dns.exception.Timeout) as error:
        raise SilentServerError(f"no answer in {seconds:.0f} s{by_tcp}") from error
    except MALFORMED as error:
        if isinstance(error, ConnectionRefusedError) and not by_tcp:
            raise SilentServerError("nothing listens there") from error
        raise NoDnsAnswerError(f"no readable answer{by_tcp} ({type(error).__name__})") from error


class _Exchange:
    """A socket for one question, which may be asked twice; open between `with` and its end.

    `answer` comes with the first answer that counts, or the question whose answer is cut off; with TimeoutError at the
    end of the time, or the OSError of the socket.
    """

    def __init__(self, address: str, port: int, end: float, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing is sent. `end` is on the loop's clock.

        Raises:
            OSError: this host has no way there.
        """
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.answer: asyncio.Future[Answer | Question] = loop.create_future()
        self._loop, self._end = loop, end
        self._asked: list[Question] = []
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(dns.inet.low_level_address_tuple((address, port), family))
            loop.add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # nobody waits for it any more who could be told

    def send(self, question: Question) -> None:
        """Send it; one with EDNS has half of the time, and is then asked without beside."""
        self._asked.append(question)
        if self._timer is not None:
            self._timer.cancel()
        if question.edns:
            half = (self._loop.time() + self._end) / 2
            self._timer = self._loop.call_at(half, self._ask_without_edns, question)
        else:
            self._timer = self._loop.call_at(self._end, self._fail, TimeoutError())
        self._socket.send(question.wire)

    def _ask_without_edns(self, question: Question) -> None:
        try:
            self.send(question.without_edns())
        except OSError as error:
            self._fail(error)

    def _readable(self) -> None:
        try:
            wire = self._socket.recv(_LARGEST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error)
            return
        for question in self._asked:
            try:
                answer: Answer | Question | None = read(wire, question)
            except TruncatedError:
                answer = question
            if isinstance(answer, Answer) and question.edns and _refuses_edns(answer):
                if question is self._asked[-1]:
                    self._ask_without_edns(question)
                return
            if answer is not None:
                if not self.answer.done():
                    self.answer.set_result(answer)
                return

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def _over_tcp(question: Question, address: str, port: int, seconds: float) -> Answer:
    return Answer.of(await dns.asyncquery.tcp(question.message(), address, timeout=seconds, port=port))


def _refuses_edns(answer: Answer) -> bool:
    """Whether a question with EDNS got an answer that the same question without might not get."""
    if answer.rcode in _EDNS_UNKNOWN:
        return True
    # Servers that don't know EDNS may also fail at it; one that answers with EDNS means what it says.
    return answer.rcode in _FAILING and not answer.edns


async def addresses_of(server: HostPort) -> list[str]:
    """The IP addresses of a configured server.

    Raises:
        NoDnsAnswerError: its name has none.
    """
    try:
        return [str(ipaddress.ip_address(server.host))]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(server.host, server.port, proto=6)
    except OSError as error:
        raise NoDnsAnswerError(f"{server.host} has no address") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
